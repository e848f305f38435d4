"""Priors: what the unknown looks like, as a denoiser at every noise level.

A prior is anything with a `shape` and a `denoise`. Four more abilities are optional, each a
protocol of its own: `Drawable` priors give exact samples, `Flowing` ones know their
probability-flow map in closed form, `Differentiable` ones the Jacobian of their denoiser, `White`
ones are Gaussian. Of the two exact priors of this module the Gaussian has all, the mixture the
first and the third.

Notation: x_sigma = x_0 + sigma n, D(x, sigma) = E[x_0 | x_sigma = x].

References: Karras et al. 2022, arXiv 2206.00364 (denoiser and probability flow, variance-exploding
form); Efron 2011, "Tweedie's formula and selection bias" (score = (D - x) / sigma^2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol, runtime_checkable

import torch
from numpy import ndarray
from torch import Tensor

from enkg import random
from enkg.arrays import rows, tensor
from enkg.errors import InputError, MissingCapability
from enkg.random import Stream
from enkg.transform import Eigenbasis, Identity, Transform

Array = Tensor | ndarray


@runtime_checkable
class Prior(Protocol):
    """The one thing that every method needs."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape X of one member."""
        ...

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """E[x_0 | x_sigma = x], shape (J, *X) to (J, *X), row by row, for one sigma > 0."""
        ...


@runtime_checkable
class Drawable(Protocol):
    """A prior that gives exact samples without integrating a flow."""

    def draw(self, seed: int, members: Sequence[int], step: int) -> Tensor:
        """Exact samples, shape (len(members), *X), float64, keyed by (seed, member, step)."""
        ...


@runtime_checkable
class Flowing(Protocol):
    """A prior whose probability-flow map is known in closed form."""

    def flow(self, x: Tensor, sigma: float, to: float) -> Tensor:
        """Carries x_sigma to the noise level `to` (0 is allowed), shape (J, *X) to (J, *X)."""
        ...


@runtime_checkable
class White(Protocol):
    """A Gaussian prior, written as the image of white noise: x = m + sum_k scales_k z_k e_k."""

    @property
    def scales(self) -> Tensor:
        """Standard deviation of each coordinate, shape (K,)."""
        ...

    def from_white(self, z: Tensor) -> Tensor:
        """Standard normal coordinates (J, K) to members (J, *X)."""
        ...


@runtime_checkable
class Differentiable(Protocol):
    """A prior that knows the Jacobian J_D of its denoiser."""

    def vjp(self, x: Tensor, sigma: float, v: Tensor) -> Tensor:
        """J_D(x, sigma)^T v, row by row, (J, *X) and (J, *X) to (J, *X)."""
        ...


@runtime_checkable
class Placed(Protocol):
    """A prior that computes in chunks, and is told which of all members come first on this rank.

    So each member has the same place in its chunk, and the same last bits, on any number of ranks.
    """

    first: int


