"""enkg new: what it writes can be built, checked and run as it stands."""

import shutil
import subprocess

import pytest

import enkg
from enkg import check, load
from enkg.scaffold import TOOLS, new_simulator, next_steps


@pytest.mark.parametrize("language", ["c", "fortran", "python"])
@pytest.mark.parametrize("mode", ["worker", "oneshot"])
def test_that_a_new_simulator_works(tmp_path, language, mode):
    tool = TOOLS[language]
    if tool and not (shutil.which(tool) and shutil.which("make")):
        pytest.skip(f"{tool} and make are not both here")
    folder = new_simulator("cooling", language, tmp_path)
    if (folder / "Makefile").is_file():
        subprocess.run(["make", "-C", folder], check=True, capture_output=True)
    made = load.load(folder / "try.py")
    assert isinstance(made, enkg.Experiment)
    object.__setattr__(made, "simulator", enkg.Program(folder, slots=1, mode=mode))
    report = check.check(made, draws=2)
    assert report.sound, report
    if mode == "worker":
        tree = enkg.run(made)
        found = tree["posterior"]["x"].mean("member").values
        assert found == pytest.approx([65, 0.07], rel=0.03)


def test_that_julia_is_written_like_the_others(tmp_path):
    folder = new_simulator("cooling", "julia", tmp_path)
    names = {file.name for file in folder.iterdir()}
    assert names == {"cooling.jl", "enkg_worker.jl", "simulator.toml", "README.md", "try.py"}


@pytest.mark.parametrize("language", ["c", "fortran", "python", "julia"])
def test_that_no_word_is_left_to_fill(tmp_path, language):
    folder = new_simulator("cooling", language, tmp_path)
    for file in folder.iterdir():
        assert not file.name.startswith("NAME")
        if not file.name.startswith("enkg_worker"):
            assert not {"NAME", "PATH", "WORKER", "BUILD"} & set(file.read_text().split())
            assert "cooling" in file.read_text()


def test_that_the_next_steps_are_commands(tmp_path):
    folder = new_simulator("cooling", "c", tmp_path)
    assert next_steps(folder).splitlines() == [
        f"make -C {folder}",
        f"enkg check {folder}/try.py",
        f"enkg run {folder}/try.py",
    ]


def test_that_nothing_is_overwritten(tmp_path):
    folder = new_simulator("cooling", "python", tmp_path)
    (folder / "cooling.py").write_text("mine")
    with pytest.raises(enkg.InputError, match="is there already"):
        new_simulator("cooling", "c", tmp_path)
    assert (folder / "cooling.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "Heat", "2d", "heat-2d", "../heat", "a b"])
def test_that_a_name_is_a_word(tmp_path, name):
    with pytest.raises(enkg.InputError, match="is no name for a simulator"):
        new_simulator(name, "c", tmp_path)


def test_that_an_unknown_language_is_refused(tmp_path):
    with pytest.raises(enkg.InputError, match="there are c, fortran, python, julia"):
        new_simulator("heat", "cobol", tmp_path)  # type: ignore[arg-type]
