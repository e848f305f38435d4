"""Autoencoders: no worse than principal components, better where the data are curved, and kept."""

import pickle
import shutil
import tomllib
from math import prod

import numpy as np
import pytest
import torch

import enkg
from enkg.errors import InputError, StoreError
from enkg.latent import Decoding, Encoding
from enkg.learned import autoencoder_training, card, keep
from enkg.learned.autoencoder import Autoencoder, Coder, objective, reconstruction_error
from enkg.learned.autoencoder_training import train_autoencoder
from enkg.learned.latent_prior import (
    LATENT,
    TrainedAutoencoder,
    encoded,
    latent_training,
    trained_latent,
)
from enkg.learned.loop import Unseen, train
from enkg.learned.network import UNet
from enkg.learned.sources import split
from tests.enkg.problems import normal

pytest.importorskip("diffusers")
pytest.importorskip("safetensors")

TINY = Autoencoder((4, 8), latent=1, groups=2, steps=30, batch=16, rate=1e-3, looks=2)


def bumps(count: int, seed: int = 0) -> torch.Tensor:
    """A bump somewhere on 8 x 8 points: two numbers decide it, but many components are needed."""
    centre = 1.5 + 4 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
    points = torch.arange(8.0)
    near = torch.exp(-((points - centre[:, :, None]) ** 2) / 2)
    return near[:, 0, :, None] * near[:, 1, None, :]