def vjp(prior: Prior, x: Tensor, sigma: float, v: Tensor) -> Tensor:
    """J_D(x, sigma)^T v, (J, *X): from the prior where it is `Differentiable`, else by autograd.

    Raises MissingCapability where the denoiser is not made of differentiable tensor operations.
    """
    if isinstance(prior, Differentiable):
        return prior.vjp(x, sigma, v)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = prior.denoise(x, sigma)
        if not denoised.requires_grad:
            raise MissingCapability(
                "this method",
                "a denoiser that torch can differentiate, or a prior with vjp(x, sigma, v)",
                "enkg, es-mda and weighted do without",
            )
        return torch.autograd.grad(denoised, x, v.to(denoised))[0]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, T^-1 diag(variance) T) with an orthonormal transform T.

    Arrays may be NumPy arrays or tensors. mean: shape X. variance: shape (K,), not negative, in the
    coordinates of `transform` (`Identity`, `RealFourier` or `Eigenbasis`). Everything is exact,
    with J = C / (C + sigma^2) in these coordinates:

        D(x, sigma)        = m + J (x - m)
        flow sigma -> to   = m + sqrt((C + to^2) / (C + sigma^2)) (x - m)

    Cost of a call: two transforms.
    """

    mean: Tensor
    variance: Tensor
    transform: Transform

    def __post_init__(self) -> None:
        _as_tensors(self, "mean", "variance")
        _check_mean(self.mean, self.transform)
        _check_variance(self.variance, self.transform)

    @classmethod
    def from_covariance(cls, mean: Array, covariance: Array) -> "Gaussian":
        """From a dense covariance, shape (d, d) for a mean of d elements (any shape)."""
        mean, covariance = tensor(mean), tensor(covariance)
        d = mean.numel()
        if tuple(covariance.shape) != (d, d):
            raise InputError(
                f"the covariance has shape {tuple(covariance.shape)}; a mean of shape "
                f"{tuple(mean.shape)} needs ({d}, {d})"
            )
        scale = float(covariance.abs().max())
        if not float((covariance - covariance.T).abs().max()) <= 1e-6 * scale:
            raise InputError("the covariance of the prior is not symmetric (or holds NaN)")
        values, vectors = torch.linalg.eigh(covariance.double())
        rounding = 1e-5 if covariance.dtype == torch.float32 else 1e-8
        if float(values[0]) < -rounding * scale:
            raise InputError(
                f"the covariance of the prior has the negative eigenvalue {float(values[0]):.3g}"
            )
        return cls(mean, values.clamp(min=0), Eigenbasis(vectors, tuple(mean.shape)))

    @classmethod
    def from_samples(cls, samples: Array, components: int | None = None) -> "Gaussian":
        """Moments of samples, shape (N, *X), along their principal components.

        `components`: how many to keep, at most N - 1; None keeps all. The variance outside them is
        dropped.
        """
        samples = tensor(samples)
        if samples.dim() < 1 or len(samples) < 2:
            raise InputError(f"samples of shape {tuple(samples.shape)}; expected (N, *X), N >= 2")
        keep = min(len(samples) - 1, samples[0].numel())
        if components is not None:
            if not 1 <= components <= keep:
                raise InputError(
                    f"{components} components asked of {len(samples)} samples; "
                    f"between 1 and {keep} are there"
                )
            keep = components
        mean = samples.double().mean(dim=0)
        centred = rows(samples.double() - mean)
        _, s, vt = torch.linalg.svd(centred, full_matrices=False)
        variance = s[:keep] ** 2 / (len(samples) - 1)
        return cls(mean, variance, Eigenbasis(vt[:keep].T.contiguous(), tuple(mean.shape)))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.transform.shape

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        variance, mean = self.variance.to(x), self.mean.to(x)
        z = self.transform.forward(x - mean)
        return mean + self.transform.inverse(variance / (variance + sigma**2) * z)

    def vjp(self, x: Tensor, sigma: float, v: Tensor) -> Tensor:
        variance = self.variance.to(v)
        gain = variance / (variance + sigma**2)
        return self.transform.inverse(gain * self.transform.forward(v))

    def flow(self, x: Tensor, sigma: float, to: float) -> Tensor:
        # Directions without variance (outside a truncated basis) shrink by to / sigma.
        variance, mean = self.variance.to(x), self.mean.to(x)
        shrink = to / sigma
        gain = ((variance + to**2) / (variance + sigma**2)).sqrt() - shrink
        return (
            mean
            + shrink * (x - mean)
            + self.transform.inverse(gain * self.transform.forward(x - mean))
        )

    def draw(self, seed: int, members: Sequence[int], step: int) -> Tensor:
        size = (self.transform.size,)
        return self.from_white(random.normal(size, seed, Stream.INITIAL, members, step))

    @property
    def scales(self) -> Tensor:
        return self.variance.sqrt()

    def from_white(self, z: Tensor) -> Tensor:
        return self.mean.to(z) + self.transform.inverse(self.scales.to(z) * z)


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of Gaussians of equal weight and equal covariance: kernel-density prior.

    p(x) = 1/N sum_i N(x; m + T^-1 a_i, T^-1 diag(L) T), exact and without training. centres: the
    a_i, shape (N, K). kernel: L, shape (K,), positive. mean: m, shape X. With v = L + sigma^2 and
    w = softmax_i(-1/2 sum_k (z_k - a_ik)^2 / v_k) at z = T(x - m):

        D(x, sigma) = m + T^-1 [ sum_i w_i a_i + L / v (z - sum_i w_i a_i) ]

    Cost of a call: two products of (J, K) and (N, K) matrices. The flow has no closed form.
    """

    centres: Tensor
    kernel: Tensor
    mean: Tensor
    transform: Transform

    def __post_init__(self) -> None:
        _as_tensors(self, "centres", "kernel", "mean")
        _check_mean(self.mean, self.transform)
        _check_variance(self.kernel, self.transform)
        if bool((self.kernel <= 0).any()):
            raise InputError("the kernel variance of a mixture must be positive everywhere")
        if self.centres.dim() != 2 or self.centres.shape[1] != self.transform.size:
            raise InputError(
                f"the centres have shape {tuple(self.centres.shape)}; the transform needs "
                f"(N, {self.transform.size})"
            )
        if not bool(self.centres.isfinite().all()):
            raise InputError("the centres of the mixture hold NaN or infinity")

    @classmethod
    def from_samples(cls, samples: Array, bandwidth: float) -> "Mixture":
        """Kernel density of samples, shape (N, *X), with an isotropic kernel of that width."""
        samples = tensor(samples)
        if samples.dim() < 1:
            raise InputError(f"samples of shape {tuple(samples.shape)}; expected (N, *X)")
        if not bandwidth > 0:
            raise InputError(f"bandwidth {bandwidth}; expected a positive width, in prior units")
        shape = tuple(samples.shape[1:])
        kernel = torch.full((prod(shape),), bandwidth**2, dtype=torch.float64)
        mean = samples.double().mean(dim=0)
        return cls(rows(samples.double() - mean), kernel, mean, Identity(shape))

    @classmethod
    def shrunken(cls, gaussian: Gaussian, coefficients: Array, eta: float = 0.5) -> "Mixture":
        """The mixture whose first two moments are those of the Gaussian.

        coefficients: samples in the Gaussian's coordinates, shape (N, K), covariance
        diag(variance). Centres shrink by sqrt(1 - eta^2), the kernel is eta^2 of the variance; eta
        = 1 is the Gaussian itself (West 1993, "Approximating posterior distributions by mixtures").
        """
        if not 0 < eta <= 1:
            raise InputError(f"eta is {eta}; expected 0 < eta <= 1")
        return cls(
            (1 - eta**2) ** 0.5 * tensor(coefficients),
            eta**2 * gaussian.variance,
            gaussian.mean,
            gaussian.transform,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.transform.shape

    def weights(self, z: Tensor, sigma: float) -> Tensor:
        """Posterior probability of each component given coefficients z, (J, K) to (J, N)."""
        # In float64, because the squares cancel. |z|^2 is common to all and drops out.
        wide = z.double()
        scale = (self.kernel.to(wide) + sigma**2).rsqrt()
        wide, a = wide * scale, self.centres.to(wide) * scale
        return torch.softmax(wide @ a.T - 0.5 * a.square().sum(dim=1), dim=1).to(z)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        mean, kernel = self.mean.to(x), self.kernel.to(x)
        z = self.transform.forward(x - mean)
        blend = self.weights(z, sigma) @ self.centres.to(x)
        return mean + self.transform.inverse(blend + kernel / (kernel + sigma**2) * (z - blend))

    def vjp(self, x: Tensor, sigma: float, v: Tensor) -> Tensor:
        # T J_D T^-1 = L / (L + sigma^2) + sigma^2 V Cov_w(a) V with V = 1 / (L + sigma^2).
        kernel, a = self.kernel.to(x), self.centres.to(x)
        inverse = 1 / (kernel + sigma**2)
        weights = self.weights(self.transform.forward(x - self.mean.to(x)), sigma)
        u = self.transform.forward(v.to(x))
        along = (u * inverse) @ a.T
        along = weights * (along - (weights * along).sum(dim=1, keepdim=True))
        return self.transform.inverse(kernel * inverse * u + sigma**2 * inverse * (along @ a))

    def draw(self, seed: int, members: Sequence[int], step: int) -> Tensor:
        which = random.choose(len(self.centres), seed, Stream.COMPONENT, members, step)
        z = random.normal((self.transform.size,), seed, Stream.INITIAL, members, step)
        z = self.centres.double()[which] + self.kernel.double().sqrt() * z
        return self.mean.double() + self.transform.inverse(z)


def _as_tensors(prior: object, *names: str) -> None:
    """Lets the fields of a frozen prior be given as NumPy arrays."""
    for name in names:
        object.__setattr__(prior, name, tensor(getattr(prior, name)))


def _check_mean(mean: Tensor, transform: Transform) -> None:
    if tuple(mean.shape) != tuple(transform.shape):
        raise InputError(
            f"the prior's mean has shape {tuple(mean.shape)}, its transform {transform.shape}"
        )
    if not bool(mean.isfinite().all()):
        raise InputError("the prior's mean holds NaN or infinity")


def _check_variance(variance: Tensor, transform: Transform) -> None:
    if tuple(variance.shape) != (transform.size,):
        raise InputError(
            f"the prior's variance has shape {tuple(variance.shape)}; its transform has "
            f"{transform.size} coefficients"
        )
    if not bool(variance.isfinite().all()) or bool((variance < 0).any()):
        raise InputError("the prior's variance must be finite and nowhere negative")
