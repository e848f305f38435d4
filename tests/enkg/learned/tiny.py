"""Small networks of diffusers with random weights, and the folders that it saves them in."""

import pytest
import torch
from torch import Tensor

from tests.enkg.problems import normal

diffusers = pytest.importorskip("diffusers")
save_file = pytest.importorskip("safetensors.torch").save_file

SCHEDULERS = {
    "ddpm": diffusers.DDPMScheduler(clip_sample=False),
    "ddim of velocities": diffusers.DDIMScheduler(
        clip_sample=False,
        prediction_type="v_prediction",
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
    ),
    "ddpm of samples": diffusers.DDPMScheduler(
        clip_sample=False, prediction_type="sample", beta_schedule="squaredcos_cap_v2"
    ),
}


def unet(channels: int = 1, size: int | None = 8, **options):
    torch.manual_seed(0)
    settings = {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "add_attention": False,
    }
    return diffusers.UNet2DModel(**{**settings, **options}).eval()


def save(folder, network, scheduler=None) -> str:
    network.save_pretrained(folder / "unet")
    if scheduler is not None:
        scheduler.save_pretrained(folder / "scheduler")
    return str(folder)


def members(channels: int = 1, size: int = 8) -> Tensor:
    return normal(3, channels, size, size).float()
