"""Members as steps of a real job, started by its script or by a process in a step."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Job

pytestmark = pytest.mark.usefixtures("slurm")

MANIFEST = """\
name = "doubling"
[input]
shape = [3]
[output]
shape = [3]
[oneshot]
command = ["python3", "{folder}/double.py", "{input}", "{output}"]
[mpi]
ranks = RANKS
launcher = "srun"
"""
DOUBLE = """\
import os, sys
assert os.environ["SLURM_STEP_NUM_TASKS"] == "RANKS"
if os.environ["SLURM_PROCID"] == "0":
    from numpy import load, save
    save(sys.argv[2], 2 * load(sys.argv[1]))
"""
RUN = """\
import sys
import numpy as np
from enkg.execute import Program
x = np.arange(12.0).reshape(4, 3)
program = Program(sys.argv[1])
result = program.evaluate(x)
print(program.count, np.array_equal(result.y, 2 * x), result.calls)
"""


@pytest.mark.parametrize(("inside", "ranks"), [("", 2), ("", 1), ("srun --ntasks=1", 1)])
def test_that_members_are_steps_of_the_job(tmp_path, inside, ranks):
    for name, text in (("simulator.toml", MANIFEST), ("double.py", DOUBLE), ("run.py", RUN)):
        (tmp_path / name).write_text(text.replace("RANKS", str(ranks)))
    (tmp_path / "job").write_text(
        "#!/bin/bash\n#SBATCH --ntasks=1 --cpus-per-task=2 --time=2 --output=log\n"
        f"{inside} {sys.executable} run.py ."
    )
    words = ["sbatch", "--parsable", f"--chdir={tmp_path}", "job"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    facts = Job(done.stdout.strip()).wait(60)
    text = Path(tmp_path, "log").read_text()
    assert facts["JobState"] == "COMPLETED", text
    assert text == f"{2 // ranks} True 4\n"
