"""Checkpoints: bit for bit, whole or not at all, for any number of ranks."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from enkg.checkpoint import FORMAT, Checkpoints, pack, unpack
from enkg.comm import ALONE, share
from enkg.errors import InputError, StoreError
from enkg.guidance import State
from enkg.guidance.slr import Evaluations, SLRState
from tests.enkg.threads_comm import spread

ROOT = Path(__file__).parents[2]
J = 7
X = torch.randn(J, 3, 2, generator=torch.Generator().manual_seed(0))
ODD = torch.tensor([-0.0, math.inf, -math.inf, math.nan, 5e-324], dtype=torch.float64)
OURS = {
    "step": 12,
    "sigma": 0.1 + 0.2,
    "text": 'a "name"\nand more',
    "nothing": None,
    "yes": True,
    "records": [{"sigma": math.inf, "calls": 3.0}, {}],
    "pair": (1, [2.5, ()]),
    "odd": ODD,
    "minus": torch.full((3,), -0.0),
    "scalar": torch.tensor(2.5),
    "none of them": torch.empty(0, 4),
    "array": np.arange(6, dtype=np.int64).reshape(2, 3),
    "single": np.float32(0.1),
}


def bits(value):
    """A form in which equal means equal bits and equal types."""
    if isinstance(value, torch.Tensor):
        raw = value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        return "tensor", value.dtype, tuple(value.shape), raw
    if isinstance(value, np.ndarray):
        return "array", value.dtype, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: bits(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [bits(v) for v in value]
    if isinstance(value, float):
        return float, np.float64(value).tobytes()
    return type(value), value


def rows(size: int, rank: int) -> dict:
    own = share(J, size, rank)
    return {"x": X[own.start : own.stop], "members": np.arange(J)[own.start : own.stop]}


def saved(folder: Path, number: int, size: int = 1) -> None:
    def save(comm):
        return Checkpoints(folder, comm).save(number, rows(comm.size, comm.rank), {"step": number})

    assert spread(size, save) == [True] * size


def loaded(folder: Path, size: int = 1) -> int | None:
    """Number of the checkpoint that all ranks found, whose rows are right."""
    found = spread(size, lambda comm: Checkpoints(folder, comm).load())
    if found[0] is None:
        assert found == [None] * size
        return None
    for rank, (number, mine, ours) in enumerate(found):
        assert number == ours["step"] == found[0][0]
        assert bits(mine) == bits(rows(size, rank))
    return found[0][0]


def test_that_everything_comes_back_to_the_last_bit(tmp_path):
    mine = {"x": X, "members": np.arange(J)}
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.complex64):
        mine[str(dtype)] = X.to(dtype)
    assert Checkpoints(tmp_path / "checkpoint", ALONE).save(12, mine, OURS)
    found = Checkpoints(tmp_path / "checkpoint", ALONE).load()
    assert found is not None
    assert found[0] == 12
    assert bits(found[1]) == bits(mine)
    assert bits(found[2]) == bits(OURS | {"single": float(np.float32(0.1))})


@pytest.mark.parametrize(("wrote", "reads"), [(1, 1), (1, 3), (4, 2), (3, 4), (2, 9), (9, 2)])
def test_that_any_number_of_ranks_reads_what_any_number_wrote(tmp_path, wrote, reads):
    saved(tmp_path, 3, wrote)
    assert loaded(tmp_path, reads) == 3


def test_that_arrays_of_several_files_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("enkg.checkpoint.CHUNK", 60)
    saved(tmp_path, 3)
    assert len([p for p in (tmp_path / "000003/rank-0000.zarr/x").rglob("c/*/0/0")]) == 4
    assert loaded(tmp_path, 2) == 3


def test_that_the_last_two_stay(tmp_path):
    for number in range(5):
        saved(tmp_path, number)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000003", "000004"]
    assert loaded(tmp_path) == 4


def test_that_there_is_none_at_the_beginning(tmp_path):
    assert loaded(tmp_path / "nothing", 2) is None


@pytest.mark.parametrize("what", ["meta", "x", "members", "rank 1"])
@pytest.mark.parametrize("how", ["gone", "empty", "bit", "zero"])
def test_that_a_damaged_one_is_left_out(tmp_path, caplog, what, how):
    for number in (1, 2):
        saved(tmp_path, number, 2)
        newest = tmp_path / f"{number:06d}"
    file = {
        "meta": newest / "meta.json",
        "x": newest / "rank-0000.zarr/x/c/0/0/0",
        "members": newest / "rank-0000.zarr/members/zarr.json",
        "rank 1": newest / "rank-0001.zarr/x/c/0/0/0",
    }[what]
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes({"empty": b"", "bit": data, "zero": bytes(len(data))}[how])
    for size in (1, 2, 3):
        caplog.clear()
        assert loaded(tmp_path, size) == 1
        assert "checkpoint 2 is damaged and left out" in caplog.text
    saved(tmp_path, 2)
    assert loaded(tmp_path) == 2


def test_that_a_missing_part_of_a_rank_is_noticed(tmp_path, caplog):
    saved(tmp_path, 1, 3)
    shutil.rmtree(tmp_path / "000001/rank-0002.zarr")
    assert loaded(tmp_path, 2) is None
    assert "rank-0002.zarr" in caplog.text


def test_that_what_a_killed_run_left_is_not_read_and_goes(tmp_path):
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "000001", tmp_path / "000002.partial")
    assert loaded(tmp_path) == 1
    saved(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000001", "000003"]


def test_that_later_ones_go_when_a_run_went_on_from_an_older_one(tmp_path):
    for number in (5, 9):
        saved(tmp_path, number)
    (tmp_path / "000009/meta.json").write_text("{}")
    assert loaded(tmp_path) == 5
    saved(tmp_path, 6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000005", "000006"]


def test_that_a_later_format_is_refused_with_advice(tmp_path):
    saved(tmp_path, 1)
    file = tmp_path / "000001/meta.json"
    file.write_text(file.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    with pytest.raises(StoreError, match="go on with the version of enkg that wrote it"):
        loaded(tmp_path, 2)


def test_that_what_cannot_be_kept_is_refused(tmp_path):
    store = Checkpoints(tmp_path, ALONE)
    with pytest.raises(InputError, match="cannot keep"):
        store.save(1, {"x": X}, {"path": tmp_path})
    with pytest.raises(InputError, match="cannot keep"):
        store.save(1, {"x": X}, {"numbers": {1: 2}})
    with pytest.raises(InputError, match="one for each member"):
        store.save(1, {"x": X, "members": np.arange(3)}, {})
    with pytest.raises(InputError, match="array of object"):
        store.save(1, {"x": np.array([print], dtype=object)}, {})
    assert list(tmp_path.iterdir()) == []


def full_disk(folder: Path, code: str) -> subprocess.CompletedProcess:
    """Runs code in a process whose files cannot grow beyond 2 KiB."""
    begin = """
        import logging, resource, sys
        from pathlib import Path
        import torch
        from enkg.checkpoint import Checkpoints
        from tests.enkg.threads_comm import spread
        logging.basicConfig(level=logging.WARNING)
        folder = Path(sys.argv[1])
        def fill():
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(begin) + textwrap.dedent(code), str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_that_a_full_disk_leaves_the_older_one_and_the_run_goes_on(tmp_path):
    done = full_disk(
        tmp_path,
        """
        def save(comm, number, count):
            return Checkpoints(folder, comm).save(number, {"x": torch.ones(count, 9)}, {"a": 1})
        assert spread(2, lambda comm: save(comm, 1, 2)) == [True, True]
        fill()
        # Only rank 1 has too much.
        assert spread(2, lambda comm: save(comm, 2, 2 + 300 * comm.rank)) == [False, False]
        assert spread(2, lambda comm: save(comm, 3, 2)) == [True, True]
        big = {"memory": torch.ones(300, 9)}
        assert not Checkpoints(folder, spread(1, lambda c: c)[0]).save(4, {}, big)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "checkpoint 2 cannot be written" in done.stderr
    assert "checkpoint 4 cannot be written" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000001", "000003"]


# --- states ----------------------------------------------------------------------------------


def round_trip(state: State, folder: Path):
    assert Checkpoints(folder, ALONE).save(state.step, *pack(state))
    found = Checkpoints(folder, ALONE).load()
    assert found is not None
    return unpack(type(state), found[1], found[2], ALONE)


def fields(state) -> dict:
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name != "comm"}


def test_that_a_state_comes_back(tmp_path):
    state = State(X, tuple(range(2, 2 + J)), 2**80, 4, 0.3, 0.1, False)
    back = round_trip(state, tmp_path)
    assert type(back) is State
    assert bits(fields(back)) == bits(fields(state))
    assert back.comm is ALONE


def test_that_a_state_with_a_memory_comes_back(tmp_path):
    memory = Evaluations(torch.randn(9, 4).double(), torch.randn(9, 2), torch.arange(9))
    for remembered in (memory, None):
        state = SLRState(X, tuple(range(J)), 1, z=X[:, 0], mean=ODD, memory=remembered)
        back = round_trip(state, tmp_path)
        assert type(back) is SLRState
        if remembered is None:
            assert back.memory is None
        else:
            assert bits(fields(back.memory)) == bits(fields(memory))
        others = {"memory": None}
        assert bits(fields(back) | others) == bits(fields(state) | others)


def test_that_a_state_is_shared_anew_among_other_ranks(tmp_path):
    def save(comm):
        own = share(J, comm.size, comm.rank)
        state = State(X[own.start : own.stop], tuple(own), 1, comm=comm)
        return Checkpoints(tmp_path, comm).save(1, *pack(state))

    def load(comm):
        found = Checkpoints(tmp_path, comm).load()
        assert found is not None
        state = unpack(State, *found[1:], comm)
        assert state.comm is comm
        return state

    assert spread(4, save) == [True] * 4
    for size in (1, 2, 3):
        states = spread(size, load)
        assert bits(torch.cat([state.x for state in states])) == bits(X)
        assert [j for state in states for j in state.members] == list(range(J))


def test_that_a_state_of_another_version_is_refused(tmp_path):
    @dataclass(frozen=True, eq=False)
    class Other(State):
        momentum: float = 0.0

    mine, ours = pack(State(X, tuple(range(J)), 1))
    with pytest.raises(StoreError, match="momentum"):
        unpack(Other, mine, ours, ALONE)


def test_that_the_record_is_json_that_can_be_read_by_eye(tmp_path):
    saved(tmp_path, 1, 2)
    meta = json.loads((tmp_path / "000001/meta.json").read_text())
    assert meta["content"]["rows"] == [4, 3]
    assert meta["content"]["ours"] == {"step": 1}
