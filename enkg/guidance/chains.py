"""Independent chains: what the methods share whose members know nothing of each other.

A chain's step is a function of its own state, of its own random numbers and of its own simulator
calls. So one that fails harms no other, and any number of chains, in any batches and on any ranks,
gives each of them the same last bits.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast, get_args, get_type_hints

import torch
from torch import Tensor

from enkg.arrays import rows
from enkg.comm import ALONE, Comm, once
from enkg.errors import InputError, MissingCapability
from enkg.guidance.base import Forward, Guidance, State
from enkg.guidance.reverse import Schedule, noise_levels
from enkg.observation import Observation
from enkg.prior import Prior, White, vjp
from enkg.sample import start


class Decomposed(Protocol):
    """A = U diag(s) V^T in prior units, without zeros: K singular values."""

    s: Tensor

    def ut(self, y: Tensor, /) -> Tensor: ...
    def u(self, z: Tensor, /) -> Tensor: ...
    def vt(self, x: Tensor, /) -> Tensor: ...
    def v(self, z: Tensor, /) -> Tensor: ...


class Projection(Protocol):
    """See `enkg.operator.Projection`."""

    support: Tensor

    def onto(self, u: Tensor, y: Tensor, /) -> Tensor: ...
    def crop(self, u: Tensor, /) -> Tensor: ...


class Operator(Protocol):
    """The simulator with its linear algebra, in prior units, rows of this rank.

    See `enkg.operator.Operator`. What a simulator does not have raises MissingCapability; a method
    names it in `needs`, so that this happens before anything runs.
    """

    def __call__(self, x0: Tensor) -> Tensor:
        """Data of the members of all ranks."""
        ...

    def vjp(self, x0: Tensor, v: Tensor) -> Tensor:
        """J_G(x0)^T v, (J_r, *X); a failed row is NaN."""
        ...

    def adjoint(self, v: Tensor) -> Tensor:
        """A^T v, (J_r, *Y) to (J_r, *X)."""
        ...

    def linear(self, v: Tensor) -> Tensor:
        """A v, (J_r, *X) to (J_r, *Y)."""
        ...

    def offset(self) -> Tensor:
        """G(0), (*Y), so that G(x) = A x + offset."""
        ...

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, or a guess at the inverse of a nonlinear simulator, (J_r, *Y) to (J_r, *X)."""
        ...

    @property
    def svd(self) -> Decomposed:
        """The singular value decomposition of A."""
        ...

    @property
    def project(self) -> Projection:
        """The projection onto the objects with given magnitudes."""
        ...

    @property
    def pixel(self) -> "Operator":
        """The same for decoded members."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Latent members to decoded ones; others as they are."""
        ...

    def decode_vjp(self, z: Tensor, v: Tensor) -> Tensor:
        """J_decode(z)^T v; v where nothing is decoded."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Decoded members to latent ones."""
        ...


def operator(forward: Forward) -> Operator:
    """The linear algebra behind `forward`."""
    found: Any = forward
    return cast("Operator", found.operator)


