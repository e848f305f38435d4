"""What a simulator may offer beside its answers: gradient, adjoint, pseudo-inverse, SVD, and more.

All of them take and give NumPy arrays in the simulator's units, rows being members:

    vjp(x, v)     J_G(x)^T v                   (B, *X), (B, *Y) to (B, *X)
    adjoint(v)    A^T v of a linear simulator  (B, *Y) to (B, *X)
    pinv(y)       A^+ y of a linear simulator, or a guess at the inverse of another one
                                               (B, *Y) to (B, *X)
    svd           A = U diag(s) V^T of a linear simulator, see `SVD`
    project       of a simulator of magnitudes: the objects that have them, see `Projection`

They are attributes of the simulator itself, or fields of the `Function` around it. An SVD brings
adjoint and pseudo-inverse with it, an adjoint the gradient. A failed row is NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy import ndarray

from enkg.errors import MissingCapability
from enkg.simulator import Opening

Ability = Literal["vjp", "adjoint", "pinv", "svd", "project"]
ABILITIES: tuple[Ability, ...] = get_args(Ability)
CALLED = {
    "vjp": "a simulator with a gradient, vjp(x, v)",
    "adjoint": "a linear simulator with its transpose, adjoint(v)",
    "pinv": "a simulator with a pseudo-inverse, pinv(y)",
    "svd": "a linear simulator with its singular value decomposition, svd",
    "project": "a simulator of magnitudes with the projection onto them, project",
}


class SVD(Protocol):
    """The compact decomposition of a linear simulator, K singular values, none of them zero."""

    @property
    def s(self) -> ndarray:
        """Singular values, shape (K,)."""
        ...

    def ut(self, y: ndarray) -> ndarray:
        """U^T y, (B, *Y) to (B, K)."""
        ...

    def u(self, z: ndarray) -> ndarray:
        """U z, (B, K) to (B, *Y)."""
        ...

    def vt(self, x: ndarray) -> ndarray:
        """V^T x, (B, *X) to (B, K)."""
        ...

    def v(self, z: ndarray) -> ndarray:
        """V z, (B, K) to (B, *X)."""
        ...


class Projection(Protocol):
    """The objects with given magnitudes, for y = |F u| with a unitary transform F.

    An object u is real, lies on a grid P of its own, which may be larger than that of a member, is
    not negative on its support and zero elsewhere. Its units are the simulator's own.
    """

    @property
    def support(self) -> ndarray:
        """Where an object may differ from zero, bool, (*P)."""
        ...

    def onto(self, u: ndarray, y: ndarray) -> ndarray:
        """The nearest real arrays whose magnitudes are y, (B, *P) and (*Y) to (B, *P).

        A magnitude that is NaN in y stays as it is in u.
        """
        ...

    def crop(self, u: ndarray) -> ndarray:
        """The members x of objects, (B, *P) to (B, *X): what the simulator takes."""
        ...


@dataclass(frozen=True, eq=False)
class Abilities:
    """What one simulator offers; None for what it does not."""

    vjp: Callable[[ndarray, ndarray], ndarray] | None = None
    adjoint: Callable[[ndarray], ndarray] | None = None
    pinv: Callable[[ndarray], ndarray] | None = None
    svd: SVD | None = None
    project: Projection | None = None

    def names(self) -> tuple[Ability, ...]:
        """Those that are there."""
        return tuple(name for name in ABILITIES if getattr(self, name) is not None)


def of(simulator: Any) -> Abilities:
    """The abilities of a simulator or adapter, with those that follow from others."""
    found = {field.name: _found(simulator, field.name) for field in fields(Abilities)}
    svd: SVD | None = found["svd"]
    if svd is not None:
        found["adjoint"] = found["adjoint"] or (lambda v: svd.v(svd.ut(v) * svd.s))
        found["pinv"] = found["pinv"] or (lambda y: svd.v(svd.ut(y) / svd.s))
    adjoint = found["adjoint"]
    if adjoint is not None and found["vjp"] is None:
        found["vjp"] = lambda x, v: np.where(_finite(x), adjoint(v), np.nan)
    return Abilities(**found)


def require(simulator: Any, needs: tuple[Ability, ...], method: str) -> None:
    """Raises MissingCapability for the first need that the simulator does not meet."""
    there = of(simulator).names()
    for need in needs:
        if need not in there:
            raise MissingCapability(
                method,
                CALLED[need],
                f"{_called(simulator)} has {', '.join(there) or 'none of these'}; enkg, es-mda, "
                "weighted and daps-mh need nothing but its answers",
            )


def _found(simulator: Any, name: str) -> Any:
    """Of the adapter, else of what is inside."""
    thing = simulator
    while thing is not None:
        found = getattr(thing, name, None)
        if found is not None:
            return found
        thing = _inside(thing)
    return None


def _inside(simulator: Any) -> Any:
    """What an adapter holds: `Function` a function, `Cached` another adapter."""
    if not isinstance(simulator, Opening):
        return None
    return getattr(simulator, "simulator", None) or getattr(simulator, "f", None)


def _called(simulator: Any) -> str:
    while (inside := _inside(simulator)) is not None:
        simulator = inside
    return getattr(simulator, "__name__", type(simulator).__name__)


def _finite(x: ndarray) -> ndarray:
    good = np.isfinite(x.reshape(len(x), -1)).all(axis=1)
    return good.reshape(-1, *(1,) * (x.ndim - 1))
