"""Cores, threads and devices of a rank."""

import os

import pytest
import torch

from enkg.comm import ALONE, Alone
from enkg.errors import InputError
from enkg.machine import device, own_cores, threads


class Ranks(Alone):
    """One of several ranks of a node, as far as this room asks; all see the same cores."""

    def __init__(self, local_rank, local_size=2, others=None):
        self.rank = self.local_rank = local_rank
        self.size = self.local_size = local_size
        self.others = others

    def gather(self, value):
        return self.others or [value] * self.size


@pytest.fixture
def cores():
    before = os.sched_getaffinity(0)
    yield sorted(before)
    os.sched_setaffinity(0, before)


def test_that_threads_are_put_back():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_that_ranks_of_a_node_share_its_cores_evenly(cores):
    if len(cores) < 2:
        pytest.skip("one core cannot be shared")
    taken = []
    for rank in range(2):
        with own_cores(Ranks(rank)):
            taken.append(os.sched_getaffinity(0))
        assert sorted(os.sched_getaffinity(0)) == cores
    assert not taken[0] & taken[1]
    assert taken[0] | taken[1] == set(cores)


def test_that_ranks_which_are_bound_already_are_left_alone(cores):
    node = os.uname().nodename
    with own_cores(Ranks(0, others=[(node, cores), (node, [*cores, 10**4])])):
        assert sorted(os.sched_getaffinity(0)) == cores


def test_that_more_ranks_than_cores_share_them_all(cores):
    with own_cores(Ranks(0, local_size=len(cores) + 1)):
        assert sorted(os.sched_getaffinity(0)) == cores


def test_that_one_process_has_the_device_it_asks_for():
    assert device("cpu", ALONE) == torch.device("cpu")
    with pytest.raises(InputError, match="abacus"):
        device("abacus", ALONE)


def test_that_each_rank_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    found = [device("cuda", Ranks(rank, local_size=4)) for rank in range(4)]
    assert [d.index for d in found] == [0, 1, 2, 3]


def test_that_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="4 ranks of this node see 2 GPUs"):
        device("cuda", Ranks(0, local_size=4))


def test_that_a_gpu_that_the_launcher_gave_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    assert device("cuda", Ranks(3, local_size=4)).index == 0