@dataclass(frozen=True)
class Chains(Guidance):
    """Base of the methods that guide independent chains."""

    posterior_law: ClassVar[str | None] = None
    begins_at_prior: ClassVar[bool] = False

    members: int = 8
    """Number of chains, each independent of the others."""
    levels: int = 50
    """Number N of noise levels, all of them guided."""
    schedule: Schedule = "karras"
    """Which levels; the variance-preserving ones do not use sigma_max and sigma_min."""
    sigma_max: float = 5.0
    """Highest noise level, in prior units."""
    sigma_min: float = 0.02
    """Lowest noise level before zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.sigmas

    @property
    def sigmas(self) -> list[float]:
        """The noise levels, zero at the end."""
        return noise_levels(self.schedule, self.levels, self.sigma_max, self.sigma_min)

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        """Chains at the highest level, from the noised prior. No simulator call."""
        sigma, members = self.sigmas[0], self.own_members(prior, comm)
        x = start(prior, sigma, seed, members, like, sigma_max=max(80.0, sigma))
        return State(x, members, seed, sigma=sigma, comm=comm)

    def doubts(self, prior: Prior) -> tuple[str, ...]:
        if not isinstance(prior, White):
            return ()
        highest, widest = self.sigmas[0], float(prior.scales.max())
        if highest >= widest:
            return ()
        return (
            f"begins at noise level {highest:.3g}, below the prior's largest standard deviation in "
            f"any direction, {widest:.3g}: what is not hidden by noise there is never guided; "
            "raise sigma_max",
        )

    def drop(self, state: State, living: Tensor) -> State:
        """A chain whose simulator failed in a step makes that step unguided, and goes on."""
        return state


@dataclass(frozen=True, eq=False)
class Slope:
    """Misfit and gradient of each chain of this rank.

    gradient: d Phi(G(x0)) / d x0, (J_r, *X), float64; 0 for a chain whose simulator or gradient
    failed. misfit: Phi, (J_r,), float64; NaN for a chain whose simulator failed. y: data, (J_r,
    *Y). everyone: the data of all chains, (J, *Y).
    """

    gradient: Tensor
    misfit: Tensor
    y: Tensor
    everyone: Tensor


def slope(state: State, x0: Tensor, forward: Forward, observation: Observation) -> Slope:
    """Gradient of the misfit at x0, (J_r, *X). One call and one product a chain. Collective."""
    everyone = forward(x0)
    y = state.own(everyone)
    alive = rows(y).isfinite().all(dim=1)
    safe = torch.where(each(alive, y), y, 0.0)
    misfit = torch.where(alive, observation.misfit(safe), torch.nan)
    back = operator(forward).vjp(x0, observation.gradient(safe).to(x0)).double()
    return Slope(finite(torch.where(each(alive, back), back, 0.0)), misfit, y, everyone)


def misfit_per_datum(everyone: Tensor, observation: Observation) -> float | None:
    """|whitened residual|^2 / m, averaged over the chains that did not fail; for `Info`."""
    living = everyone[rows(everyone).isfinite().all(dim=1)]
    return observation.misfit_per_datum(living) if len(living) else None


def finite(shift: Tensor) -> Tensor:
    """Zero in place of each row that is not finite."""
    return torch.where(each(rows(shift).isfinite().all(dim=1), shift), shift, 0.0)


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each chain, (J_r, *X) twice to (J_r,), float64; the same in any batch.

    NumPy sums each row by itself, in one order.
    """
    product = (rows(a).double() * rows(b).double()).cpu().contiguous().numpy()
    return torch.from_numpy(product.sum(axis=1)).to(a.device)


def each(values: Tensor, like: Tensor) -> Tensor:
    """One number a chain, (J_r,), to be multiplied with (J_r, *X)."""
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def pulled_back(prior: Prior, x: Tensor, sigma: float, v: Tensor) -> Tensor:
    """J_D(x, sigma)^T v, (J_r, *X), float64. Rows of v that are zero stay zero.

    One product with the Jacobian of the denoiser for each chain. v may be of any length: the
    Jacobian is given unit vectors.
    """
    length = each(dots(v, v).sqrt(), v)
    length = torch.where(length.isfinite(), length, 0.0)
    unit = torch.where(length > 0, v / length, 0.0)
    return length * vjp(prior, x, sigma, unit.to(x)).double()


def check_choices(method: Guidance, *names: str) -> None:
    """Raises InputError where a field holds none of the words of its `Literal`."""
    hints = get_type_hints(type(method))
    for name in names:
        value, known = getattr(method, name), get_args(hints[name])
        if value not in known:
            raise InputError(f"{name} is {value!r}; expected one of {', '.join(known)}")


def check_differentiable(prior: Prior, comm: Comm, method: str, sigma: float, like: Tensor) -> None:
    """Raises MissingCapability where J_D^T v cannot be had. One product, no simulator call."""
    zero = torch.zeros(1, *prior.shape, dtype=like.dtype, device=like.device)

    def product() -> None:
        try:
            vjp(prior, zero, sigma, zero)
        except torch.OutOfMemoryError:
            raise
        except (MissingCapability, RuntimeError) as error:  # torch: a denoiser in NumPy
            raise MissingCapability(
                method,
                "a denoiser that torch can differentiate, or a prior with vjp(x, sigma, v)",
                "enkg, es-mda and scg do without",
            ) from error

    once(comm, product)
