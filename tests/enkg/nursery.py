"""A process that has imported enkg, and whose children go on from there as `enkg`.

So a test that starts many runs waits for the imports once. It reads a line of JSON for each child:
its arguments, folder, environment and the file for its output; and answers with its process number;
or the number of a child, and answers with its exit code, null while it lives.
"""

import json
import os
import sys

import numpy as np
import xarray as xr

from enkg.__main__ import main


def child(argv: list[str], cwd: str, env: dict[str, str], out: str) -> None:
    """Runs the command in this process."""
    os.setsid()
    os.chdir(cwd)
    os.environ.update(env)
    nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(out, os.O_WRONLY | os.O_CREAT, 0o644)
    for number, handle in enumerate((nothing, file, file)):
        os.dup2(handle, number)
    sys.argv = ["enkg", *argv]
    sys.exit(main(argv))


def answer(asked: dict) -> int | None:
    if "wait" in asked:
        pid, status = os.waitpid(asked["wait"], os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None
    pid = os.fork()
    if pid == 0:
        child(**asked)
    return pid


if __name__ == "__main__":
    xr.Dataset({"x": np.zeros(1)})  # imports what it needs only now
    while words := sys.stdin.readline():
        print(json.dumps(answer(json.loads(words))), flush=True)