def of_rank(rank: int, count: int, seed: int = 0) -> torch.Tensor:
    """Fields of so many random directions, of variance about one a point."""
    directions = normal(rank, 8, 8, seed=99) / rank**0.5
    return torch.einsum("nr,rhw->nhw", normal(count, rank, seed=seed), directions).float()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with an autoencoder and a prior over its latents, and the samples."""
    torch.set_num_threads(1)
    folder, x = tmp_path_factory.mktemp("coder"), 3 + 2 * of_rank(6, 200)
    train_autoencoder(TINY, x, folder, unknown=enkg.Field("height", unit="m"), others={"more": x})
    settings = {"network": UNet((4, 8), groups=2), "steps": 4, "batch": 8, "looks": 1, "drawn": 2}
    train(latent_training(folder, x, recipe="a test", **settings), folder / LATENT)
    return folder, x


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "coder")


# --- what it learns -------------------------------------------------------------------------


def test_that_data_of_low_rank_are_kept_but_for_what_training_shakes(made):
    folder, _ = made
    coder = TrainedAutoencoder(folder)
    fresh = coder.units.to_prior(3 + 2 * of_rank(6, 100, seed=1))
    # 16 latent numbers for 6 directions: components lose nothing, and the network learns nothing.
    assert coder.card["errors"]["held_out"]["linear"] < 1e-5
    assert reconstruction_error(coder, fresh) < 0.05 * float(fresh.std())


def test_that_an_untrained_coder_is_that_of_principal_components():
    x = normal(300, 8, 8).float() * torch.linspace(0.1, 2, 64).reshape(8, 8)
    given = autoencoder_training._given(TINY, x, enkg.Affine())
    coder = given.module.requires_grad_(False)
    learnt = x[torch.from_numpy(given.learnt)].flatten(1).double()
    centred = learnt - learnt.mean(dim=0)
    values = torch.linalg.eigvalsh(centred.T @ centred)
    lost = values[:48].sum() / centred.numel()
    found = reconstruction_error(coder, learnt.float().reshape(-1, 8, 8))
    assert found == pytest.approx(float(lost.sqrt()), rel=1e-4)


def test_that_curved_data_are_kept_better_than_by_as_many_components(tmp_path):
    config = Autoencoder((8, 16), 1, groups=4, steps=80, batch=32, rate=5e-3, kl=1e-5, looks=1)
    x = bumps(2000)[:, 2:6, 2:6].contiguous()  # 4 latent numbers for 16 points
    found = train_autoencoder(config, x, tmp_path).card["errors"]["held_out"]
    assert found["error"] < 0.4 * found["linear"]


def test_that_the_loss_is_the_bound_with_the_divergence_of_gaussians():
    coder = Coder(Autoencoder((4, 8), 2, groups=2), (8, 8)).requires_grad_(False)
    torch.nn.init.normal_(coder.network.quant_conv.weight, std=0.1)
    x, noise = normal(5, 8, 8).float(), normal(5, 2, 4, 4, seed=1).float()
    mean, std = coder.posterior(x)
    q = torch.distributions.Normal(mean, std)
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum() / 5
    error = (coder.generated(mean + std * noise) - x).square().mean()
    torch.testing.assert_close(objective(coder, x, noise, 0.3), error + 0.3 * kl / 64)


def test_that_latents_have_unit_deviation_in_each_channel(made):
    folder, x = made
    z = encoded(TrainedAutoencoder(folder), x)
    assert z.shape == (200, 1, 4, 4)
    assert float(z.mean()) == pytest.approx(0, abs=0.1)  # of 180 of the 200 it is exact
    assert float(z.std()) == pytest.approx(1, abs=0.05)


def test_that_a_shifted_periodic_field_has_shifted_latents():
    torch.manual_seed(0)
    config = Autoencoder((4, 8, 8), 2, groups=2, periodic=True, attention=True)
    coder = Coder(config, (16, 8)).requires_grad_(False)
    x = normal(3, 16, 8).float()
    z = coder.encode(x)
    assert z.shape == (3, 2, 4, 2)
    moved = coder.encode(x.roll((4, -4), (1, 2)))
    torch.testing.assert_close(moved, z.roll((1, -1), (2, 3)), atol=1e-5, rtol=0)
    back = coder.decode(z.roll((1, -1), (2, 3)))
    torch.testing.assert_close(back, coder.decode(z).roll((4, -4), (1, 2)), atol=1e-5, rtol=0)
    assert float(z.std()) > 0.01


# --- what it leaves -------------------------------------------------------------------------


def test_that_the_card_has_the_errors_of_what_is_kept(made):
    folder, x = made
    coder = TrainedAutoencoder(folder)
    told = coder.card
    assert told["autoencoder"]["latents"] == [1, 4, 4]
    assert set(told["errors"]) == {"learnt", "held_out", "more"}
    found = reconstruction_error(coder, coder.units.to_prior(x))
    assert told["errors"]["more"]["error"] == pytest.approx(found, rel=1e-4)
    assert coder.unknown.unit == "m"
    assert (folder / keep.FIGURES / "reconstructions.png").is_file()
    assert not (folder / keep.CHECKPOINT).exists()


def test_that_half_precision_halves_the_file_and_the_card_speaks_of_it(tmp_path, made):
    coder = train_autoencoder(
        Autoencoder((4, 8), 1, groups=2, steps=5, batch=16, half=True), made[1], tmp_path
    )
    sizes = [(folder / card.WEIGHTS).stat().st_size for folder in (tmp_path, made[0])]
    assert sizes[0] < 0.7 * sizes[1]
    x = coder.units.to_prior(made[1])
    _, held_out = split(200, 0.1, 0)
    found = reconstruction_error(coder, x[torch.from_numpy(held_out)])
    assert coder.card["errors"]["held_out"]["error"] == pytest.approx(found, rel=1e-4)


def test_that_the_latent_prior_decodes_encodes_and_is_picklable(made):
    folder, x = made
    prior = trained_latent(folder)
    assert isinstance(prior, Decoding)
    assert isinstance(prior, Encoding)
    assert (prior.shape, prior.decoded_shape) == ((1, 4, 4), (8, 8))
    again = pickle.loads(pickle.dumps(prior))
    z = normal(3, 1, 4, 4)
    assert prior.decode(z).dtype == torch.float64
    assert torch.equal(again.decode(z), prior.decode(z))
    assert torch.equal(again.encode(x[:3]), prior.encode(x[:3]))
    assert torch.equal(again.denoise(z, 0.5), prior.denoise(z, 0.5))
    leaf = z.clone().requires_grad_()
    prior.encode(prior.decode(leaf)).square().sum().backward()
    assert float(leaf.grad.abs().min()) > 0  # pyright: ignore


def test_that_a_method_runs_in_the_latent_space(made):
    prior, units = trained_latent(made[0]), TrainedAutoencoder(made[0]).units
    tree = enkg.run(
        enkg.Experiment(
            prior,
            simulator=lambda x: x[:, 0, :4].astype(np.float64),
            observation=enkg.Observation(torch.full((4,), 3.0), std=0.5),
            guidance=enkg.ESMDA(members=8),
            units=units,
        )
    )
    assert tree["posterior"]["x"].shape == (8, 8, 8)


# --- going on -------------------------------------------------------------------------------


class Cut(Unseen):
    """Stops a training before a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def stepped(self, step, loss, rate, speed):
        if step == self.at:
            raise KeyboardInterrupt


