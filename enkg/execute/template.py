"""Placeholders in arguments, template files and environment values.

    {member}       the value
    {{member}}     the text {member}
    {{{member}}}   the value, in braces

Only a word in braces is a placeholder. Every other brace stays as it is, so that templates in JSON,
C or LaTeX need no escaping: `{"a": {"b": {member}}}` and `{ return 1; }` mean what they say. There
are no expressions, no formats and no attributes. Any other word in braces is an error.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from enkg.errors import InputError
from enkg.execute.manifest import PLACEHOLDERS

_WORD = "[A-Za-z_][A-Za-z0-9_]*"
_FORMS = re.compile(rf"\{{\{{\{{({_WORD})\}}\}}\}}|\{{\{{({_WORD})\}}\}}|\{{({_WORD})\}}")


def placeholders(text: str) -> set[str]:
    """The words that `fill` would replace, known or not."""
    return {match[1] or match[3] for match in _FORMS.finditer(text) if not match[2]}


def check(
    text: str, where: str = "", known: tuple[str, ...] = PLACEHOLDERS, numbers: int = 0
) -> None:
    """Raises InputError for a placeholder that does not exist.

    where: what the text is. known: the names. numbers: how many of x0, x1, ... there are.
    """
    for name in sorted(placeholders(text)):
        number = number_of(name)
        if name in known or (number is not None and number < numbers):
            continue
        if number is not None and numbers:
            raise InputError(
                f"{where + ': ' if where else ''}there is no placeholder {{{name}}}: a member has "
                f"{numbers} numbers, {{x0}} to {{x{numbers - 1}}}"
            )
        raise InputError(_unknown(name, known, where))


def number_of(name: str) -> int | None:
    """Which number of the member a placeholder means, if it means one: 3 for x3."""
    match = re.fullmatch(r"x(0|[1-9][0-9]*)", name)
    return int(match[1]) if match else None


def escape(text: str) -> str:
    """The text that `fill` turns into this one."""
    return re.sub(rf"\{{({_WORD})\}}", r"{{\1}}", text)


def fill(text: str, values: Mapping[str, object], strict: bool = True) -> str:
    """The text with str(values[name]) in place of each {name}.

    strict: raises InputError for a name without a value, which else stays as it is.
    """

    def value(match: re.Match[str]) -> str:
        if match[2]:
            return "{" + match[2] + "}"
        name = match[1] or match[3]
        if name not in values:
            if not strict:
                return match[0]
            raise InputError(_unknown(name, tuple(values)))
        return f"{{{values[name]}}}" if match[1] else str(values[name])

    return _FORMS.sub(value, text)


def load(path: Path) -> str:
    """A template file; bytes that are not UTF-8 and line ends come through `save` unchanged."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def save(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


def _unknown(name: str, known: tuple[str, ...], where: str = "") -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {{{near[0]}}}?" if near else ""
    return (
        f"{where + ': ' if where else ''}there is no placeholder {{{name}}}.{hint} "
        f"There are {', '.join('{' + p + '}' for p in known)}; "
        f"write {{{{{name}}}}} for the text {{{name}}}"
    )
