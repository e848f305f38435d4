"""The powers of the likelihood, and the lots that members draw."""

from itertools import pairwise
from math import sqrt

import pytest
import torch

import enkg
from enkg.guidance.base import State, check_folds, draw_lots, mixed
from enkg.guidance.tempering import adaptive_power, fixed_powers
from tests.enkg.problems import normal


def test_that_the_controller_is_the_published_formula():
    # Mean 40 throughout; deviations of 5 make the variance 100 / 3, deviations of 30 make it 1200.
    close = torch.tensor([35.0, 45.0, 35.0, 45.0])
    assert adaptive_power(close, 10, beta=0.0) == pytest.approx(sqrt(10 / (2 * 100 / 3)))
    far = torch.tensor([10.0, 70.0, 10.0, 70.0])
    assert adaptive_power(far, 10, beta=0.0) == pytest.approx(10 / (2 * 40))


def test_that_the_controller_respects_cap_and_rest():
    misfit = torch.tensor([20.0, 35.0, 50.0, 71.0])
    assert adaptive_power(misfit, 10, beta=0.0, cap=0.01) == 0.01
    assert adaptive_power(misfit, 10, beta=0.97) == pytest.approx(0.03)


@pytest.mark.parametrize("misfit", [torch.zeros(4), torch.full((4,), 2.0)])
def test_that_an_ensemble_that_fits_spends_all_at_once(misfit):
    assert adaptive_power(misfit, 10, beta=0.25) == 0.75


@pytest.mark.parametrize("updates", [1, 2, 7, 40])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_that_fixed_powers_are_geometric_and_add_up_to_one(updates, ratio):
    powers = fixed_powers(updates, ratio)
    assert len(powers) == updates
    assert abs(sum(powers) - 1) < 1e-12
    for before, after in pairwise(powers):
        assert after / before == pytest.approx(ratio)


@pytest.mark.parametrize(("updates", "ratio"), [(0, 1.0), (-1, 1.0), (4, 0.0), (4, -2.0)])
def test_that_impossible_powers_are_refused(updates, ratio):
    with pytest.raises(enkg.InputError, match="at least 1"):
        fixed_powers(updates, ratio)


# --- lots -----------------------------------------------------------------------------------


def lots(members, living, folds, data=3, step=0):
    observation = enkg.Observation(torch.zeros(data), std=1.0)
    return draw_lots((4, step), members, observation, torch.tensor(living), folds)


def test_that_lots_follow_the_identity_and_not_the_place():
    one = lots([0, 1, 2, 3, 4, 5], [True] * 6, folds=2)
    other = lots([5, 3, 1, 0, 2, 4], [True, False, True, True, True, True], folds=2)
    place = [5, 1, 0, 2, 4]
    assert torch.equal(other.eta, one.eta[place])
    assert one.fold is not None
    assert other.fold is not None
    assert torch.equal(other.fold, one.fold[place])


def test_that_lots_are_drawn_anew_at_each_step():
    alive = [True] * 4
    first, second = (lots(range(4), alive, folds=1, step=s).eta for s in (0, 1))
    assert (first - second).abs().min() > 0


def test_that_one_fold_is_no_fold():
    assert lots(range(4), [True] * 4, folds=1).fold is None


@pytest.mark.parametrize(("folds", "members"), [(0, 8), (-1, 8), (5, 8), (8, 15)])
def test_that_folds_that_members_cannot_fill_are_refused(folds, members):
    with pytest.raises(enkg.InputError, match="fold"):
        check_folds(folds, members)


def test_that_the_survivors_of_one_fold_alone_still_make_a_gain():
    # Half of the members die, and all of the living happen to belong to the same fold.
    method = enkg.ESMDA(members=8, updates=1, folds=2)
    prior = enkg.Gaussian(torch.zeros(2), torch.ones(2), enkg.Identity((2,)))
    state = method.init(prior, 0, torch.empty(0))

    def forward(x):
        y = x.clone()
        y[1::2] = torch.nan
        return y

    observation = enkg.Observation(torch.zeros(2), std=1.0)
    state, _ = method.step(state, prior, forward, observation)
    assert state.x.isfinite().all()


def test_that_the_revived_are_drawn_anew_at_each_step_and_by_their_identity():
    x = normal(6, 3)
    living = torch.tensor([True, False, True, True, False, True])
    state = State(x, (0, 1, 2, 3, 4, 5), seed=4)
    first = mixed(state, x, living, unmoved)
    later = mixed(State(x, state.members, seed=4, step=1), x, living, unmoved)
    assert torch.equal(first[living], x[living])
    assert (first[~living] != later[~living]).all()
    assert torch.equal(mixed(state, x, living, unmoved), first)
    order = torch.tensor([4, 0, 5, 1, 2, 3])
    other = State(x[order], tuple(order.tolist()), seed=4)
    torch.testing.assert_close(mixed(other, x[order], living[order], unmoved), first[order])


def unmoved(x):
    return x
