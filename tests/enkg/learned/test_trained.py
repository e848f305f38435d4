"""A learned prior as it is used: from its folder, in every dtype, with gradients, in a run."""

import pickle
import shutil

import pytest
import torch

import enkg
from enkg.learned import Trained, card
from enkg.prior import vjp
from tests.enkg.learned.fields import Pointwise, drawn
from tests.enkg.problems import normal, values


@pytest.fixture(scope="module")
def prior(folder) -> Trained:
    return Trained(folder)


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the folder that may be spoilt."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_that_it_is_a_prior_with_the_names_and_units_of_its_training(prior):
    assert prior.shape == (8, 8)
    unknown = prior.unknown
    assert (unknown.name, unknown.unit, unknown.long_name) == ("w", "1/s", "vorticity")
    assert (unknown.dims, unknown.colour_map) == (("row", "column"), "RdBu_r")
    assert isinstance(prior.units, enkg.Affine)
    x = drawn(40).double()
    assert float(prior.units.to_prior(x).std()) == pytest.approx(1, abs=0.05)


def test_that_it_has_learnt_something(prior):
    x = drawn(3)
    assert not torch.allclose(prior.denoise(x, 0.5), prior.base.prior().denoise(x, 0.5), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_that_the_dtype_is_kept(prior, dtype):
    x = drawn(3)
    found = prior.denoise(x.to(dtype), 0.5)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.float(), prior.denoise(x.to(dtype).float(), 0.5), rtol=1e-2, atol=1e-2
    )
    if dtype == torch.float64:
        assert torch.equal(found.float(), prior.denoise(x, 0.5))


def test_that_no_members_are_denoised_to_none(prior):
    assert prior.denoise(torch.zeros(0, 8, 8), 0.5).shape == (0, 8, 8)


def test_that_lost_members_do_not_spoil_the_others(prior):
    x = drawn(4)
    expected = prior.denoise(x, 0.5)
    x[1] = float("nan")
    found = prior.denoise(x, 0.5)
    assert bool(found[1].isnan().all())
    assert torch.equal(found[[0, 2, 3]], expected[[0, 2, 3]])


def test_that_at_small_noise_it_is_the_field(prior):
    x = normal(3, 8, 8)
    torch.testing.assert_close(prior.denoise(x, 1e-3), x, atol=1e-2, rtol=0)


def test_that_shapes_and_levels_that_do_not_fit_are_refused(prior):
    with pytest.raises(enkg.InputError, match=r"shape \(3, 8, 9\); expected members of shape \(8"):
        prior.denoise(torch.zeros(3, 8, 9), 1.0)
    for sigma in (0.0, -1.0, float("nan")):
        with pytest.raises(enkg.InputError, match=f"noise level is {sigma}; expected a positive"):
            prior.denoise(drawn(2), sigma)
    with pytest.raises(enkg.InputError, match="precision is 'half'; expected 'float32' or"):
        Trained(prior.folder, precision="half")  # type: ignore[arg-type]


def test_that_it_can_be_pickled(prior):
    data = pickle.dumps(Trained(prior.folder, "bfloat16"))
    assert len(data) < 1000  # the folder, not the weights
    again, x = pickle.loads(data), drawn(3)
    assert again.precision == "bfloat16"
    assert torch.equal(again.denoise(x, 0.5), Trained(prior.folder, "bfloat16").denoise(x, 0.5))


def test_that_bfloat16_is_near_float32(prior):
    x = drawn(16)
    short = Trained(prior.folder, precision="bfloat16")
    for sigma in (0.1, 1.0, 10.0):
        full, found = prior.denoise(x, sigma), short.denoise(x, sigma)
        assert found.dtype == torch.float32
        assert not torch.equal(found, full)
        correction = full - prior.base.prior().denoise(x, sigma)
        assert float((found - full).norm()) < 0.03 * float(correction.norm())


