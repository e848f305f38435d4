"""Latent pipelines that diffusers wrote, read back and held against diffusers itself."""

import pickle

import pytest
import torch

import enkg
from enkg.learned.hub import latent_from_diffusers
from tests.enkg.learned.tiny import SCHEDULERS, diffusers, members, save, unet


def autoencoder(kind: str, **options):
    torch.manual_seed(1)
    settings = {
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 2,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    return getattr(diffusers, kind)(**{**settings, **options}).eval()


def save_latent(folder, coder, name: str, channels: int = 2) -> str:
    coder.save_pretrained(folder / name)
    return save(folder, unet(channels), SCHEDULERS["ddpm"])


@pytest.mark.parametrize(
    ("options", "scale", "shift"),
    [
        ({}, 0.18215, 0.0),
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, 0.5, 0.25),
        ({"scaling_factor": 0.5, "latents_mean": [1, 2], "latents_std": [3, 4]}, None, None),
    ],
)
def test_that_a_latent_folder_decodes_and_encodes_as_diffusers_does(
    tmp_path, options, scale, shift
):
    coder = autoencoder("AutoencoderKL", **options)
    prior = latent_from_diffusers(save_latent(tmp_path, coder, "vae"))
    assert (prior.shape, prior.decoded_shape) == ((2, 8, 8), (1, 16, 16))
    if scale is None:  # Stable Diffusion XL: latents std / scale + mean
        scale = 0.5 / torch.tensor([3.0, 4.0])[:, None, None]
        shift = torch.tensor([1.0, 2.0])[:, None, None]
    z, x = members(2), members(1, 16)
    with torch.no_grad():
        exact = coder.decode(z / scale + shift).sample
        code = (coder.encode(x).latent_dist.mode() - shift) * scale
    torch.testing.assert_close(prior.decode(z), exact)
    torch.testing.assert_close(prior.encode(x), code)  # pyright: ignore
    plain = latent_from_diffusers(tmp_path, shape=(16, 16))
    torch.testing.assert_close(plain.decode(z), exact[:, 0])


def test_that_decoded_members_have_the_precision_and_the_device_of_the_latent_ones(tmp_path):
    prior = latent_from_diffusers(save_latent(tmp_path, autoencoder("AutoencoderKL"), "vae"))
    z, x = members(2), members(1, 16)
    assert prior.decode(z.double()).dtype == prior.encode(x.double()).dtype == torch.float64  # pyright: ignore
    torch.testing.assert_close(prior.decode(z.double()).float(), prior.decode(z))
    assert not prior.decode(z).requires_grad
    away = prior.decode(z.to("meta"))
    assert (away.device.type, away.shape) == ("meta", (3, 1, 16, 16))


def test_that_a_vq_folder_decodes_from_its_codebook(tmp_path):
    coder = autoencoder("VQModel", num_vq_embeddings=16)
    prior = latent_from_diffusers(save_latent(tmp_path, coder, "vqvae"))
    z, x = members(2), members(1, 16)
    with torch.no_grad():
        exact = coder.decode(z / 0.18215).sample
        code = coder.encode(x).latents * 0.18215
    torch.testing.assert_close(prior.decode(z), exact)
    torch.testing.assert_close(prior.encode(x), code)  # pyright: ignore


def test_that_a_latent_run_takes_the_loaded_pipeline(tmp_path):
    prior = latent_from_diffusers(
        save_latent(tmp_path, autoencoder("AutoencoderKL"), "vae"), shape=(16, 16)
    )
    experiment = enkg.Experiment(
        prior=pickle.loads(pickle.dumps(prior)),
        simulator=lambda x: x[:, 0, :4],
        observation=enkg.Observation(torch.ones(4), std=0.5),
        guidance=enkg.ESMDA(members=8),
    )
    tree = enkg.run(experiment)
    assert tree["posterior"]["x"].shape == (8, 16, 16)


def test_that_an_autoencoder_of_other_channels_is_refused(tmp_path):
    source = save_latent(tmp_path, autoencoder("AutoencoderKL"), "vae", channels=3)
    with pytest.raises(
        enkg.InputError, match=r"latent members \(3, 8, 8\), its autoencoder takes 2"
    ):
        latent_from_diffusers(source)
    good = save_latent(tmp_path / "good", autoencoder("AutoencoderKL"), "vae")
    with pytest.raises(enkg.InputError, match=r"shape is \(8, 8\); the decoder .* \(1, 16, 16\)"):
        latent_from_diffusers(good, shape=(8, 8))
    with pytest.raises(enkg.InputError, match=r"has no mine/config\.json"):
        latent_from_diffusers(good, autoencoder="mine")
