"""docs/your-own-simulator.md: the blocks of the page run one after another, as they stand."""

import re
from pathlib import Path

import pytest

import enkg
from enkg.load import load

PAGE = (Path(__file__).parents[2] / "docs" / "your-own-simulator.md").read_text()
FILES = dict(re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', PAGE, re.M | re.S))
BLOCKS = re.findall(r"^```python(?: title=[^\n]*)?\n(.*?)^```$", PAGE, re.M | re.S)


def test_that_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    pytest.importorskip("jax")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cooling.py").write_text(FILES["cooling.py"])
    experiment = load(tmp_path / "cooling.py")
    assert isinstance(experiment, enkg.Experiment)
    tree = enkg.run(experiment, "runs/cooling")
    assert tree["posterior"]["x"].mean("member").values == pytest.approx([64.9, 0.07], rel=2e-3)
    names = {"__name__": "page"}
    for block in BLOCKS:
        exec(compile(block, block.splitlines()[0], "exec"), names)
    told = capsys.readouterr().out
    assert re.search(r"^\[[1-9][\d ]*\]$", told, re.M)  # members that failed
    assert "True" in told  # no negative rate
