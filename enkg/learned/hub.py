"""Networks from files: weights, and the folders and hub names of diffusers.

    prior = from_diffusers("models/ddpm")           # unet/ and scheduler/, or the two in one folder
    prior = latent_from_diffusers("models/ldm")     # unet/, scheduler/ and vae/ or vqvae/

The scheduler's configuration says what the network predicts, and at which times:

    DDPM, DDIM and their kin    VariancePreserving, with the scheduler's own alphas_cumprod
    EDMEuler, EDMDPMSolver      EDM, with its sigma_data
    FlowMatchEuler, -Heun       FlowMatching, reversed, in times of 0 ... num_train_timesteps

How the scheduler would step, clip or threshold plays no part: D is the network's own.

Weights come from safetensors files alone unless `allow_pickle=True`: see `enkg.learned.weights`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from enkg.errors import InputError
from enkg.latent import Latent, latent
from enkg.learned.adapters import EDM, FlowMatching, VariancePreserving
from enkg.learned.network import around_the_torus, planes
from enkg.learned.repository import Repository
from enkg.learned.weights import load_weights
from enkg.prior import Prior

__all__ = ["from_diffusers", "latent_from_diffusers", "load_weights"]

PREDICTS = {"epsilon": "noise", "sample": "sample", "v_prediction": "velocity"}
VARIANCE_PRESERVING = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
PRECONDITIONED = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
STRAIGHT = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


def from_diffusers(
    source: str | Path,
    subfolder: str | None = None,
    shape: Sequence[int] | None = None,
    predicts: str | None = None,
    *,
    scheduler: Any = None,
    clip: float | None = None,
    label: int | None = None,
    periodic: bool = False,
    allow_pickle: bool = False,
) -> Prior:
    """A UNet2DModel that diffusers saved, as a prior of fields (C, H, W), or (H, W) if C = 1.

    source: a folder, or a name on the hub, which diffusers downloads. subfolder: where in it the
    network is; None looks at the top and in unet/. shape: of a member; None takes it from the
    network. predicts: "noise", "sample" or "velocity" instead of what the scheduler says, and clip,
    see `VariancePreserving`. scheduler: a diffusers scheduler in place of the saved one. label: the
    class, for a network that was trained with classes. periodic: pads all convolutions around the
    field, for a network that was trained so (the configuration cannot say it).

    Raises InputError where there is no such model, it does not fit the shape, its weights are a
    pickle, or its scheduler is of another kind. Cost of a call: one of the network.
    """
    diffusers = _diffusers()
    repository = Repository(source)
    where, config = repository.find(
        diffusers.UNet2DModel, ("", "unet") if subfolder is None else (subfolder,)
    )
    shape = _shape(config, shape)
    scheduler = scheduler or _scheduler(repository)
    unet = repository.model(diffusers.UNet2DModel, where, allow_pickle)
    if periodic:
        _wrap(unet, config)
    classes = config.get("class_embed_type") or config.get("num_class_embeds")
    if bool(classes) != (label is not None):
        raise InputError(
            f"label is {label}; this network was trained {'with' if classes else 'without'} classes"
        )
    by_table = config.get("time_embedding_type") == "learned"
    return _adapted(_Network(unet, shape, label), shape, scheduler, predicts, clip, by_table)


def latent_from_diffusers(
    source: str | Path,
    shape: Sequence[int] | None = None,
    *,
    autoencoder: str | None = None,
    allow_pickle: bool = False,
    **options: Any,
) -> Latent:
    """A latent pipeline that diffusers saved: an unconditional UNet2DModel and its autoencoder.

    source: a folder or hub name with unet/, scheduler/ and vae/ or vqvae/ (AutoencoderKL or
    VQModel); autoencoder: another name of the last. shape: of a decoded member, (C, H, W), or
    (H, W) if C = 1; None takes it from the networks. options: see `from_diffusers`.

    With the autoencoder's scaling factor f and shift s (0 unless given), z = f (encode(x) - s) and
    x = decode(z / f + s); a KL encoder gives the mean of its distribution. Raises InputError as
    `from_diffusers` does. Cost of a decoded member: one call of the decoder.
    """
    diffusers = _diffusers()
    repository = Repository(source)
    places = (autoencoder,) if autoencoder else ("vae", "vqvae")
    where, config = repository.find(diffusers.AutoencoderKL, places)
    kinds = {"AutoencoderKL": diffusers.AutoencoderKL, "VQModel": diffusers.VQModel}
    name = config.get("_class_name")
    if name not in kinds:
        raise InputError(f"{where}/ holds a {name}; expected one of {', '.join(kinds)}")
    prior = from_diffusers(source, "unet", allow_pickle=allow_pickle, **options)
    channels = config.get("latent_channels", 4 if name == "AutoencoderKL" else 3)
    if name == "VQModel":
        channels = config.get("vq_embed_dim") or channels
    if len(prior.shape) != 3 or prior.shape[0] != channels:
        raise InputError(
            f"the network of {source} makes latent members {prior.shape}, its autoencoder takes "
            f"{channels} channels"
        )
    finer = 2 ** (len(config["block_out_channels"]) - 1)
    made = (config.get("out_channels", 3), *(finer * size for size in prior.shape[1:]))
    shape = made if shape is None else tuple(shape)
    if shape not in (made, made[1:] if made[0] == 1 else made):
        raise InputError(f"shape is {shape}; the decoder of {source} makes {made}")
    coder = _Autoencoder(repository.model(kinds[name], where, allow_pickle), prior.shape, shape)
    return latent(prior, coder.decode, shape, coder.encode)


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise InputError(
            f'networks of diffusers need that package; pip install "enkg[train]" ({error})'
        ) from error
    return diffusers


def _scheduler(repository: Repository) -> Any:
    """The scheduler that was saved with the network."""
    diffusers = _diffusers()
    try:
        _, config = repository.find(diffusers.DDPMScheduler, ("scheduler", ""))
    except InputError as error:
        raise InputError(
            f"{error} Give scheduler=diffusers.DDPMScheduler(...), as the network was trained"
        ) from error
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None:
        raise InputError(f"the scheduler {config.get('_class_name')} is unknown to diffusers")
    return kind.from_config(config)


def _adapted(
    network: "_Network",
    shape: tuple[int, ...],
    scheduler: Any,
    predicts: str | None,
    clip: float | None,
    integer_times: bool,
) -> Prior:
    """The adapter that suits the scheduler."""
    kind, settings = type(scheduler).__name__, scheduler.config
    saved = settings.get("prediction_type", "epsilon")
    if kind in VARIANCE_PRESERVING and settings.get("timestep_type") != "continuous":
        if predicts is None and saved not in PREDICTS:
            raise InputError(
                f"the scheduler says that the network predicts {saved!r}; expected one of "
                f"{', '.join(PREDICTS)}, or give predicts"
            )
        predicts = predicts or PREDICTS[saved]
        return VariancePreserving(
            network,
            shape,
            predicts,
            scheduler.alphas_cumprod,
            integer_times=integer_times,
            clip=clip,
        )
    if predicts is not None or clip is not None:
        raise InputError(f"predicts and clip are for variance-preserving networks; this is {kind}")
    if kind in PRECONDITIONED:
        network.factor = -1.0 if saved == "v_prediction" else 1.0
        return EDM(network, shape, settings.sigma_data)
    if kind in STRAIGHT:
        return FlowMatching(
            network, shape, reverse=True, time_scale=float(settings.num_train_timesteps)
        )
    known = ", ".join(VARIANCE_PRESERVING + PRECONDITIONED + STRAIGHT)
    raise InputError(
        f"a {kind} does not say what its network computes; known are {known}. Load the network "
        "with diffusers and wrap it in one of enkg.learned.adapters"
    )


class _Network(nn.Module):
    """A UNet2DModel as (B, *X), (B,) to (B, *X): tensors out, no learned variance."""

    def __init__(self, unet: nn.Module, shape: tuple[int, ...], label: int | None) -> None:
        super().__init__()
        self.unet = unet.requires_grad_(False)
        self.shape, self.label, self.factor = shape, label, 1.0

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        classes = None
        if self.label is not None:
            classes = torch.full((len(x),), self.label, device=x.device)
        image = x.reshape(len(x), *planes(self.shape))
        answer = self.unet(image, time, class_labels=classes).sample
        return self.factor * answer[:, : image.shape[1]].reshape(x.shape)


class _Autoencoder(nn.Module):
    """An AutoencoderKL or VQModel between latent members (J, *Z) and members (J, *X)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, coder: Any, inner: tuple[int, ...], outer: tuple[int, ...]) -> None:
        super().__init__()
        self.coder = coder.requires_grad_(False)
        self.inner, self.outer = inner, outer
        config = coder.config
        column = (-1, 1, 1)
        std = torch.tensor(config.get("latents_std") or [1.0]).reshape(column)
        shift = config.get("latents_mean") or [config.get("shift_factor") or 0.0]
        self.register_buffer("scale", std / config.scaling_factor)
        self.register_buffer("shift", torch.tensor(shift).reshape(column))

    def decode(self, z: Tensor) -> Tensor:
        inner = z.reshape(len(z), *self.inner) * self.scale.to(z) + self.shift.to(z)
        return self.coder.decode(self._placed(inner)).sample.reshape(len(z), *self.outer).to(z)

    def encode(self, x: Tensor) -> Tensor:
        code = self.coder.encode(self._placed(x.reshape(len(x), *planes(self.outer))))
        mean = code.latent_dist.mode() if "latent_dist" in code else code.latents
        return (mean.to(x) - self.shift.to(x)) / self.scale.to(x)

    def _placed(self, x: Tensor) -> Tensor:
        """In the precision of the weights, which go where x is."""
        weights = next(self.coder.parameters())
        if weights.device != x.device:
            self.to(x.device)
        return x.to(weights.dtype)


