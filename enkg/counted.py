"""The prior as a run sees it: in chunks of one size, with its calls counted.

Every call gets exactly `chunk` members, and the chunks begin at multiples of this among the members
of all ranks; what other ranks hold of a chunk is filled up by repeating. So what a member gets does
not depend on who shares its process: the last bits of a product of matrices depend on the number of
rows, and on the place of a row among them. It also bounds the memory that a network needs.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from enkg.errors import InputError
from enkg.latent import Decoding, Encoding, decode_vjp
from enkg.machine import threads
from enkg.prior import Drawable, Flowing, Prior, White, vjp

log = logging.getLogger("enkg")

ON_CPU = 16
"""Members of a chunk on a CPU: enough for its caches, few enough that filling up costs little."""
ON_GPU = 256
"""Members of the first chunk on a GPU; halved until it fits."""


class Counted:
    """A prior that counts its calls and products with its Jacobian, one a member, fillings not.

    cores: threads of the prior's work. first: see `enkg.prior.Placed`.
    """

    def __init__(self, prior: Prior, chunk: int, cores: int) -> None:
        self.inner: Any = prior
        self.shape = prior.shape
        self.chunk, self.cores = chunk, cores
        self.calls = self.vjps = self.first = 0

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        self.calls += len(x)
        return self._chunked(x, lambda part: self._denoised(part, sigma))

    def _denoised(self, x: Tensor, sigma: float) -> Tensor:
        denoised = self.inner.denoise(x, sigma)
        if denoised.shape != x.shape:
            raise InputError(
                f"the prior's denoiser was given shape {tuple(x.shape)} and returned "
                f"{tuple(denoised.shape)}"
            )
        return denoised

    def vjp(self, x: Tensor, sigma: float, v: Tensor) -> Tensor:
        """See `enkg.prior.vjp`; counted as `vjps`."""
        if not len(x):
            return x
        self.vjps += len(x)
        v = v.to(x)
        places = torch.arange(len(x), device=x.device)
        return self._chunked(places, lambda part: vjp(self.inner, x[part], sigma, v[part]))

    def _chunked(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        done: list[Tensor] = []
        first = 0
        with threads(self.cores):
            while first < len(x):
                before = (self.first + first) % self.chunk
                part = x[first : first + self.chunk - before]
                after = self.chunk - before - len(part)
                try:
                    done.append(f(_filled(part, before, after))[before : before + len(part)])
                except torch.OutOfMemoryError:
                    if self.chunk == 1:
                        raise
                    self.chunk //= 2
                    log.warning("out of GPU memory: the prior gets %d members at once", self.chunk)
                    continue
                first += len(part)
        return torch.cat(done) if done else x


def _filled(part: Tensor, before: int, after: int) -> Tensor:
    if not before and not after:
        return part
    tail = part.shape[1:]
    return torch.cat([part[:1].expand(before, *tail), part, part[-1:].expand(after, *tail)])


class _Draws(Counted):
    def draw(self, seed: int, members: Sequence[int], step: int) -> Tensor:
        if not len(members):
            return torch.empty(0, *self.shape, dtype=torch.float64)
        return self._chunked(
            torch.tensor(list(members)),
            lambda part: self.inner.draw(seed, part.tolist(), step),
        )


class _Flows(Counted):
    def flow(self, x: Tensor, sigma: float, to: float) -> Tensor:
        self.calls += len(x)  # the closed form costs as much as one denoiser call
        return self._chunked(x, lambda part: self.inner.flow(part, sigma, to))


class _IsWhite(Counted):
    @property
    def scales(self) -> Tensor:
        return self.inner.scales

    def from_white(self, z: Tensor) -> Tensor:
        if not len(z):
            return z.new_empty(0, *self.shape)
        return self._chunked(z, self.inner.from_white)


class _Decodes(Counted):
    @property
    def decoded_shape(self) -> tuple[int, ...]:
        return self.inner.decoded_shape

    def decode(self, z: Tensor) -> Tensor:
        if not len(z):
            return z.new_empty(0, *self.decoded_shape)
        return self._chunked(z, self.inner.decode)

    def decode_vjp(self, z: Tensor, v: Tensor) -> Tensor:
        """See `enkg.latent.decode_vjp`."""
        places = torch.arange(len(z), device=z.device)
        if not len(z):
            return z
        return self._chunked(places, lambda part: decode_vjp(self.inner, z[part], v[part]))


class _Encodes(Counted):
    def encode(self, x: Tensor) -> Tensor:
        if not len(x):
            return x.new_empty(0, *self.shape)
        return self._chunked(x, self.inner.encode)


def counted(prior: Prior, chunk: int | None, device: torch.device, cores: int) -> Counted:
    """The same prior, with just the abilities that it has."""
    abilities = {Drawable: _Draws, Flowing: _Flows, White: _IsWhite}
    abilities |= {Decoding: _Decodes, Encoding: _Encodes}
    able = tuple(kind for ability, kind in abilities.items() if isinstance(prior, ability))
    default = ON_CPU if device.type == "cpu" else ON_GPU
    return type("Counted", (*able, Counted), {})(prior, chunk or default, cores)
