"""The Gaussian around which a network learns.

Karras et al. precondition a network with the denoiser of N(0, sigma_data^2 I): the network adds
what this denoiser misses, in units of its error. Here the Gaussian may be any, and the better it
is, the less is left to learn. With C the covariance, mean m, J = C (C + sigma^2)^-1:

    D_0(x, sigma)  = m + J (x - m)                 the best linear denoiser
    e_0(sigma)^2   = 1/d tr(sigma^2 J)             its mean square error a point
    a(sigma)^2     = 1/d tr(sigma^2 (1 - J))       that of x - D_0, taken for noise
    b(sigma)^2     = 1/d tr(C J)                   that of D_0 - m, kept

so that (x_0 - D_0) / e_0 has unit variance at every level, and at large sigma, where D_0 is exact,
nothing is left to do. With C = I this is the published form.

References: Karras et al. 2022, arXiv 2206.00364, section 5; Wang and Vastola 2024, arXiv 2412.09726
(how far the Gaussian denoiser alone carries).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from scipy.linalg import eigh
from torch import Tensor

from enkg.arrays import rows
from enkg.errors import InputError

Kind = Literal["white", "spectrum", "components"]


@dataclass(frozen=True, eq=False)
class Base:
    """N(m, T^-1 diag(variance) T + rest (1 - T^-1 T)), in the prior's numbers; float32 tensors.

    mean: m, shape X. variance: shape (K,) along the columns of `basis`, (d, K) and orthonormal; or
    one for each wavenumber of the last two axes, shape X, where there is no basis. rest: the
    variance of a point outside the basis.
    """

    mean: Tensor
    variance: Tensor
    rest: Tensor = field(default_factory=lambda: torch.tensor(0.0))
    basis: Tensor | None = None

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D_0, (B, *X) and (B,) to (B, *X)."""
        mean = self.mean.to(x)
        noise = _column(sigma, x.dim()) ** 2
        variance = self.variance.to(x)
        if self.basis is None:
            gain = variance / (variance + noise)
            f = torch.fft.fft2(x - mean)
            return mean + torch.fft.ifft2(gain * f).real
        plain = rows(x - mean)
        basis = self.basis.to(x)
        noise = noise.reshape(-1, 1)
        outside = self.rest / (self.rest + noise)
        inside = (variance / (variance + noise) - outside) * (plain @ basis)
        return mean + (outside * plain + inside @ basis.T).reshape(x.shape)

    def error(self, sigma: Tensor) -> Tensor:
        """e_0, the root of the mean square error a point, (B,) to (B,)."""
        noise = sigma.reshape(-1, 1) ** 2
        return self._mean(lambda c: c * noise / (c + noise)).sqrt()

    def taken(self, sigma: Tensor) -> Tensor:
        """a, the standard deviation of x - D_0: what is taken for noise, (B,) to (B,)."""
        noise = sigma.reshape(-1, 1) ** 2
        return self._mean(lambda c: noise**2 / (c + noise)).sqrt()

    def kept(self, sigma: Tensor) -> Tensor:
        """b, the standard deviation of D_0 - m: what is kept, (B,) to (B,)."""
        noise = sigma.reshape(-1, 1) ** 2
        return self._mean(lambda c: c**2 / (c + noise)).sqrt()

    def _mean(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """1/d tr f(C), of a function of variances, (1, K) to (B, K)."""
        variance, d = self.variance.reshape(1, -1), self.mean.numel()
        inside = f(variance).sum(dim=1)
        if variance.numel() == d:
            return inside / d
        outside = f(self.rest.reshape(1, 1)).squeeze(1)
        return (inside + (d - variance.numel()) * outside) / d

    def prior(self) -> "Linear":
        """Its denoiser as a prior: the best linear one."""
        return Linear(self)

    def arrays(self) -> dict[str, Tensor]:
        """All of it, to be stored."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def of(cls, arrays: dict[str, Tensor]) -> "Base":
        """The inverse of `arrays`."""
        return cls(arrays["mean"], arrays["variance"], arrays["rest"], arrays.get("basis"))


@dataclass(frozen=True, eq=False)
class Linear:
    """The linear denoiser of a `Base`, as a prior."""

    base: Base

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.mean.shape)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """D_0, (J, *X) to (J, *X)."""
        return self.base.denoise(x, torch.full((len(x),), float(sigma)).to(x))


def fitted(kind: Kind, samples: Tensor, components: int = 256) -> Base:
    """The Gaussian of that kind for samples in the prior's numbers, shape (N, *X).

    white: N(0, I). spectrum: the mean of each point and the power of each wavenumber, for fields
    on the torus. components: mean and covariance along the first principal components, isotropic
    outside them; where there are fewer samples than numbers, at most half as many components as
    samples, since what is left over tells the variance outside. Symmetries enter through the
    samples: give symmetrised ones.
    """
    shape = tuple(samples.shape[1:])
    if kind == "white":
        d = samples[0].numel()
        return Base(torch.zeros(shape), torch.zeros(0), torch.tensor(1.0), torch.zeros(d, 0))
    x = samples.double()
    mean = x.mean(dim=0)
    if kind == "spectrum":
        if len(shape) < 2:
            raise InputError(f"a base of kind 'spectrum' wants members (.., H, W), not {shape}")
        power = torch.fft.fft2(x - mean, norm="ortho").abs().square().mean(dim=0)
        flipped = power.flip(-2, -1).roll((1, 1), (-2, -1))  # the power at -k
        return Base(mean.float(), (0.5 * (power + flipped)).float())
    if kind != "components":
        raise InputError(f"base is {kind!r}; expected 'white', 'spectrum' or 'components'")
    centred = rows(x - mean)
    d = centred.shape[1]
    keep = min(components, d if len(x) > d else max(1, (len(x) - 1) // 2))
    total = float(centred.square().sum()) / (len(x) - 1)
    if len(x) <= d:
        basis = torch.linalg.qr(centred.T @ _leading(centred @ centred.T, keep))[0]
    else:
        basis = _leading(centred.T @ centred, keep)
    variance = (centred @ basis).square().sum(dim=0) / (len(x) - 1)
    rest = max(total - float(variance.sum()), 0.0) / (d - keep) if keep < d else 0.0
    return Base(mean.float(), variance.float(), torch.tensor(rest), basis.contiguous().float())


def _leading(gram: Tensor, count: int) -> Tensor:
    """The eigenvectors of the largest eigenvalues of a symmetric matrix, as columns."""
    n = len(gram)
    found = eigh(gram.numpy(), subset_by_index=[n - count, n - 1], overwrite_a=True)[1]
    return torch.from_numpy(found[:, ::-1].copy())


def _column(sigma: Tensor, dims: int) -> Tensor:
    return sigma.reshape(-1, *(1,) * (dims - 1))