def _shape(config: dict[str, Any], shape: Sequence[int] | None) -> tuple[int, ...]:
    """The shape of a member, where it fits a UNet2DModel of this configuration."""
    if config.get("_class_name") != "UNet2DModel":
        raise InputError(
            f"the network is a {config.get('_class_name')}; expected an unconditional UNet2DModel. "
            "Load it with diffusers and wrap it as VariancePreserving(lambda x, t: ..., shape)"
        )
    channels, out = config.get("in_channels", 3), config.get("out_channels", 3)
    if out not in (channels, 2 * channels):
        raise InputError(
            f"the network takes {channels} channels and returns {out}; expected as many, or twice "
            "as many with a learned variance"
        )
    size = config.get("sample_size")
    sizes = (size, size) if isinstance(size, int) else tuple(size or ())
    if shape is None:
        if not sizes:
            raise InputError("the network does not say its sample_size; give shape=(C, H, W)")
        return (channels, *sizes)
    shape = tuple(shape)
    full = (1, *shape) if len(shape) == 2 else shape
    if len(full) != 3 or full[0] != channels or (sizes and full[1:] != sizes):
        made = f"{sizes[0]} x {sizes[1]}" if sizes else "any size"
        raise InputError(
            f"shape is {shape}; the network was made for {channels} channel"
            f"{'s' if channels > 1 else ''} of {made}"
        )
    coarser = 2 ** (len(config.get("block_out_channels", "4444")) - 1)
    if any(size % coarser for size in full[1:]):
        raise InputError(f"shape is {shape}; the network needs multiples of {coarser}")
    return shape


def _wrap(unet: nn.Module, config: dict[str, Any]) -> None:
    """Makes all convolutions periodic."""
    if not config.get("downsample_padding", 1):
        raise InputError(
            "periodic=True, but the network halves the field with downsample_padding=0, which pads "
            "one side with zeros"
        )
    around_the_torus(unet)
