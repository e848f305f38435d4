"""simulator.toml: what is filled in, and every mistake named by its key."""

import os
import sys
from pathlib import Path

import pytest

import enkg
from enkg.execute.manifest import Manifest
from enkg.execute.reading import read

GOOD = """
name = "copy"
[input]
shape = [2, 3]
[output]
shape = [6]
[oneshot]
command = ["cp", "{input}", "{output}"]
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        (tmp_path / "simulator.toml").write_text(text)
        return tmp_path

    return write


def test_that_the_least_manifest_is_enough(write):
    m = read(write(GOOD))
    assert isinstance(m, Manifest)
    assert m.folder.is_absolute()
    assert m.input.shape == (2, 3)
    assert (m.input.file, m.output.file) == ("input.npy", "output.npy")
    assert (m.input.variable, m.output.variable) == ("x", "y")
    assert m.oneshot is not None
    assert Path(m.oneshot.command[0]).is_absolute()
    assert m.oneshot.command[1:] == ("{input}", "{output}")
    assert m.timeout == 3600


def test_that_the_file_itself_may_be_given(write):
    folder = write(GOOD)
    assert read(folder / "simulator.toml") == read(folder)


def test_that_python_is_the_one_that_runs_enkg(write):
    m = read(write(GOOD.replace('"cp"', '"python"')))
    assert m.oneshot is not None
    assert m.oneshot.command[0] == sys.executable


def test_that_whole_numbers_may_stand_for_seconds(write):
    assert read(write("timeout = 5\n" + GOOD)).timeout == 5.0


CHANGES = {
    "no TOML": (GOOD + "[", "is not valid TOML"),
    "unknown key": ("time_out = 5\n" + GOOD, "unknown key `time_out`; did you mean `timeout`"),
    "unknown key in a table": (GOOD + 'comand = ["x"]', "`oneshot.comand`; did you mean `command`"),
    "unknown table": (GOOD + "[ouput]\nshape = [1]", "`ouput`; did you mean `output`"),
    "missing name": (GOOD.replace('name = "copy"', ""), "`name` is missing"),
    "missing shape": (GOOD.replace("shape = [6]", ""), "`output.shape` is missing"),
    "no way to run": (
        GOOD.split("[oneshot]", maxsplit=1)[0],
        r"neither \[oneshot\].*nor \[worker\]",
    ),
    "text for a number": ('threads = "two"\n' + GOOD, "`threads` is 'two', a str; expected a int"),
    "true for a number": ("threads = true\n" + GOOD, "`threads` is True, a bool"),
    "fraction of a thread": ("threads = 1.5\n" + GOOD, "`threads` is 1.5, a float"),
    "no threads": ("threads = 0\n" + GOOD, "`threads` is 0; expected at least 1"),
    "no time": ("timeout = 0\n" + GOOD, "`timeout` is 0.0; expected seconds"),
    "time without number": ("timeout = nan\n" + GOOD, "`timeout` is nan"),
    "text for a list": (
        GOOD.replace('["cp", "{input}", "{output}"]', '"cp {input} {output}"'),
        "`oneshot.command` is 'cp .*'; expected a list",
    ),
    "number in the command": (GOOD.replace('"cp"', "3"), r"`oneshot.command\[0\]` is 3, a int"),
    "empty command": (GOOD.replace('"cp", "{input}", "{output}"', ""), "`oneshot.command` is empt"),
    "value for a table": (GOOD.replace("[input]\nshape = [2, 3]", "input = 3"), "expected a table"),
    "zero in a shape": (GOOD.replace("[6]", "[0]"), r"`output.shape` is \[0\]"),
    "no shape": (GOOD.replace("[6]", "[]"), r"`output.shape` is \[\]"),
    "unknown format": (
        GOOD.replace("shape = [6]", 'shape = [6]\nformat = "csv"'),
        "`output.format` is 'csv'; expected one of 'npy', 'raw', 'text', 'netcdf'",
    ),
    "limits the wrong way round": (
        GOOD.replace("shape = [6]", "shape = [6]\nminimum = 2\nmaximum = 1"),
        "`output.minimum` is 2.0, not below",
    ),
    "one file for both": (
        GOOD.replace("shape = [6]", 'shape = [6]\nfile = "input.npy"'),
        "both in the file 'input.npy'",
    ),
    "a program that is not there": (GOOD.replace('"cp"', '"./model"'), "there is no program .*/mo"),
    "a program not on the path": (GOOD.replace('"cp"', '"no_such_model"'), "no program 'no_such"),
    "an unknown placeholder": (
        GOOD.replace("{output}", "{outptu}"),
        r"no placeholder \{outptu\}.*Did you mean \{output\}",
    ),
    "an unknown placeholder in the environment": (
        GOOD + '[environment.set]\nCASE = "{case}"',
        "`environment.set.CASE`: there is no placeholder",
    ),
    "a number in the environment": (GOOD + "[environment.set]\nN = 3", "`environment.set.N` is 3"),
    "a missing template": (GOOD + 'templates = ["case.nml"]', "case.nml"),
    "a way out of the folder": (GOOD + 'copy = ["../secret"]', "inside the folder"),
    "a number that no member has": (
        GOOD.replace("{output}", "{output}-{x6}"),
        r"no placeholder \{x6\}: a member has 6 numbers, \{x0\} to \{x5\}",
    ),
    "the input of a worker": (
        GOOD + '[worker]\ncommand = ["cp", "{input}"]',
        r"`worker.command`: there is no placeholder \{input\}.*There are \{folder\}",
    ),
    "limits of the input": (
        GOOD.replace("shape = [2, 3]", "shape = [2, 3]\nminimum = 0"),
        "`input` has no minimum and maximum",
    ),
    "no ranks": (GOOD + "[mpi]\nranks = 0", "`mpi.ranks` is 0"),
    "unknown launcher": (GOOD + '[mpi]\nlauncher = "aprun"', "expected one of 'auto', 'mpich'"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_that_every_mistake_is_named(write, change):
    text, words = CHANGES[change]
    with pytest.raises(enkg.InputError, match=words) as caught:
        read(write(text))
    assert "simulator.toml" in str(caught.value)


def test_that_a_program_that_must_be_built_says_how(write):
    folder = write('build = ["make", "model"]\n' + GOOD.replace('"cp"', '"./model"'))
    with pytest.raises(enkg.InputError, match=r"build it first: cd .* && make model"):
        read(folder)


def test_that_a_file_that_may_not_be_executed_is_refused(write):
    folder = write(GOOD.replace('"cp"', '"./model"'))
    (folder / "model").write_text("#!/bin/sh\n")
    with pytest.raises(enkg.InputError, match="may not be executed; try `chmod"):
        read(folder)
    os.chmod(folder / "model", 0o700)
    read(folder)


def test_that_a_program_beside_the_manifest_needs_its_dot(write):
    folder = write(GOOD.replace('"cp"', '"model"'))
    (folder / "model").write_text("#!/bin/sh\n")
    with pytest.raises(enkg.InputError, match=r"write \./model"):
        read(folder)


def test_that_a_template_without_placeholder_is_refused(write):
    folder = write(GOOD + 'templates = ["case.nml"]')
    (folder / "case.nml").write_text("&case n = 3 /\n")
    with pytest.raises(enkg.InputError, match=r"case\.nml holds no placeholder"):
        read(folder)
    (folder / "case.nml").write_text("&case file = '{input}' /\n")
    read(folder)


def test_that_a_missing_folder_and_a_missing_manifest_are_told_apart(tmp_path):
    with pytest.raises(enkg.InputError, match="there is no folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(enkg.InputError, match=r"has no simulator.toml.*enkg new simulator"):
        read(tmp_path)
