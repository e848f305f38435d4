"""Orthonormal transforms in which a prior's covariance is diagonal.

Each maps members, shape (J, *X), to coefficients, shape (J, K), and back. The rows that span the
transform are orthonormal, so white noise of standard deviation sigma stays white noise of the same
standard deviation.
"""

from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from enkg.arrays import rows, tensor
from enkg.errors import InputError


class Transform(Protocol):
    """What a diagonal prior needs to know about its coordinates."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one member."""
        ...

    @property
    def size(self) -> int:
        """Number K of coefficients."""
        ...

    def forward(self, x: Tensor) -> Tensor:
        """Members (J, *X) to coefficients (J, K)."""
        ...

    def inverse(self, z: Tensor) -> Tensor:
        """Coefficients (J, K) to members (J, *X)."""
        ...


@dataclass(frozen=True)
class Identity:
    """The coefficients are the elements themselves."""

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return rows(x)

    def inverse(self, z: Tensor) -> Tensor:
        return z.reshape(-1, *self.shape)


@dataclass(frozen=True)
class RealFourier:
    """The real Fourier basis cos + sin on a torus, for fields on a periodic grid.

    The coefficient of wavenumber k is Re F_k - Im F_k of the orthonormal Fourier transform F
    (Hartley 1942, Bracewell 1984). This transform is orthonormal and its own inverse. A variance
    that is the same at k and -k makes the field stationary.
    """

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(1, len(self.shape) + 1))
        f = torch.fft.fftn(x, dim=axes, norm="ortho")
        return rows(f.real - f.imag)

    def inverse(self, z: Tensor) -> Tensor:
        return self.forward(z.reshape(-1, *self.shape)).reshape(-1, *self.shape)


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """A dense basis: orthonormal columns, shape (d, K) with K <= d.

    With K < d the directions outside the span have no variance.
    """

    basis: Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "basis", tensor(self.basis))
        d = prod(self.shape)
        if self.basis.dim() != 2 or self.basis.shape[0] != d or self.basis.shape[1] > d:
            raise InputError(
                f"the basis has shape {tuple(self.basis.shape)}; members of shape {self.shape} "
                f"need ({d}, K) with K at most {d}"
            )
        gram = self.basis.double().T @ self.basis.double()
        worst = float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max())
        if not worst < 1e-3:
            raise InputError(
                f"the columns of the basis are not orthonormal: basis^T basis differs from the "
                f"identity by {worst:.2g}; torch.linalg.qr makes them so"
            )

    @property
    def size(self) -> int:
        return self.basis.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return rows(x) @ self.basis.to(x)

    def inverse(self, z: Tensor) -> Tensor:
        return (z @ self.basis.to(z).T).reshape(-1, *self.shape)
