"""A learned prior from its folder: card.toml and weights.safetensors, made by `enkg train`."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from enkg.errors import InputError, StoreError
from enkg.field import Field
from enkg.learned import card
from enkg.learned.base import Base
from enkg.learned.denoiser import Preconditioned
from enkg.learned.network import Architecture, UNet
from enkg.units import Affine, Log

Precision = Literal["float32", "bfloat16"]
OWN = "own"
"""What the card calls the network of an architecture that is not ours."""


@dataclass(frozen=True, eq=False)
class Trained:
    """The prior that a folder holds.

    prior = enkg.Trained("priors/vorticity")
    experiment = enkg.Experiment(prior, ..., units=prior.units, unknown=prior.unknown)

    A denoiser call is one pass through the network, in float32 on the device of x whatever the
    dtype of x, or with the network in bfloat16, which is about half as dear where the hardware
    knows it. torch differentiates it, so methods that need the denoiser's Jacobian have it.

    network: the architecture, where it is one of your own. Raises InputError where the folder is
    no learned prior, StoreError where its files do not belong together.
    """

    folder: str | Path
    precision: Precision = "float32"
    network: Architecture | None = None
    card: dict[str, Any] = field(init=False, repr=False)
    shape: tuple[int, ...] = field(init=False)
    _on: dict[str, Preconditioned] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision is {self.precision!r}; expected 'float32' or 'bfloat16'")
        found = card.read(Path(self.folder))
        object.__setattr__(self, "card", found)
        object.__setattr__(self, "shape", tuple(found["member"]["shape"]))
        object.__setattr__(self, "_lock", threading.Lock())
        object.__setattr__(self, "_on", {"cpu": self._module()})

    @property
    def units(self) -> Affine | Log:
        """From the prior's numbers to physical ones."""
        return units_of(self.card["units"])

    @property
    def unknown(self) -> Field:
        """Name, axes and unit, as the card has them."""
        return unknown_of(self.card["member"])

    @property
    def base(self) -> Base:
        """The Gaussian around which the network learnt."""
        return self._on["cpu"].base

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """E[x_0 | x_sigma = x], (J, *X) to (J, *X), for sigma > 0."""
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(
                f"the prior of {self.folder} was given shape {tuple(x.shape)}; expected members of "
                f"shape {self.shape}"
            )
        if not sigma > 0:
            raise InputError(f"the noise level is {sigma}; expected a positive number")
        module = self._there(x.device)
        level = torch.full((len(x),), float(sigma), device=x.device)
        return module(x.float(), level).to(x)

    def _there(self, device: torch.device) -> Preconditioned:
        name = str(device)
        if name not in self._on:
            with self._lock:  # type: ignore[attr-defined]
                self._on[name] = self._module().to(device)
        return self._on[name]

    def _module(self) -> Preconditioned:
        folder = Path(self.folder)
        tensors = card.load_weights(folder, self.card["files"]["weights"])
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
        arrays = {n[5:]: t for n, t in tensors.items() if n.startswith("base_")}
        try:
            with torch.random.fork_rng(devices=[]):  # what a network begins with is not used
                network = self._built()
            module = Preconditioned(network, Base.of(arrays), self.shape)
            module.load_state_dict(tensors)
        except (KeyError, RuntimeError) as error:
            lines = str(error).splitlines()
            raise StoreError(
                f"the weights in {folder} do not fit the network of its card: "
                f"{lines[min(1, len(lines) - 1)].strip()}"
            ) from error
        module.precision = self.precision
        return module.eval().requires_grad_(False)

    def _built(self) -> torch.nn.Module:
        told = dict(self.card["network"])
        kind = told.pop("kind", OWN)
        if self.network is not None:
            return self.network.build(self.shape, 2)
        if kind != "UNet":
            raise InputError(
                f"{self.folder} was trained with a network of its own, {told.get('name', kind)}; "
                "give it: Trained(folder, network=...)"
            )
        return unet_of(told).build(self.shape, 2)

    def __reduce__(self) -> tuple[Any, ...]:
        return Trained, (self.folder, self.precision, self.network)


def unknown_of(told: dict[str, Any]) -> Field:
    """The name, axes and unit of a card."""
    told = {k: v for k, v in told.items() if k != "shape"}
    dims = told.pop("dims", None)
    try:
        return Field(**told, dims=tuple(dims) if dims else None)
    except TypeError as error:
        raise StoreError(f"the card's [member] has a field that is none: {error}") from error


def unet_of(told: dict[str, Any]) -> UNet:
    """The architecture of a card."""
    try:
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in told.items()
        }
        return UNet(**fields)
    except TypeError as error:
        raise StoreError(f"the card's [network] has a field that is none: {error}") from error


def units_of(told: dict[str, Any]) -> Affine | Log:
    """The units of a card."""
    kinds = {"Affine": Affine, "Log": Log}
    told = dict(told)
    kind = told.pop("kind", None)
    if kind not in kinds:
        raise StoreError(f"the card's [units] are of kind {kind!r}; expected {', '.join(kinds)}")
    try:
        return kinds[kind](**told)
    except TypeError as error:
        raise StoreError(f"the card's [units] have a field that is none: {error}") from error
