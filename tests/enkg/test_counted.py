"""The prior in chunks: what a member gets depends neither on its company nor on its process."""

import pytest
import torch

import enkg
from enkg.comm import share
from enkg.counted import Counted, counted
from enkg.prior import Drawable, Flowing, Placed, Prior, White
from tests.enkg.problems import normal, small_problem

CPU = torch.device("cpu")
PROBLEM = small_problem()
PRIORS = {"gaussian": PROBLEM.gaussian, "mixture": PROBLEM.one_component}


class Small:
    """A prior whose memory holds so many members at once."""

    shape = (3,)

    def __init__(self, room: int) -> None:
        self.room, self.seen = room, []

    def denoise(self, x, sigma):
        self.seen.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("too many")
        return 0.5 * x


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_that_each_rank_gets_the_bits_that_one_process_gets(name, ranks):
    x = normal(37, *PROBLEM.gaussian.shape).float()
    whole = counted(PRIORS[name], 8, CPU, 1).denoise(x, 0.7)
    parts = []
    for rank in range(ranks):
        prior, own = counted(PRIORS[name], 8, CPU, 1), share(37, ranks, rank)
        prior.first = own.start
        parts.append(prior.denoise(x[own.start : own.stop], 0.7))
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("chunk", [1, 5, 16, 100])
def test_that_chunks_change_nothing_but_the_last_bits(chunk):
    x = normal(37, *PROBLEM.gaussian.shape)
    chunked = counted(PROBLEM.gaussian, chunk, CPU, 1).denoise(x, 0.7)
    torch.testing.assert_close(chunked, PROBLEM.gaussian.denoise(x, 0.7), rtol=1e-12, atol=1e-12)


def test_that_every_call_has_the_size_of_a_chunk_and_members_alone_are_counted():
    small = Small(4)
    prior = counted(small, 4, CPU, 1)
    prior.first = 3
    x = normal(10, 3)
    assert torch.equal(prior.denoise(x, 1.0), 0.5 * x)
    assert small.seen == [4, 4, 4, 4]  # places 3 | 4 to 7 | 8 to 11 | 12
    assert prior.calls == 10


def test_that_chunks_shrink_until_they_fit_into_the_memory():
    small = Small(3)
    prior = counted(small, None, torch.device("cuda"), 1)
    x = normal(10, 3)
    assert torch.equal(prior.denoise(x, 1.0), 0.5 * x)
    assert prior.chunk == 2
    prior.denoise(x, 1.0)
    assert small.seen[-5:] == [2] * 5  # and stay so


def test_that_a_memory_too_small_for_one_member_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        counted(Small(0), 2, CPU, 1).denoise(normal(2, 3), 1.0)


def test_that_abilities_are_kept_and_none_is_added():
    plain = counted(Small(4), 4, CPU, 1)
    assert isinstance(plain, Prior)
    assert not isinstance(plain, Drawable | Flowing | White)
    able = counted(PROBLEM.gaussian, 4, CPU, 1)
    for ability in (Drawable, Flowing, White, Placed):
        assert isinstance(able, ability)


def test_that_no_member_is_no_call():
    prior = counted(PROBLEM.gaussian, 4, CPU, 1)
    assert prior.denoise(torch.empty(0, 6), 1.0).shape == (0, 6)
    assert isinstance(prior, Drawable)
    assert prior.draw(0, (), 0).shape == (0, 6)
    assert isinstance(prior, Counted)
    assert prior.calls == 0


def test_that_an_experiment_refuses_a_chunk_of_nobody():
    with pytest.raises(enkg.InputError, match="chunk is 0"):
        enkg.Experiment(PROBLEM.gaussian, PROBLEM.simulate, PROBLEM.observation, chunk=0)
