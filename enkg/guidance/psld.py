"""PSLD: posterior sampling with latent diffusion, held together by decoder and encoder.

For a prior over latent z with decode d and encode e, and a linear simulator A, at level sigma:

    z0 = D(z, sigma),  x = d(z0),  x+ = x + A^+ (y - A x)
    R  = omega |y - A x| + gamma |z0 - e(x+)|
    z_s = ancestral(z, z0) - grad_z R

x+ = A^+ y + (I - A^+ A) x holds the data and, elsewhere, the decoded estimate; gamma asks that z0
be a latent that encodes it, since many latents decode to data that fit. The paper writes A^T for
A^+, which is the same where A^T A is a projector, as for a mask. The norms are of each chain by
itself, in the data's own unit: the noise covariance does not enter, so there is no posterior law.
With variance-preserving levels the published scales are those of sqrt(1 + sigma^2)-scaled states:
grad R is multiplied by sqrt(1 + sigma^2) sqrt(1 + s^2).

With u = (z0 - e(x+)) / |.|, and V the right singular vectors, the gradient by z0 is

    omega J_d^T A^T (A x - y) / |.| + gamma (u - J_d^T (I - V V^T) J_e^T u)

and that by z J_D^T of it. A chain whose simulator fails makes its step unguided.

Cost, a chain and level: 1 simulator call, 1 product with its Jacobian, 1 denoiser call and 1
product with its Jacobian; products with those of d (2) and e (1), which are not counted.

Reference: Rout et al. 2023, arXiv 2307.00619, algorithm 2 (omega = 0.1 and gamma = 1 are the
defaults of the public code, which also adds noise to z0 at each step; here it does not).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from enkg import random
from enkg.abilities import Ability
from enkg.arrays import rows
from enkg.comm import ALONE, Comm
from enkg.errors import InputError
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import (
    Chains,
    Operator,
    check_differentiable,
    dots,
    each,
    finite,
    misfit_per_datum,
    operator,
    pulled_back,
)
from enkg.guidance.latent_daps import check_coder
from enkg.guidance.restoration import check_complete
from enkg.guidance.reverse import ancestral_step
from enkg.guidance.scaling import in_prior_units
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.random import Stream


@dataclass(frozen=True)
class PSLD(Chains):
    """Latent diffusion guided by data and gluing. Cost: `levels` simulator calls a member."""

    of_pixels: ClassVar[bool] = True

    data_scale: float = 0.1
    """omega: weight of the residual's norm."""
    gluing_scale: float = 1.0
    """gamma: weight of the distance between the latent estimate and the encoded one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.data_scale >= 0 and self.gluing_scale >= 0):
            raise InputError(
                f"data_scale is {self.data_scale} and gluing_scale {self.gluing_scale}; expected "
                "numbers that are not negative"
            )

    @property
    def sweeps(self) -> int:
        return self.levels

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ("svd",)

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> State:
        check_coder("PSLD", prior)
        check_differentiable(prior, comm, "PSLD", self.sigmas[0], like)
        return super().init(prior, seed, like, comm)

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        check_complete(observation, "PSLD")
        i, z = state.step, state.x
        sigma, to = self.sigmas[i : i + 2]
        op, clean = operator(forward), prior.denoise(z, sigma)
        everyone = forward(clean)
        y = state.own(everyone)
        gradient = self._gradient(op, clean, y, observation)
        v = pulled_back(prior, z, sigma, gradient)
        scale = in_prior_units(1.0, self.schedule, sigma, to)
        noise = random.normal(prior.shape, state.seed, Stream.SAMPLER, state.members, i)
        moved = ancestral_step(z, clean, sigma, to, noise) - finite(scale * v).to(z)
        info = Info(
            step=i,
            sigma=sigma,
            progress=(i + 1) / self.levels,
            misfit=misfit_per_datum(everyone, observation),
            evaluated=((clean, everyone),),
        )
        finished = i + 1 == self.levels
        return replace(state, x=moved, step=i + 1, sigma=to, finished=finished), info

    def _gradient(self, op: Operator, clean: Tensor, y: Tensor, observation: Observation) -> Tensor:
        """grad R by z0, (J_r, *Z), float64; zero for a chain that failed."""
        r = residual(y, observation)
        alive = rows(y).isfinite().all(dim=1)
        data = op.vjp(clean, -direction(r).to(clean)).double()
        svd = op.pixel.svd
        x = op.decode(clean)
        filled = x + svd.v(svd.ut(r.to(x)) / svd.s.to(x))
        with torch.enable_grad():
            leaf = filled.detach().requires_grad_()
            back = op.encode(leaf)
            u = direction(clean.double() - back.detach().double())
            w = torch.autograd.grad(back, leaf, u.to(back))[0]
        w = w - svd.v(svd.vt(w))
        glued = u - op.decode_vjp(clean, w).double()
        total = self.data_scale * data + self.gluing_scale * glued
        return finite(torch.where(each(alive, total), total, 0.0))


def residual(y: Tensor, observation: Observation) -> Tensor:
    """y_observed - y, (J, *Y), float64, in the data's own unit; 0 where there is no datum or the
    simulator failed."""
    mask = observation.mask.to(y.device)
    r = observation.y.to(y.device) - y.double()
    return torch.where(mask, finite(torch.where(mask, r, 0.0)), 0.0)


def direction(r: Tensor) -> Tensor:
    """r / |r| of each chain; 0 where r is."""
    length = each(dots(r, r).sqrt(), r)
    return torch.where(length > 0, r / length, 0.0)
