"""The linear algebra of a simulator, in prior units: what gradient methods ask `Forward` for.

Tensors go in and out; rows are members of this rank. Units and a decoder are part of the simulator:

    G(x0) = simulator(units(decode(x0)))
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from enkg import abilities
from enkg.arrays import rows
from enkg.comm import Comm, once
from enkg.counted import counted
from enkg.errors import EnsembleFailure, InputError, MissingCapability
from enkg.execute import Function
from enkg.experiment import Experiment
from enkg.latent import Decoding
from enkg.machine import threads
from enkg.units import Affine


class Asking(Protocol):
    """What an operator needs of `enkg.forward.Forward`."""

    experiment: Experiment
    comm: Comm
    cores: int

    @property
    def count(self) -> Any: ...

    @property
    def pixel(self) -> "Asking": ...

    def __call__(self, x0: Tensor) -> Tensor: ...

    def aside(self, x0: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class SVD:
    """A = U diag(s) V^T without zeros, in prior units; see `enkg.abilities.SVD`."""

    s: Tensor
    ut: Callable[[Tensor], Tensor]
    u: Callable[[Tensor], Tensor]
    vt: Callable[[Tensor], Tensor]
    v: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Projection:
    """See `enkg.abilities.Projection`; objects in the simulator's units, members in prior units.

    onto: (B, *P) and (*Y) to (B, *P), any number of rows; each counted as one `vjp`.
    """

    support: Tensor
    onto: Callable[[Tensor, Tensor], Tensor]
    crop: Callable[[Tensor], Tensor]


def check(experiment: Experiment, name: abilities.Ability, pixels: bool = False) -> None:
    """Raises MissingCapability, or InputError for the units, where a run cannot have that ability.

    pixels: of members that are decoded already.
    """
    method, simulator = type(experiment.guidance).__name__, experiment.simulator
    if experiment.observe is not None:
        raise MissingCapability(
            method,
            abilities.CALLED[name],
            "an experiment with observe= has none: let the simulator give the data themselves",
        )
    if name != "vjp" and not pixels and isinstance(experiment.prior, Decoding):
        raise MissingCapability(
            method, abilities.CALLED[name], "with a decoder before it, it is not linear"
        )
    abilities.require(simulator, (name,), method)
    if name in ("adjoint", "svd"):
        one_scale(experiment)


def one_scale(experiment: Experiment) -> float:
    """The scale of the units; InputError where there is more than one."""
    units = experiment.units
    scale = torch.as_tensor(units.scale) if isinstance(units, Affine) else torch.empty(0)
    if scale.numel() != 1:
        raise InputError(
            f"{type(experiment.guidance).__name__} needs units of one scale, Affine(scale=number): "
            "else the simulator is not linear in the prior's numbers, or has other singular vectors"
        )
    return float(scale)


class Operator:
    """The abilities of one experiment's simulator. vjps: products with its Jacobian, of this rank.

    pixels: leave the decoder out, so that members are decoded ones.
    """

    def __init__(self, forward: Asking, pixels: bool = False) -> None:
        self.forward, self.pixels = forward, pixels
        self.experiment = forward.experiment
        self.able = abilities.of(self.experiment.simulator)
        self.vjps = 0
        self._offset: Tensor | None = None
        self._pixel: Operator | None = None

    def __call__(self, x0: Tensor) -> Tensor:
        """As `Forward`: the data of all members."""
        return self.forward(x0)

    @property
    def pixel(self) -> "Operator":
        """The same for members that are decoded already."""
        if self._pixel is None:
            self._pixel = Operator(self.forward.pixel, pixels=True)
        return self._pixel

    @property
    def all_vjps(self) -> int:
        """Those of decoded members included."""
        return self.vjps + (self._pixel.all_vjps if self._pixel is not None else 0)

    def vjp(self, x0: Tensor, v: Tensor) -> Tensor:
        """J_G(x0)^T v, (J_r, *X) and (J_r, *Y) to (J_r, *X). A row that is not finite is NaN.

        One product with the simulator's Jacobian a member. Raises EnsembleFailure where all fail.
        """
        back = self.pull_back(x0, v)
        if self.forward.comm.size == 1 and len(x0) and not bool(rows(back).isfinite().any()):
            raise EnsembleFailure(
                f"the gradient of all {len(x0)} members failed; the log says how. Try it with: "
                "enkg check FILE"
            )
        return back

    def pull_back(self, x0: Tensor, v: Tensor) -> Tensor:
        """`vjp`, also where all fail."""
        self._needs("vjp")
        if not len(x0):
            return x0
        self.vjps += len(x0)
        decoded = self._decoded(x0).detach()
        with torch.enable_grad():
            leaf = decoded.requires_grad_()
            x = self.experiment.units.to_simulator(leaf)
        function = self._function()
        with threads(self.forward.cores):
            pulled = torch.from_numpy(function.pull_back(_array(x), _array(v))).to(x)
        good = rows(pulled).isfinite().all(dim=1)
        mask = good.reshape(-1, *(1,) * (x.dim() - 1))
        back = torch.autograd.grad(x, leaf, torch.where(mask, pulled, 0.0))[0]
        back = self._undecoded(x0, back)
        keep = good & rows(back).isfinite().all(dim=1)
        return torch.where(keep.reshape(-1, *(1,) * (back.dim() - 1)), back, torch.nan).to(x0)

    def adjoint(self, v: Tensor) -> Tensor:
        """A^T v of a linear simulator, (J_r, *Y) to (J_r, *X). Counted as `vjp`."""
        self._needs("adjoint")
        self.vjps += len(v)
        assert self.able.adjoint is not None
        return self._scale() * self._torch(self.able.adjoint, v, self.experiment.shape)

    def linear(self, v: Tensor) -> Tensor:
        """A v of a linear simulator, without its offset, (J_r, *X) to (J_r, *Y).

        One simulator call a member, and one for the offset. Collective.
        """
        self._needs("adjoint")
        first = sum(self.forward.comm.gather(len(v))[: self.forward.comm.rank])
        y = self(v)[first : first + len(v)]
        return y - self.offset().to(y)

    def offset(self) -> Tensor:
        """G(0) in prior units, (*Y). One simulator call, the first time. Collective."""
        if self._offset is None:
            like = torch.zeros(1, *self.experiment.shape, dtype=torch.float64)
            self._offset = once(self.forward.comm, lambda: self.forward.aside(like)[0])
            self.forward.count.calls += 1
        return self._offset

    def pinv(self, y: Tensor) -> Tensor:
        """The (surrogate) inverse of G, (J_r, *Y) to (J_r, *X): for a linear simulator A^+."""
        self._needs("pinv")
        assert self.able.pinv is not None
        x = self._torch(self.able.pinv, y, self.experiment.shape)
        return self.experiment.units.to_prior(x)

    @property
    def svd(self) -> SVD:
        """The decomposition of A; its singular values hold the scale of the units."""
        self._needs("svd")
        svd, scale = self.able.svd, self._scale()
        assert svd is not None
        size, data = (len(svd.s),), self.experiment.observation.y.shape
        shape = self.experiment.shape
        sign = -1.0 if scale < 0 else 1.0
        return SVD(
            torch.from_numpy(np.array(svd.s, np.float64)) * abs(scale),
            lambda y: sign * self._torch(svd.ut, y, size),
            lambda z: sign * self._torch(svd.u, z, tuple(data)),
            lambda x: self._torch(svd.vt, x, size),
            lambda z: self._torch(svd.v, z, shape),
        )

    @property
    def project(self) -> Projection:
        """The projection onto the objects with given magnitudes."""
        self._needs("project")
        project, shape = self.able.project, self.experiment.shape
        assert project is not None
        support = torch.from_numpy(np.array(project.support, dtype=bool))
        grid = tuple(support.shape)

        def onto(u: Tensor, y: Tensor) -> Tensor:
            self.vjps += len(u)
            return self._torch(lambda u: project.onto(u, _array(y)), u, grid)

        def crop(u: Tensor) -> Tensor:
            return self.experiment.units.to_prior(self._torch(project.crop, u, shape))

        return Projection(support, onto, crop)

    def decode(self, z: Tensor) -> Tensor:
        """Latent members to decoded ones; others as they are."""
        return self._decoded(z)

    def decode_vjp(self, z: Tensor, v: Tensor) -> Tensor:
        """J_decode(z)^T v; v itself where nothing is decoded."""
        return self._undecoded(z, v)

    def encode(self, x: Tensor) -> Tensor:
        """Decoded members to latent ones; others as they are."""
        prior = self._prior()
        return x if prior is None else prior.encode(x)

    def _needs(self, name: abilities.Ability) -> None:
        check(self.experiment, name, self.pixels)

    def _function(self) -> Function:
        simulator = self.experiment.simulator
        if isinstance(simulator, Function):
            return simulator
        return Function(lambda x: x, vjp=self.able.vjp)

    def _scale(self) -> float:
        return one_scale(self.experiment)

    def _torch(
        self, f: Callable[[ndarray], ndarray], given: Tensor, shape: tuple[int, ...]
    ) -> Tensor:
        with threads(self.forward.cores):
            out = np.array(f(_array(given)))
        if out.shape != (len(given), *shape):
            raise InputError(
                f"{getattr(f, '__qualname__', f)} was given shape {tuple(given.shape)} and "
                f"returned {out.shape}; expected {(len(given), *shape)}"
            )
        return torch.from_numpy(out).to(given)

    def _prior(self) -> Any:
        experiment = self.experiment
        if self.pixels or not isinstance(experiment.prior, Decoding):
            return None
        place = torch.device("cpu")
        return counted(experiment.prior, experiment.chunk, place, self.forward.cores)

    def _decoded(self, z: Tensor) -> Tensor:
        prior = self._prior()
        return z.clone() if prior is None else prior.decode(z)

    def _undecoded(self, z: Tensor, v: Tensor) -> Tensor:
        prior = self._prior()
        return v if prior is None else prior.decode_vjp(z, v)


def _array(x: Tensor) -> ndarray:
    return x.detach().cpu().numpy()
