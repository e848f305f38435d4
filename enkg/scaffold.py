"""enkg new: a working simulator to begin with, in the language of the scientist's code."""

import re
import shutil
from pathlib import Path
from typing import Literal, get_args

from enkg.errors import InputError

Language = Literal["c", "fortran", "python", "julia"]
HERE = Path(__file__).parent
TOOLS = {"c": "cc", "fortran": "gfortran", "python": "", "julia": "julia"}


def new_simulator(name: str, language: Language, parent: Path) -> Path:
    """Writes parent/name: program, worker loop, simulator.toml, experiment and README.

    Returns the folder. Raises InputError for a name that is none, or a folder that is there.
    """
    if language not in get_args(Language):
        raise InputError(
            f"there is no language {language!r}; there are {', '.join(get_args(Language))}"
        )
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(
            f"{name!r} is no name for a simulator; expected small letters, digits and _, such as "
            "heat_2d"
        )
    folder = parent / name
    if folder.exists():
        raise InputError(f"{folder} is there already; choose another name, or remove it")
    folder.mkdir(parents=True)
    worker = next(f for f in (HERE / "stubs" / language).iterdir() if f.stem == "enkg_worker")
    shutil.copyfile(worker, folder / worker.name)
    build = ""
    if (HERE / "templates" / language / "Makefile").is_file():
        build = f"Build it with `make -C {folder}`; it needs {TOOLS[language]} and make.\n"
    words = {"NAME": name, "PATH": str(folder), "WORKER": worker.name, "BUILD": build}
    for source in [
        *(f for f in (HERE / "templates" / language).iterdir() if f.is_file()),
        HERE / "templates" / "README.md",
        HERE / "templates" / "try.py",
    ]:
        text = re.sub(r"\b(NAME|PATH|WORKER)\b|BUILD", lambda m: words[m[0]], source.read_text())
        (folder / source.name.replace("NAME", name)).write_text(text)
    return folder


def next_steps(folder: Path) -> str:
    """What to do with a new simulator, one command a line."""
    lines = [f"enkg check {folder}/try.py", f"enkg run {folder}/try.py"]
    if (folder / "Makefile").is_file():
        lines.insert(0, f"make -C {folder}")
    return "\n".join(lines)
