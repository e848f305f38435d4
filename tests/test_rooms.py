"""The rooms of the house: what each may import and say (see the architecture page)."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("enkg", "simulators", "priors", "experiments")
FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def of(*rooms: str) -> list[Path]:
    return [file for file in FILES if file.relative_to(ROOT).parts[0] in rooms]


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), name(file))


def imports(file: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, at its top or inside functions."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions(file: Path) -> Iterator[tuple[str, set[str]]]:
    """Name and parameters of each function and method."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
            yield node.name, {arg.arg for arg in given}


def saying(pattern: str, files: list[Path]) -> list[str]:
    return [name(file) for file in files if re.search(pattern, file.read_text())]


def importing(files: list[Path], *packages: str) -> list[str]:
    return [
        name(file)
        for file in files
        if any(module.split(".")[0] in packages for module in imports(file))
    ]


def test_that_every_room_is_there():
    assert all(of(room) for room in ROOMS)


def test_that_the_framework_imports_no_other_room():
    assert importing(of("enkg"), "simulators", "priors", "experiments", "tests") == []


def test_that_simulators_are_black_boxes():
    others = ("enkg", "priors", "experiments", "tests", "torch")
    assert importing(of("simulators"), *others) == []


def test_that_priors_know_no_simulator_and_no_experiment():
    assert importing(of("priors"), "simulators", "experiments", "tests") == []


def test_that_nothing_imports_the_tests():
    assert importing(FILES, "tests") == []


def test_that_batch_scripts_live_in_the_slurm_file():
    assert [file for file in saying(r"\bsbatch\b", FILES) if "slurm" not in file] == []


def test_that_message_passing_lives_in_comm_and_execute():
    allowed = re.compile(r"enkg/(comm(\.py|/)|execute/)")
    assert [file for file in importing(of("enkg"), "mpi4py") if not allowed.match(file)] == []
    assert importing(of("priors", "experiments"), "mpi4py") == []


def test_that_progress_bars_are_drawn_in_one_file():
    bars = [f for f in FILES if any(m.startswith(("rich.progress", "tqdm")) for m in imports(f))]
    assert [name(file) for file in bars] == ["enkg/progress.py"]


def test_that_no_device_is_taken_for_granted():
    assert saying(r"\.cuda\(", FILES) == []


def test_that_no_measurement_reaches_a_prior():
    # Private helpers may call a coordinate y.
    known = {"y", "observation", "measurement", "likelihood", "misfit"}
    for file in of("priors"):
        for function, parameters in functions(file):
            if not function.startswith("_"):
                assert not known & parameters, f"{name(file)}: {function}"
        assert not {"enkg.Observation", "enkg.observation"} & set(imports(file)), name(file)


def test_that_simulators_know_no_noise():
    for file in of("simulators"):
        for function, parameters in functions(file):
            words = {word for parameter in parameters for word in parameter.lower().split("_")}
            assert not {"noise", "snr"} & words, f"{name(file)}: {function}"


def test_that_no_truth_is_handed_to_a_method():
    for file in of("enkg"):
        if "guidance" in file.parts:
            for function, parameters in functions(file):
                if not function.startswith("_"):
                    assert not {"truth", "target"} & parameters, f"{name(file)}: {function}"


@pytest.mark.parametrize("file", FILES + TESTS, ids=name)
def test_that_no_except_is_bare_and_no_file_is_long(file):
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{name(file)}:{node.lineno}"
    assert len(file.read_text().splitlines()) <= 400


def test_that_importing_enkg_is_light():
    heavy = ("jax", "ehtim", "matplotlib", "mpi4py", "torchvision", "wandb")
    heavy += ("sklearn", "scipy.stats")
    code = f"import sys, enkg; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"
