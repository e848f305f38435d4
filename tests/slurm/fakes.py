"""Programs of SLURM that are none: they note how they were called and do as they are told."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

PLAIN = """\
#!{python}
import json, os, sys
with open({calls!r}, "a") as file:
    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
{body}
"""
SRUN = """\
if {busy} > open({calls!r}).read().count('["srun"'):
    sys.exit("srun: error: Unable to create step for job 1: step creation temporarily disabled")
words = sys.argv[1:]
while words[0].startswith("-"):
    words = words[2:] if words[0] in ("-n", "-w") else words[1:]
os.execvp(words[0], words)
"""


@dataclass(frozen=True)
class Fakes:
    """A folder of such programs, to be put on the PATH."""

    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "calls.jsonl"

    def make(self, name: str, out: str = "", err: str = "", code: int = 0) -> None:
        """A program that prints and ends."""
        body = f"sys.stdout.write({out!r}); sys.stderr.write({err!r}); sys.exit({code})"
        self.write(name, body)

    def srun(self, busy: int = 0) -> None:
        """Runs its payload; the first calls, one less than `busy`, find no room for a step."""
        self.write("srun", SRUN.format(busy=busy, calls=str(self.log)))

    def write(self, name: str, body: str) -> None:
        self.folder.mkdir(exist_ok=True)
        self.log.touch()
        file = self.folder / name
        python = sys.executable
        file.write_text(PLAIN.format(python=python, calls=str(self.log), name=name, body=body))
        file.chmod(0o755)

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of each call of a program."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        every = [json.loads(line) for line in lines]
        return [words[1:] for words in every if words[0] == name]
