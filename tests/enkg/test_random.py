"""Keyed random numbers: independence of order, subset and stream, and their first moments."""

from itertools import combinations

import pytest
import torch

import enkg
from enkg import random
from enkg.random import Stream


def test_that_a_draw_depends_on_the_member_and_not_on_its_place():
    whole = random.normal((3, 2), 5, Stream.SAMPLER, range(10), 4)
    order = [7, 0, 3]
    assert torch.equal(random.normal((3, 2), 5, Stream.SAMPLER, order, 4), whole[order])
    chunks = [random.normal((3, 2), 5, Stream.SAMPLER, c, 4) for c in (range(6), range(6, 10))]
    assert torch.equal(torch.cat(chunks), whole)


def test_that_a_longer_draw_begins_as_the_shorter():
    short = random.normal((3,), 5, Stream.SAMPLER, range(4), 0)
    assert torch.equal(random.normal((8,), 5, Stream.SAMPLER, range(4), 0)[:, :3], short)


def test_that_seed_stream_step_and_member_all_matter():
    keys = [(s, t, m, k) for s in (0, 1) for t in Stream for m in (0, 1) for k in (0, 1)]
    draws = [random.normal((4,), s, t, [m], k)[0] for s, t, m, k in keys]
    assert all(not torch.isclose(a, b).any() for a, b in combinations(draws, 2))


def test_that_no_two_streams_have_the_same_number():
    assert len({int(s) for s in Stream}) == len(Stream)


def test_that_the_draws_are_standard_normal_and_members_uncorrelated():
    # 400 x 500 numbers: four standard errors.
    x = random.normal((500,), 0, Stream.INITIAL, range(400), 0)
    count = x.numel()
    assert x.dtype == torch.float64
    assert x.mean().abs() < 4 / count**0.5
    assert (x.var() - 1).abs() < 4 * (2 / count) ** 0.5
    assert ((x**4).mean() - 3).abs() < 4 * (96 / count) ** 0.5
    between = torch.corrcoef(x)[~torch.eye(400, dtype=torch.bool)]
    assert between.square().mean() == pytest.approx(1 / 500, rel=0.05)
    assert between.abs().max() < 6 / 500**0.5


def test_that_neighbouring_steps_and_seeds_are_uncorrelated():
    for one, other in (((0, 0), (0, 1)), ((0, 0), (1, 0)), ((0, 1), (1, 0))):
        x, y = (
            random.normal((200,), seed, Stream.INITIAL, range(200), step)
            for seed, step in (one, other)
        )
        assert (x * y).mean().abs() < 4 / x.numel() ** 0.5


def test_that_choices_are_uniform_and_keyed():
    # 6,000 choices of 6: the standard error of a count of 1,000 is 29.
    chosen = random.choose(6, 0, Stream.COMPONENT, range(6000), 0)
    assert chosen.min() == 0
    assert chosen.max() == 5
    assert (chosen.bincount() - 1000).abs().max() < 4 * 29
    assert torch.equal(random.choose(6, 0, Stream.COMPONENT, [9, 4], 0), chosen[[9, 4]])


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4)])
def test_that_shapes_come_out_as_asked(shape):
    assert random.normal(shape, 0, Stream.INITIAL, range(5), 0).shape == (5, *shape)


def test_that_a_negative_seed_is_refused():
    with pytest.raises(enkg.InputError, match="seed is -1"):
        random.normal((2,), -1, Stream.INITIAL, range(2), 0)
