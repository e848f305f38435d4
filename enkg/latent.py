"""A prior over latent variables: what is denoised and guided is z, what is simulated is decode(z).

Any method works in the latent space, for its simulator is then G(decode(z)). Results, truth and
figures are of the decoded members.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from enkg.errors import InputError, MissingCapability
from enkg.prior import Drawable, Flowing, Prior, White, vjp


@runtime_checkable
class Decoding(Protocol):
    """A prior whose members are latent variables."""

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """Shape X of a decoded member."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Latent members (J, *Z) to members (J, *X), row by row."""
        ...


@runtime_checkable
class Encoding(Protocol):
    """A latent prior that also knows the way back."""

    def encode(self, x: Tensor) -> Tensor:
        """Members (J, *X) to latent ones (J, *Z), row by row; decode(encode(x)) is near x."""
        ...


@dataclass(frozen=True, eq=False)
class Latent:
    """A prior over z with its decoder. It has the abilities of `prior`, and of the two functions.

    prior: of z, shape Z. decoder: (J, *Z) to (J, *X), row by row, of torch operations where a
    method differentiates it. decoded_shape: X. encoder: the way back, for the methods that need it.
    Made by `enkg.latent`.
    """

    prior: Any
    decoder: Callable[[Tensor], Tensor]
    decoded_shape: tuple[int, ...]
    encoder: Callable[[Tensor], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.prior.shape

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        return self.prior.denoise(x, sigma)

    def vjp(self, x: Tensor, sigma: float, v: Tensor) -> Tensor:
        return vjp(self.prior, x, sigma, v)

    def decode(self, z: Tensor) -> Tensor:
        x = self.decoder(z)
        if tuple(x.shape) != (len(z), *self.decoded_shape):
            raise InputError(
                f"the decoder was given shape {tuple(z.shape)} and returned {tuple(x.shape)}; "
                f"expected {(len(z), *self.decoded_shape)}"
            )
        return x

    def __reduce__(self) -> tuple[Any, ...]:
        return latent, (self.prior, self.decoder, self.decoded_shape, self.encoder)


class _Draws(Latent):
    def draw(self, seed: int, members: Sequence[int], step: int) -> Tensor:
        return self.prior.draw(seed, members, step)


class _Flows(Latent):
    def flow(self, x: Tensor, sigma: float, to: float) -> Tensor:
        return self.prior.flow(x, sigma, to)


class _IsWhite(Latent):
    @property
    def scales(self) -> Tensor:
        return self.prior.scales

    def from_white(self, z: Tensor) -> Tensor:
        return self.prior.from_white(z)


class _Encodes(Latent):
    def encode(self, x: Tensor) -> Tensor:
        assert self.encoder is not None
        z = self.encoder(x)
        if tuple(z.shape) != (len(x), *self.shape):
            raise InputError(
                f"the encoder was given shape {tuple(x.shape)} and returned {tuple(z.shape)}; "
                f"expected {(len(x), *self.shape)}"
            )
        return z


def latent(
    prior: Prior,
    decode: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    encode: Callable[[Tensor], Tensor] | None = None,
) -> Latent:
    """The prior of decode(z) for z of `prior`; see `Latent`. shape: X, of a decoded member.

    Raises InputError where decode is no function.
    """
    for name, given in (("decode", decode), ("encode", encode)):
        if not callable(given) and not (given is None and name == "encode"):
            raise InputError(f"{name} is a {type(given).__name__}; expected a function of a batch")
    kinds = {Drawable: _Draws, Flowing: _Flows, White: _IsWhite}
    able = [kind for ability, kind in kinds.items() if isinstance(prior, ability)]
    able += [_Encodes] if encode is not None else []
    kind = type("Latent", (*able, Latent), {"__module__": __name__})
    return kind(prior, decode, tuple(shape), encode)


def decode_vjp(prior: Decoding, z: Tensor, v: Tensor) -> Tensor:
    """J_decode(z)^T v, (J, *Z) and (J, *X) to (J, *Z), by autograd.

    Raises MissingCapability where the decoder is not made of differentiable tensor operations.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        x = prior.decode(z)
        if not x.requires_grad:
            raise MissingCapability(
                "this method", "a decoder that torch can differentiate", "enkg does without"
            )
        return torch.autograd.grad(x, z, v.to(x))[0]
