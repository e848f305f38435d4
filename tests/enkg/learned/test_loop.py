"""The training loop: that it finds the law, goes on as if never stopped, and refuses in time."""

import csv
from math import gamma as factorial
from math import nan

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import enkg
from enkg.comm import ALONE
from enkg.learned import LogNormal, Reflect, Shift, Trained, UNet, card, keep
from enkg.learned.loop import power_law, train
from tests.enkg.learned.fields import (
    SMALL,
    Cut,
    Cutting,
    Pointwise,
    drawn,
    stationary,
    training,
)
from tests.enkg.problems import normal

LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)


def excess(prior: enkg.Prior) -> list[float]:
    """Rms error in units of the exact denoiser's; as that is the conditional mean, squares add."""
    law, found = stationary(), []
    x = law.draw(99, range(512), 0)
    for sigma in LEVELS:
        noisy = x + sigma * normal(*x.shape, seed=7)
        best = law.denoise(noisy, sigma)
        off = (prior.denoise(noisy, sigma) - best).square().mean() / (best - x).square().mean()
        found.append(float((1 + off) ** 0.5))
    return found


def learnt(folder, **changes) -> Trained:
    settings = {
        "samples": drawn(2048),
        "units": enkg.Affine(),
        "network": UNet((8, 16), groups=4, periodic=True),
        "base": "white",
        "symmetries": (Shift(-1), Shift(-2)),
        "batch": 64,
        "warmup": 10,
    }
    return train(training(**(settings | changes)), folder)


def test_that_it_approaches_the_denoiser_of_a_gaussian_field(tmp_path):
    prior = learnt(tmp_path, steps=60, batch=32, rate=1e-2, cooling=0.5, average=0.1)
    found, before = np.array(excess(prior)), np.array(excess(prior.base.prior()))
    assert before[2] > 1.35  # the white base knows nothing of the spectrum
    assert max(found) < 1.1
    assert found[2] < 1.08


@pytest.mark.slow
def test_that_it_reaches_the_denoiser_of_a_gaussian_field(tmp_path):
    prior = learnt(tmp_path, steps=500, rate=5e-3)
    assert max(excess(prior)) < 1.03


def test_that_a_base_of_the_right_law_has_nothing_to_learn(tmp_path):
    prior = learnt(tmp_path, base="spectrum", network=SMALL, steps=2, rate=1e-6)
    assert max(excess(prior)) < 1.01


def weights(folder) -> dict[str, torch.Tensor]:
    told = card.read(folder)["files"]["weights"]
    return card.load_weights(folder, told)


def digest(folder) -> str:
    return card.read(folder)["files"]["weights"]


@pytest.mark.parametrize(
    ("network", "step"), [(Pointwise(), 1), (Pointwise(), 4), (Pointwise(), 6), (SMALL, 3)]
)
def test_that_a_training_that_was_cut_goes_on_as_if_it_had_not_been(tmp_path, network, step):
    told = training(network=network, symmetries=(Shift(-1), Reflect((-1,))))
    train(told, tmp_path / "whole")
    with pytest.raises(Cut):
        train(told, tmp_path / "cut", watcher=Cutting(step))
    watcher = Cutting(-1)
    train(told, tmp_path / "cut", resume=True, watcher=watcher)
    assert watcher.first == step
    assert watcher.ends == 1
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


