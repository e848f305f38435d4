"""The measurement y = G(x) + noise, and everything that the noise covariance decides.

Residuals leave this module whitened: divided by the noise, so that each datum of a calibrated
ensemble has residual of order one whatever its unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from enkg import random
from enkg.arrays import tensor
from enkg.errors import InputError
from enkg.random import Stream


@dataclass(frozen=True, eq=False)
class Observation:
    """A measurement with Gaussian noise.

    y: shape Y, any number of axes. Exactly one of `std` (one number, or one per datum, shape Y) and
    `covariance` (shape (n, n) for the n flattened elements of y). mask: bool, shape Y, True where
    there is a datum; elements outside it may be NaN and are never used. independent: number of
    independent data behind y, where y holds a datum in more than one form (a phase as its cosine
    and sine, say); the misfit per datum and the tempering count these. Arrays may be NumPy arrays
    or tensors.

    All algebra is in float64. `size` is the number m of data in use.
    """

    y: Any
    std: Any = None
    covariance: Any = None
    mask: Any = None
    independent: int | None = None

    def __post_init__(self) -> None:
        y = tensor(self.y, torch.float64)
        mask = torch.ones(y.shape, dtype=torch.bool)
        if self.mask is not None:
            mask = tensor(self.mask)
            if mask.dtype != torch.bool or mask.shape != y.shape:
                raise InputError(
                    f"the mask has shape {tuple(mask.shape)} and type {mask.dtype}; expected bool "
                    f"of the shape of y, {tuple(y.shape)}"
                )
        bad = int((~y[mask].isfinite()).sum())
        if bad:
            raise InputError(
                f"y holds {bad} NaN or infinite values of {y.numel()}; mark missing data with "
                "mask=isfinite(y)"
            )
        if not bool(mask.any()):
            raise InputError("the observation holds no datum: y is empty or fully masked")
        if (self.std is None) == (self.covariance is None):
            raise InputError("give the noise as exactly one of std= and covariance=")
        if self.independent is not None and not 1 <= self.independent <= int(mask.sum()):
            raise InputError(
                f"independent is {self.independent}; expected between 1 and the {int(mask.sum())} "
                "data in use"
            )
        object.__setattr__(self, "y", y)
        object.__setattr__(self, "mask", mask)
        if self.std is not None:
            object.__setattr__(self, "std", _check_std(self.std, y, mask))
        else:
            covariance = tensor(self.covariance, torch.float64)
            if covariance.shape != (y.numel(), y.numel()):
                raise InputError(
                    f"the noise covariance has shape {tuple(covariance.shape)}; y has "
                    f"{y.numel()} elements, so ({y.numel()}, {y.numel()}) is expected"
                )
            object.__setattr__(self, "covariance", covariance)
        _ = self._cholesky  # a covariance that is not positive definite fails here, not later

    @property
    def size(self) -> int:
        """Number of data in use."""
        return int(self.mask.sum())

    @property
    def count(self) -> int:
        """Number of independent data; `size` unless told otherwise."""
        return self.independent or self.size

    @cached_property
    def _cholesky(self) -> Tensor | None:
        if self.covariance is None:
            return None
        keep = self.mask.flatten()
        block = self.covariance[keep][:, keep]
        factor, failed = torch.linalg.cholesky_ex(block)
        symmetric = torch.allclose(block, block.T, rtol=0, atol=1e-8 * float(block.abs().max()))
        if int(failed) or not symmetric:
            raise InputError("the noise covariance is not symmetric and positive definite")
        return factor

    def whiten(self, r: Tensor) -> Tensor:
        """Gamma^(-1/2) r for differences r in the space of y, (J, *Y) to (J, m), float64."""
        r = r.double()[:, self.mask.to(r.device)]
        if self._cholesky is not None:
            return torch.linalg.solve_triangular(self._cholesky.to(r), r.T, upper=False).T
        return r / self.std.to(r)[self.mask.to(r.device)]

    def residual(self, y: Tensor) -> Tensor:
        """Whitened innovation Gamma^(-1/2) (y_observed - y), (J, *Y) to (J, m), float64."""
        return self.whiten(self.y.to(y.device) - y.double())

    def misfit(self, y: Tensor) -> Tensor:
        """Phi = 1/2 |y_observed - y|^2 in the metric of the noise, (J, *Y) to (J,)."""
        return 0.5 * self.residual(y).square().sum(dim=1)

    def gradient(self, y: Tensor) -> Tensor:
        """d Phi / d y = -Gamma^-1 (y_observed - y), (J, *Y) twice, float64; 0 outside the mask."""
        r = -self.residual(y)
        mask = self.mask.to(y.device)
        if self._cholesky is not None:
            r = torch.linalg.solve_triangular(self._cholesky.to(r).T, r.T, upper=True).T
        else:
            r = r / self.std.to(r)[mask]
        out = torch.zeros(len(y), *self.y.shape, dtype=torch.float64, device=y.device)
        out[:, mask] = r
        return out

    @property
    def scale(self) -> float:
        """sigma_y, where the noise is sigma_y^2 I and no datum is missing; else InputError."""
        std = self.std
        if std is None or float(std.max()) != float(std.min()) or not bool(self.mask.all()):
            raise InputError(
                "this method works for noise of one standard deviation and without missing data; "
                "give Observation(y, std=number), or leave missing data to the simulator"
            )
        return float(std.flatten()[0])

    def misfit_per_datum(self, y: Tensor) -> float:
        """Mean over members of 2 Phi over the number of independent data; 1 if calibrated."""
        return float(2 * self.misfit(y).mean()) / self.count

    def noise(self, seed: int, members: Sequence[int], step: int) -> Tensor:
        """Whitened observation noise for perturbed observations, shape (J, m), float64."""
        return random.normal((self.size,), seed, Stream.OBSERVATION, members, step)

    def perturb(self, y: Tensor, seed: int, step: int = 0) -> Tensor:
        """y plus one draw of the noise, for synthetic data: shape Y, masked elements NaN."""
        white = random.normal((self.size,), seed, Stream.SYNTHETIC, [0], step)[0]
        if self._cholesky is not None:
            white = self._cholesky @ white
        else:
            white = self.std[self.mask] * white
        out = torch.full_like(self.y, float("nan"))
        out[self.mask] = y.double()[self.mask] + white
        return out


def _check_std(std: Any, y: Tensor, mask: Tensor) -> Tensor:
    std = tensor(std, torch.float64)
    if std.dim() and std.shape != y.shape:
        raise InputError(
            f"std has shape {tuple(std.shape)}; expected one number or the shape of y, "
            f"{tuple(y.shape)}"
        )
    std = std.expand(y.shape)
    if not bool((std[mask] > 0).all()) or not bool(std[mask].isfinite().all()):
        raise InputError(
            f"the noise std must be positive and finite; the smallest given is "
            f"{float(std[mask].min()):.3g}. For data without noise give the model error you accept"
        )
    return std
