"""A latent prior from its folder: an autoencoder, and in the folder `latent` the prior over its
latents.

    card.toml, weights.safetensors              the autoencoder, by `train_autoencoder`
    latent/card.toml, weights.safetensors       the prior, by `train`
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from enkg.errors import InputError, StoreError
from enkg.field import Field
from enkg.latent import Latent, latent
from enkg.learned import card
from enkg.learned.autoencoder import Coder, config_of
from enkg.learned.sources import blocks, samples
from enkg.learned.trained import Trained, units_of, unknown_of
from enkg.learned.training import Training
from enkg.units import Affine, Log

LATENT = "latent"
"""The folder of the prior over the latents, beside the autoencoder."""
SECTIONS = ("member", "units", "autoencoder", "training", "files")
AT_ONCE = 256
"""Members that are encoded at once."""


@dataclass(frozen=True, eq=False)
class TrainedAutoencoder:
    """The autoencoder that a folder holds: card.toml and weights.safetensors.

    Computes in float32 on the device of what it is given, and answers in its dtype; torch
    differentiates both ways. A call is one pass through the decoder or the encoder. Raises
    InputError where the folder is no autoencoder, StoreError where its files do not belong
    together.
    """

    folder: str | Path
    card: dict[str, Any] = field(init=False, repr=False)
    shape: tuple[int, ...] = field(init=False)
    """X, of a member."""
    inner: tuple[int, ...] = field(init=False)
    """Z, of its latents."""
    _on: dict[str, Coder] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found = _card(Path(self.folder))
        object.__setattr__(self, "card", found)
        object.__setattr__(self, "shape", tuple(found["member"]["shape"]))
        coder = self._coder()
        object.__setattr__(self, "inner", coder.inner)
        object.__setattr__(self, "_on", {"cpu": coder})

    @property
    def units(self) -> Affine | Log:
        """From the numbers that decode gives to physical ones; for `Experiment.units`."""
        return units_of(self.card["units"])

    @property
    def unknown(self) -> Field:
        """Name, axes and unit of a member, as the card has them."""
        return unknown_of(self.card["member"])

    def encode(self, x: Tensor) -> Tensor:
        """(J, *X), in the prior's numbers, to (J, *Z)."""
        self._check(x, self.shape, "encode")
        return self._there(x.device).encode(x.float()).to(x)

    def decode(self, z: Tensor) -> Tensor:
        """(J, *Z) to (J, *X), in the prior's numbers."""
        self._check(z, self.inner, "decode")
        return self._there(z.device).decode(z.float()).to(z)

    def _check(self, given: Tensor, expected: tuple[int, ...], what: str) -> None:
        if tuple(given.shape[1:]) != expected:
            raise InputError(
                f"the autoencoder of {self.folder} was to {what} shape {tuple(given.shape)}; "
                f"expected members of shape {expected}"
            )

    def _there(self, device: torch.device) -> Coder:
        name = str(device)
        if name not in self._on:
            self._on[name] = self._coder().to(device)
        return self._on[name]

    def _coder(self) -> Coder:
        folder = Path(self.folder)
        tensors = _weights(folder, self.card["files"]["weights"])
        try:
            coder = Coder(config_of(self.card["autoencoder"]), self.shape)
            coder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise StoreError(
                f"the weights in {folder} do not fit the autoencoder of its card: "
                f"{lines[min(1, len(lines) - 1)].strip()}"
            ) from error
        return coder.eval().requires_grad_(False)

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainedAutoencoder, (self.folder,)


def trained_latent(folder: str | Path) -> Latent:
    """The latent prior that a folder holds: an autoencoder, and in `latent` the prior over its
    latents.

    Units and names are those of `TrainedAutoencoder(folder)`. Raises InputError and StoreError as
    that and `Trained` do, StoreError too where the prior is of another autoencoder's latents.
    """
    coder, prior = TrainedAutoencoder(folder), Trained(Path(folder) / LATENT)
    own = fingerprint(coder)
    if not prior.card["training"].get("recipe", "").endswith(own):
        raise StoreError(
            f"the prior in {Path(folder) / LATENT} is not of the latents of the autoencoder in "
            f"{folder} ({own}); train it anew, from enkg.learned.latent_training"
        )
    return latent(prior, coder.decode, coder.shape, coder.encode)


def fingerprint(coder: TrainedAutoencoder) -> str:
    """What tells one autoencoder's latents from another's."""
    return f"latents of {coder.card['files']['weights'][:16]}"


def encoded(coder: TrainedAutoencoder, source: Any) -> ndarray:
    """Latents of samples in physical units, (N, *X) to (N, *Z), float32."""
    found = samples(source)
    out = np.empty((len(found), *coder.inner), np.float32)
    for start, block in blocks(found):
        for part in range(0, len(block), AT_ONCE):
            x = coder.units.to_prior(torch.from_numpy(block[part : part + AT_ONCE]))
            out[start + part : start + part + len(x)] = coder.encode(x).numpy()
    return out


def latent_training(folder: str | Path, source: Any, **options: Any) -> Training:
    """The training of the prior over the latents of an autoencoder, to be left in folder/latent.

    source: samples in physical units, as for `train_autoencoder`. options: fields of `Training`.
    """
    coder = TrainedAutoencoder(folder)
    settings = {"unknown": Field("latent"), "units": Affine(), **options}
    recipe = "; ".join(filter(None, (settings.pop("recipe", ""), fingerprint(coder))))
    return Training(encoded(coder, source), recipe=recipe, **settings)


def _card(folder: Path) -> dict[str, Any]:
    path = folder / card.CARD
    if not path.is_file():
        raise InputError(
            f"{folder} is no autoencoder: it has no {card.CARD}; expected a folder that "
            "enkg.learned.train_autoencoder made"
        )
    if "autoencoder" not in card.read(folder, ()):
        raise InputError(
            f"{folder} holds a prior, but no autoencoder; enkg.Trained opens it by itself"
        )
    return card.read(folder, SECTIONS)


def _weights(folder: Path, expected: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError

    try:
        return card.load_weights(folder, expected)
    except SafetensorError as error:
        raise StoreError(f"{folder / card.WEIGHTS} is no safetensors file: {error}") from error