def test_that_its_jacobian_is_that_of_finite_differences(prior):
    x, v, u = drawn(2).double(), normal(2, 8, 8), normal(2, 8, 8, seed=1)
    sigma, h = 1.0, 1e-2
    slope = (prior.denoise(x + h * u, sigma) - prior.denoise(x - h * u, sigma)) / (2 * h)
    found = vjp(prior, x, sigma, v)
    assert found.dtype == torch.float64
    for k in range(2):
        assert float((found[k] * u[k]).sum()) == pytest.approx(
            float((v[k] * slope[k]).sum()), rel=5e-3, abs=5e-3
        )
    assert not prior.denoise(x, sigma).requires_grad  # its weights ask for nothing


def test_that_a_folder_that_is_no_prior_is_refused(tmp_path):
    with pytest.raises(enkg.InputError, match="there is no such folder; expected a folder that"):
        Trained(tmp_path / "nowhere")
    with pytest.raises(enkg.InputError, match=r"it has no card\.toml"):
        Trained(tmp_path)


def test_that_weights_that_were_changed_are_refused(copied):
    file = copied / card.WEIGHTS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(enkg.StoreError, match="is not the file that the card speaks of: its SHA"):
        Trained(copied)
    file.unlink()
    with pytest.raises(enkg.StoreError, match=r"has a card but no weights\.safetensors"):
        Trained(copied)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[member]", "[member", r"card\.toml cannot be read"),
        ("[files]", "[file]", r"has no \[files\]; it is not a whole card"),
        ("format = 1", "format = 2", "is of format 2; this version of enkg reads 1"),
        ("weights = ", "weight = ", r"has no files\.weights; it is not a whole card"),
        ("shape = ", "form = ", r"has no member\.shape; it is not a whole card"),
        ("groups = 4", "groups = 2\nheads = 3", r"\[network\] has a field that is none"),
        ("patch = 1", "patch = 2", "do not fit the network of its card"),
        ('kind = "UNet"', 'kind = "Transformer"', "a network of its own"),
    ],
)
def test_that_a_broken_card_is_refused(copied, old, new, words):
    file = copied / card.CARD
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(enkg.EnkgError, match=words):
        Trained(copied)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('kind = "Affine"', 'kind = "Celsius"', "of kind 'Celsius'; expected Affine, Log"),
        ("scale = ", "factor = ", r"\[units\] have a field that is none"),
        ("unit = ", "units = ", r"\[member\] has a field that is none"),
    ],
)
def test_that_units_and_names_of_a_broken_card_are_refused(copied, old, new, words):
    file = copied / card.CARD
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    found = Trained(copied)
    with pytest.raises(enkg.StoreError, match=words):
        experiment(found, 8, enkg.EnKG(members=8))


def test_that_the_network_of_another_training_does_not_fit(folder):
    with pytest.raises(enkg.StoreError, match="do not fit the network"):
        Trained(folder, network=Pointwise())


def experiment(prior: Trained, chunk: int, guidance: enkg.Guidance) -> enkg.Experiment:
    truth = prior.units.to_simulator(drawn(1))
    return enkg.Experiment(
        prior,
        enkg.Function(lambda x: x[:, ::2, ::2], chunk=chunk),
        enkg.Observation(truth[0, ::2, ::2], std=0.1),
        guidance,
        units=prior.units,
        unknown=prior.unknown,
    )


def test_that_a_run_with_it_finds_the_data(prior):
    guidance = enkg.EnKG(members=8, updates=2)
    found = values(enkg.run(experiment(prior, 8, guidance)), "posterior", "w")
    again = values(enkg.run(experiment(prior, 3, guidance)), "posterior", "w")
    assert found.shape == (8, 8, 8)
    torch.testing.assert_close(torch.tensor(again), torch.tensor(found), atol=1e-4, rtol=1e-4)
    truth = prior.units.to_simulator(drawn(1))[0]
    seen = torch.tensor(found).mean(dim=0)[::2, ::2] - truth[::2, ::2]
    assert float(seen.square().mean()) < float(truth[::2, ::2].square().mean())
