"""The cells of an ablation as an array job on a real SLURM: the table is that of one process."""

import re
import subprocess

import pytest

from tests.enkg.ablating import assert_same, calls, ended, opened, process, write
from tests.slurm.cluster import Job, ask, until

pytestmark = pytest.mark.usefixtures("slurm")

SMALL = ("grid.py", "--quick", "--seeds", "2", "--out", "out")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The project of an ablation in one process."""
    folder = write(tmp_path_factory.mktemp("whole"))
    ended(process(folder, "ablate", *SMALL))
    return folder


@pytest.fixture
def project(tmp_path):
    yield write(tmp_path)
    for file in tmp_path.glob("*/job.id"):
        cancel = ["scancel", "--quiet", file.read_text().strip()]
        subprocess.run(cancel, check=False, capture_output=True)


def submitted(folder, *words: str) -> str:
    text = ended(process(folder, "submit", *SMALL, "--time", "5", *words))
    found = re.search(r"submitted job (\d+), (\d+) cells?", text)
    assert found is not None, text
    assert " --out out --only-gather" in text
    return found[1]


def test_that_an_array_gives_the_table_of_one_process(project, whole):
    (project / "broken").write_text("raise")
    array = submitted(project)
    states = [Job(f"{array}_{k}").wait(240)["JobState"] for k in range(4)]
    assert states == ["COMPLETED"] * 3 + ["FAILED"], (project / "out/0003.json").read_text()
    assert "1 failed" in ended(process(project, "ablate", *SMALL, "--only-gather"), 1)
    (project / "broken").unlink()
    again = submitted(project)  # the cell that failed, and no other
    assert Job(f"{again}_3").wait(240)["JobState"] == "COMPLETED"
    assert not (project / "out" / f"job-{again}_0.log").exists()
    ended(process(project, "ablate", *SMALL, "--only-gather"))
    assert_same(opened(project / "out"), opened(whole / "out"))
    assert calls(project) == calls(whole)
    nothing = ended(process(project, "submit", *SMALL))
    assert "all 4 cells of" in nothing
    assert "nothing to submit" in nothing


@pytest.mark.slow
def test_that_a_cell_stopped_in_its_middle_is_queued_again(project, whole):
    array = submitted(project, "--pause", "0.1")
    job = Job(f"{array}_0")
    progress = project / "out" / "0000" / "answers"
    until(lambda: progress.exists() and calls(project) > 20, 120, job.facts().__str__)
    ask("scancel", "--batch", "--signal=USR1", f"{array}_0")
    facts = job.wait(240)
    assert facts["JobState"] == "COMPLETED"
    assert int(facts["Restarts"]) >= 1  # a busy SLURM may hand on the signal twice
    for k in range(1, 4):
        assert Job(f"{array}_{k}").wait(240)["JobState"] == "COMPLETED"
    ended(process(project, "ablate", *SMALL, "--pause", "0.1", "--only-gather"))
    assert_same(opened(project / "out"), opened(whole / "out"))
    assert calls(project) <= calls(whole) + 4