def test_that_a_training_can_be_cut_many_times(tmp_path):
    train(training(), tmp_path / "whole")
    for step in (2, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            train(
                training(),
                tmp_path / "cut",
                resume=True,
                watcher=Cutting(step, KeyboardInterrupt()),
            )
    train(training(), tmp_path / "cut", resume=True)
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


def test_that_the_seed_alone_decides(tmp_path):
    def found(folder: str, **changes) -> str:
        train(training(**changes), tmp_path / folder)
        return digest(tmp_path / folder)

    torch.manual_seed(5)
    one = found("one")
    torch.manual_seed(6)
    assert found("again", looks=3, drawn=9, name="again") == one  # looks do not steer
    assert found("other", seed=1) != one


def test_that_a_training_leaves_the_global_random_numbers_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(training(), tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_that_an_unfinished_training_is_usable_and_says_so(tmp_path):
    with pytest.raises(Cut):
        train(training(looks=3, network=SMALL), tmp_path, watcher=Cutting(5))
    prior = Trained(tmp_path)
    assert prior.card["training"]["steps"] == 4
    assert not prior.card["training"]["finished"]
    assert bool(prior.denoise(drawn(2), 1.0).isfinite().all())


def test_that_nothing_is_left_of_the_work_once_it_is_done(tmp_path):
    train(training(held_out=8, looks=2), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "card.toml",
        "weights.safetensors",
        "history.csv",
        "figures",
    }
    figures = {p.name for p in (tmp_path / "figures").iterdir()}
    assert figures == {"samples.png", "loss.png", "spectrum.png", "denoising.png"}
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [int(row["step"]) for row in rows] == [3, 6]
    assert 0.5 < float(rows[-1]["held_out"]) < 2  # the base is nearly all that it knows
    assert float(rows[-1]["rate"]) == 0


def test_that_an_unfinished_training_is_not_begun_anew_unasked(tmp_path):
    with pytest.raises(Cut):
        train(training(), tmp_path, watcher=Cutting(3))
    with pytest.raises(
        enkg.StoreError, match="unfinished training; --resume goes on with it, --ov"
    ):
        train(training(), tmp_path)
    watcher = Cutting(-1)
    train(training(), tmp_path, overwrite=True, watcher=watcher)
    assert watcher.first == 0


def test_that_a_prior_is_not_replaced_unasked(tmp_path):
    train(training(), tmp_path)
    before = digest(tmp_path)
    with pytest.raises(enkg.StoreError, match="holds a prior; give another --out, or --overwrite"):
        train(training(seed=1), tmp_path)
    assert digest(tmp_path) == before
    train(training(seed=1), tmp_path, overwrite=True)
    assert digest(tmp_path) != before


def test_that_resuming_a_finished_training_gives_its_prior(tmp_path):
    train(training(), tmp_path)
    watcher = Cutting(1)
    prior = train(training(), tmp_path, resume=True, watcher=watcher)
    assert (watcher.first, watcher.ends) == (-1, 1)
    assert prior.card["training"]["finished"]
    with pytest.raises(enkg.StoreError, match=r"trained for 6 steps.*; 9 steps begin anew"):
        train(training(steps=9), tmp_path, resume=True)


def test_that_resuming_begins_where_there_is_nothing(tmp_path):
    train(training(), tmp_path / "new", resume=True)
    assert Trained(tmp_path / "new", network=Pointwise()).card["training"]["finished"]


def test_that_a_changed_training_goes_on_only_when_forced(tmp_path):
    with pytest.raises(Cut):
        train(training(), tmp_path, watcher=Cutting(3))
    changed = training(rate=2e-3, noise=LogNormal(-1.0, 1.0))
    with pytest.raises(enkg.StoreError, match=r"with other rate, noise\.mean, noise\.std; --force"):
        train(changed, tmp_path, resume=True)
    watcher = Cutting(-1)
    assert train(changed, tmp_path, resume=True, force=True, watcher=watcher)
    assert watcher.first == 3


def test_that_what_does_not_change_the_weights_may_change(tmp_path):
    with pytest.raises(Cut):
        train(training(), tmp_path, watcher=Cutting(3))
    prior = train(training(about="a field", looks=2, name="mine"), tmp_path, resume=True)
    assert (prior.card["about"], prior.card["name"]) == ("a field", "mine")


def test_that_other_samples_are_a_change(tmp_path):
    with pytest.raises(Cut):
        train(training(), tmp_path, watcher=Cutting(3))
    with pytest.raises(enkg.StoreError, match=r"with other samples\.array"):
        train(training(samples=drawn(40) + 1), tmp_path, resume=True)


def test_that_the_checkpoint_of_another_network_is_refused(tmp_path):
    with pytest.raises(Cut):
        train(training(), tmp_path, watcher=Cutting(3))
    with pytest.raises(enkg.StoreError, match="of another network or base than the training has"):
        train(training(network=Pointwise(5)), tmp_path, resume=True, force=True)


def test_that_a_damaged_checkpoint_is_refused(tmp_path):
    with pytest.raises(Cut):
        train(training(), tmp_path, watcher=Cutting(3))
    (tmp_path / keep.CHECKPOINT).write_bytes(b"\x00" * 100)
    with pytest.raises(enkg.StoreError, match=r"checkpoint\.pt is damaged; --overwrite begins"):
        train(training(), tmp_path, resume=True)


def test_that_fewer_steps_than_were_made_are_refused(tmp_path):
    with pytest.raises(Cut):
        train(training(), tmp_path, watcher=Cutting(5))
    with pytest.raises(enkg.InputError, match="5 of 4 steps"):
        train(training(steps=4), tmp_path, resume=True, force=True)


def test_that_a_mistake_can_be_mended_without_more_words(tmp_path):
    bad = drawn(40)
    bad[3, 2, 2] = nan
    watcher = Cutting(-1)
    with pytest.raises(enkg.InputError, match="1 of 40 samples hold NaN or infinity"):
        train(training(samples=bad), tmp_path, watcher=watcher)
    assert watcher.ends == 1
    with pytest.raises(enkg.InputError, match="leaves at least two to learn from"):
        train(training(held_out=39), tmp_path)
    with pytest.raises(enkg.InputError, match="8 x 8 points; a network with patch=1 and 5"):
        train(training(network=UNet((4, 8, 8, 8, 8), groups=4)), tmp_path)
    train(training(), tmp_path)  # nothing was lost, so nothing is asked


def test_that_a_folder_is_for_one_training_at_a_time(tmp_path):
    class Inside(Cutting):
        def stepped(self, step: int, loss: float, rate: float, speed: float) -> None:
            with pytest.raises(enkg.StoreError, match="another run is writing"):
                train(training(), tmp_path)
            raise Cut

    with pytest.raises(Cut):
        train(training(), tmp_path, watcher=Inside(0))


def test_that_positive_fields_are_learnt_by_their_logarithm(tmp_path):
    x = (2 + 0.5 * drawn(40)).exp()
    units = enkg.Log(scale=0.5, offset=2.000000123)
    prior = train(training(samples=x, units=units, network=SMALL), tmp_path)
    assert isinstance(prior.units, enkg.Log)
    assert (prior.units.scale, prior.units.offset) == (0.5, 2.000000123)
    torch.testing.assert_close(prior.units.to_prior(x), drawn(40), atol=1e-5, rtol=0)
    assert float(prior.base.mean.mean()) == pytest.approx(float(drawn(40).mean()), abs=1e-5)
    with pytest.raises(enkg.InputError, match="Log units take positive numbers"):
        train(training(samples=drawn(40), units=units), tmp_path / "b")


def test_that_units_standardise_unless_given(tmp_path):
    prior = train(training(samples=280 + 7 * drawn(40), network=SMALL), tmp_path)
    assert isinstance(prior.units, enkg.Affine)
    x = prior.units.to_prior((280 + 7 * drawn(40)).double())
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std()) == pytest.approx(1, abs=1e-4)


def test_that_units_of_every_point_are_kept(tmp_path):
    offset = torch.linspace(1, 2, 64, dtype=torch.float64).reshape(8, 8)
    prior = train(training(units=enkg.Affine(0.5, offset), network=SMALL), tmp_path)
    x = drawn(3).double()
    assert torch.equal(Trained(tmp_path).units.to_simulator(x), offset + 0.5 * x)
    assert torch.equal(prior.units.to_prior(x), (x - offset) / 0.5)


def test_that_half_of_the_bytes_are_nearly_the_same_prior(tmp_path):
    wide = train(training(network=SMALL, rate=0.05), tmp_path / "wide")
    half = train(training(network=SMALL, rate=0.05, half=True), tmp_path / "half")
    sizes = [(tmp_path / n / "weights.safetensors").stat().st_size for n in ("wide", "half")]
    assert sizes[1] < 0.75 * sizes[0]  # not the mean and the variances of the base
    assert half.card["training"]["stored"] == "float16"
    x = drawn(3)
    torch.testing.assert_close(half.denoise(x, 0.5), wide.denoise(x, 0.5), atol=5e-3, rtol=0)
    assert not torch.equal(half.denoise(x, 0.5), wide.denoise(x, 0.5))
    assert torch.equal(half.base.variance, wide.base.variance)


def test_that_all_samples_may_be_learnt_from(tmp_path):
    prior = train(training(held_out=0), tmp_path)
    told = prior.card["training"]
    assert (told["samples"], told["held_out"]) == (40, 0)
    assert "held_out_loss" not in told
    assert prior.card["merits"] == {}


@pytest.mark.parametrize("held_out", [1, 2, 0.25])
def test_that_held_out_samples_are_not_learnt_from(tmp_path, held_out):
    prior = train(training(held_out=held_out), tmp_path)
    told = prior.card["training"]
    assert told["held_out"] == (10 if held_out == 0.25 else held_out)
    assert told["samples"] == 40 - told["held_out"]
    assert told["held_out_loss"] > 0
    assert bool(prior.card["merits"]) == (held_out != 1)  # one tells nothing of a spread


def test_that_a_network_of_ones_own_is_asked_for(tmp_path):
    prior = train(training(), tmp_path)
    x = drawn(3)
    again = Trained(tmp_path, network=Pointwise())
    assert torch.equal(again.denoise(x, 0.5), prior.denoise(x, 0.5))
    with pytest.raises(enkg.InputError, match=r"network of its own, Pointwise; give it: Trained\("):
        Trained(tmp_path)
    with pytest.raises(enkg.StoreError, match="do not fit the network"):
        Trained(tmp_path, network=Pointwise(7))


@pytest.mark.parametrize("width", [1.0, 0.25])
def test_that_late_weights_enter_the_average_by_a_power_of_their_step(width):
    model = torch.nn.Linear(1, 1, bias=False).double()
    average = AveragedModel(model, multi_avg_fn=power_law(width))
    values = normal(60, seed=2)
    for value in values:
        model.weight.data.fill_(float(value))
        average.update_parameters(model)
    t, g = np.arange(1, 61.0), 1 / width
    rising = np.array([factorial(k + g) / factorial(k) for k in t])  # t (t + 1) .. (t + g - 1)
    expected = (rising * values.numpy()).sum() / rising.sum()
    assert float(next(average.parameters()).detach()) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(rising[-1] / rising[39], 1.5**g, rtol=0.1)  # a power, in the end


def test_that_a_step_whose_gradient_is_not_finite_is_left_out(tmp_path, caplog):
    class Jump(Cutting):
        def started(self, training, prepared, step) -> None:
            weights = prepared.module.network.last.weight
            weights.register_hook(lambda g: g * nan if next(times) == 2 else g)

    times = iter(range(100))
    prior = train(training(), tmp_path, watcher=Jump(-1))
    assert "step 3: the gradient is not finite; the step is left out" in caplog.text
    assert bool(prior.denoise(drawn(2), 1.0).isfinite().all())


def test_that_several_ranks_without_their_launcher_are_refused(tmp_path):
    class Two(type(ALONE)):
        size = 2

    with pytest.raises(enkg.InputError, match="torchrun --nproc-per-node=4 -m enkg train FILE"):
        train(training(), tmp_path, comm=Two())