def test_that_a_training_that_was_cut_goes_on_as_if_it_had_not_been(tmp_path, made):
    folder, x = made
    with pytest.raises(KeyboardInterrupt):
        train_autoencoder(TINY, x, tmp_path, watcher=Cut(17))
    with pytest.raises(StoreError, match="unfinished"):
        train_autoencoder(TINY, x, tmp_path)
    other = Autoencoder((4, 8), 1, groups=2, steps=30, batch=16, rate=2e-3, looks=2)
    with pytest.raises(StoreError, match=r"config\.rate"):
        train_autoencoder(other, x, tmp_path, resume=True)
    train_autoencoder(TINY, x, tmp_path, resume=True)
    digests = [TrainedAutoencoder(f).card["files"]["weights"] for f in (folder, tmp_path)]
    assert digests[0] == digests[1]


def test_that_a_finished_training_is_returned_and_not_replaced_unasked(made):
    folder, x = made
    before = (folder / card.CARD).read_text()
    assert train_autoencoder(TINY, x, folder, resume=True).shape == (8, 8)
    with pytest.raises(StoreError, match="holds a prior"):
        train_autoencoder(TINY, x, folder)
    longer = Autoencoder((4, 8), 1, groups=2, steps=60)
    with pytest.raises(StoreError, match="trained for 30 steps"):
        train_autoencoder(longer, x, folder, resume=True)
    assert (folder / card.CARD).read_text() == before


# --- what is refused ------------------------------------------------------------------------


def test_that_a_prior_of_another_autoencoders_latents_is_refused(made, copied):
    other = Autoencoder((4, 8), 1, groups=2, steps=5, batch=16, seed=1)
    train_autoencoder(other, made[1], copied, overwrite=True)
    with pytest.raises(StoreError, match="not of the latents of the autoencoder"):
        trained_latent(copied)


def test_that_weights_that_changed_or_are_a_pickle_are_refused(copied):
    weights, told = copied / card.WEIGHTS, copied / card.CARD
    expected = tomllib.loads(told.read_text())["files"]["weights"]
    weights.write_bytes(pickle.dumps({"mean": 1}))
    with pytest.raises(StoreError, match="not the file that the card speaks of"):
        TrainedAutoencoder(copied)
    told.write_text(told.read_text().replace(expected, card.digest(weights)))
    with pytest.raises(StoreError, match="no safetensors file"):
        TrainedAutoencoder(copied)
    weights.rename(copied / "weights.bin")
    with pytest.raises(StoreError, match=r"has a card but no weights\.safetensors"):
        TrainedAutoencoder(copied)


def test_that_weights_of_another_network_are_refused(copied):
    told = copied / card.CARD
    text = told.read_text()
    told.write_text(text.replace("latent = 1", "latent = 2"))
    with pytest.raises(StoreError, match="do not fit the autoencoder of its card"):
        TrainedAutoencoder(copied)
    told.write_text(text.replace("groups = 2", "groups = 3"))
    with pytest.raises(StoreError, match="not all multiples of groups=3"):
        TrainedAutoencoder(copied)


def test_that_folders_without_an_autoencoder_are_refused(made, tmp_path):
    with pytest.raises(InputError, match=r"is no autoencoder: it has no card\.toml"):
        TrainedAutoencoder(tmp_path)
    with pytest.raises(InputError, match="holds a prior, but no autoencoder"):
        TrainedAutoencoder(made[0] / LATENT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 0}, "latent is 0; expected at least 1"),
        ({"kl": -1.0}, "kl -1.0; expected"),
        ({"channels": (12, 20)}, "not all multiples of groups=8"),
        ({"channels": ()}, "not all multiples"),
        ({"linear": True, "periodic": True}, "Leave one of the two"),
    ],
)
def test_that_settings_that_do_not_work_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Autoencoder(**options)


def test_that_shapes_that_do_not_fit_are_refused(made, tmp_path):
    with pytest.raises(InputError, match="multiples of 2 points"):
        train_autoencoder(TINY, normal(9, 7, 8), tmp_path / "a")
    with pytest.raises(InputError, match=r"\(H, W\) or \(C, H, W\)"):
        train_autoencoder(TINY, normal(9, 8), tmp_path / "b")
    coder = TrainedAutoencoder(made[0])
    with pytest.raises(InputError, match=r"decode shape \(2, 8, 8\); expected .* \(1, 4, 4\)"):
        coder.decode(normal(2, 8, 8))
    with pytest.raises(InputError, match=r"encode shape \(2, 64\); expected .* \(8, 8\)"):
        coder.encode(normal(2, 64))


def test_that_channels_of_a_field_go_in_and_out():
    coder = Coder(Autoencoder((4, 8), 3, groups=2), (2, 8, 4)).requires_grad_(False)
    z = coder.encode(normal(5, 2, 8, 4).float())
    assert z.shape == (5, 3, 4, 2)
    assert coder.decode(z).shape == (5, 2, 8, 4)
    assert prod(coder.inner) == coder.basis.shape[1]
