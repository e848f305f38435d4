"""Placeholders: what is replaced, what stays, and what is refused."""

import random

import pytest

from enkg.errors import InputError
from enkg.execute import template
from enkg.execute.manifest import PLACEHOLDERS

VALUES = {name: f"<{name}>" for name in PLACEHOLDERS} | {"member": 7}


def test_that_every_placeholder_is_replaced_wherever_it_stands():
    text = "--in={input} {output}{folder}/x {run} {member},{batch}-{attempt} {threads} {ranks}"
    assert template.fill(text, VALUES) == (
        "--in=<input> <output><folder>/x <run> 7,<batch>-<attempt> <threads> <ranks>"
    )


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{{member}}", "{member}"),
        ("{{{member}}}", "{7}"),
        ("{{unknown}}", "{unknown}"),
        ("{{{member}, 1}, {2, 3}}", "{{7, 1}, {2, 3}}"),
        ('{"a": {"b": {member}}}', '{"a": {"b": 7}}'),
        ("int main(void) { return {member}; }", "int main(void) { return 7; }"),
        ("f(x) = {x, y}; {} {1} { member } {member:3} {a.b} {", None),
        ("$x^{2}$ \\frac{1}{2} }} {{ }", None),
        ("", None),
    ],
)
def test_that_braces_without_a_single_word_stay_as_they_are(text, filled):
    assert template.fill(text, VALUES) == (text if filled is None else filled)


def test_that_a_value_is_not_read_for_placeholders():
    assert template.fill("{input}", {"input": "/tmp/{output}"}) == "/tmp/{output}"


def test_that_an_unknown_placeholder_names_the_nearest_and_how_to_write_the_text():
    with pytest.raises(InputError) as raised:
        template.check("a {menber} b", "params.in")
    message = str(raised.value)
    assert message.startswith("params.in: there is no placeholder {menber}. Did you mean {member}?")
    assert "{input}, {output}" in message
    assert "write {{menber}} for the text {menber}" in message
    with pytest.raises(InputError, match="no placeholder"):
        template.fill("{menber}", VALUES)


def test_that_the_placeholders_of_a_text_are_found():
    assert template.placeholders("{member} {{run}} {{{batch}}} {what} {1}") == {
        "member",
        "batch",
        "what",
    }
    assert template.placeholders("&physics nu = 0.1 /") == set()
    template.check("{member} {{anything}} { any thing }")


def test_that_format_strings_reach_no_attribute():
    for text in ("{member.__class__}", "{member[0]}", "{member!r}", "{0}"):
        assert template.fill(text, VALUES) == text


def test_that_what_is_escaped_comes_out_as_it_was():
    draw = random.Random(0)
    for _ in range(300):
        words = draw.choices(["{member}", "{x_1}", "a", " ", "\n", "$;|`&"], k=12)
        escaped = [w.replace("{", "{{").replace("}", "}}") for w in words]
        assert template.fill(" ".join(escaped), VALUES) == " ".join(words)


def test_that_line_ends_and_bytes_of_other_encodings_survive(tmp_path):
    content = b"! temp\xe9rature\r\nx = {member}\r\n\x00\xff"
    (tmp_path / "a").write_bytes(content)
    text = template.fill(template.load(tmp_path / "a"), VALUES)
    template.save(tmp_path / "b", text)
    assert (tmp_path / "b").read_bytes() == content.replace(b"{member}", b"7")
