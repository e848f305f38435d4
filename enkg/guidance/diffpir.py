"""DiffPIR: at each level the estimate is moved to the compromise of data and denoiser.

With D = D(x, sigma), noise covariance Gamma and kappa = strength / sigma^2,

    x0' = argmin_v  Phi(v) + kappa / 2 |v - D|^2,    Phi(v) = 1/2 |Gamma^(-1/2) (y - G(v))|^2

which for Gamma = sigma_y^2 I is argmin |y - G(v)|^2 + rho |v - D|^2 with the published rho =
strength sigma_y^2 / sigma^2. For linear G and strength = 1, x0' is the posterior mean under the
prior N(D, sigma^2 I). That takes sigma^2 I for the covariance sigma^2 J_D of x_0 given x: too much
trust in the data wherever the prior is narrower than sigma.

    prox="svd"        x0'_i = (ybar_i / t_i^2 + kappa Dbar_i) / (1 / t_i^2 + kappa), closed form
    prox="cg"         `iterations` conjugate gradients from D, for any Gaussian noise, on
                      (A^T Gamma^-1 A + kappa) v = A^T Gamma^-1 (y - G(0)) + kappa D
                      (`enkg.guidance.quadratic`)
    prox="gradient"   `iterations` steps v - g / (L + kappa) along the gradient g of the objective,
                      for any simulator with vjp

The last starts with L = |grad Phi|^2 / (2 Phi), the curvature of the whitened residuals along g for
one datum. A step stands if the objective falls by at least (L + kappa) / 2 of its squared length
less than the linear model says (the sufficient decrease that L >= the curvature ensures); then L
becomes the curvature seen in that step. Otherwise the chain stays and L grows fourfold. So the
objective never rises, however small kappa is. One step D - g / rho would diverge there.

noise="ancestral" (default) goes on with the ancestral step of x0'. noise="diffpir" is the published

    x_s = x0' + s (sqrt(1 - zeta) (x - x0') / sigma + sqrt(zeta) z)

which is the same for zeta = 1 - (s / sigma)^2.

There is no posterior law: see above. For data that see nothing it is the prior's own chain.

Cost, for N levels, J chains and I = iterations: N J denoiser calls and those of the start.
Simulator calls: one, for G(0) (svd); N J (1 + I) and one for G(0), with as many products A^T v as
the first (cg); N J (1 + I), with as many products J_G^T v (gradient). Needs svd and noise
sigma_y^2 I without missing data, or adjoint, or vjp.

References: Zhu et al. 2023, "Denoising diffusion models for plug-and-play image restoration", arXiv
2305.08995, algorithm 1 (lambda, zeta, 100 levels); constants of InverseBench, arXiv 2503.11043,
whose rho has a further factor 2 in the branch for linear operators; the preset
diffpir-inversebench does not carry it.
Barzilai and Borwein 1988 for the curvature from a step.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from enkg.abilities import Ability
from enkg.errors import InputError
from enkg.guidance.base import Forward, Info, State
from enkg.guidance.chains import (
    Chains,
    Slope,
    check_choices,
    dots,
    each,
    misfit_per_datum,
    slope,
)
from enkg.guidance.quadratic import solve
from enkg.guidance.restoration import (
    check_shares,
    components,
    drawn,
    info,
    injected,
)
from enkg.observation import Observation
from enkg.prior import Prior

Pairs = tuple[tuple[Tensor, Tensor], ...]
GROWTH = 4.0
"""Factor on the curvature of a chain whose step did not stand."""


@dataclass(frozen=True)
class DiffPIR(Chains):
    """Plug-and-play restoration. Cost: `levels` x (1 + `iterations`) simulator calls a member; one
    call with prox="svd"."""

    prox: Literal["svd", "cg", "gradient"] = "gradient"
    """How the compromise is found: in closed form, by conjugate gradients, or by damped steps."""
    strength: float = 1.0
    """lambda: weight of the denoiser's estimate; 1 stands for x_0 = D with variance sigma^2."""
    iterations: int = 10
    """Steps at each level, with prox="cg" or "gradient"."""
    noise: Literal["ancestral", "diffpir"] = "ancestral"
    """Fresh noise by the length of a step, or the share zeta of it at every level."""
    zeta: float = 1.0
    """Share of fresh noise of noise="diffpir"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "prox", "noise")
        check_shares(zeta=self.zeta)
        if not self.strength > 0 or self.iterations < 1:
            raise InputError(
                f"strength is {self.strength} and iterations {self.iterations}; expected a "
                "positive weight and at least one step"
            )

    @property
    def sweeps(self) -> int:
        return 0 if self.prox == "svd" else self.levels * (1 + self.iterations)

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ({"svd": "svd", "cg": "adjoint", "gradient": "vjp"}[self.prox],)  # pyright: ignore

    def step(
        self, state: State, prior: Prior, forward: Forward, observation: Observation
    ) -> tuple[State, Info]:
        i = state.step
        sigma, to = self.sigmas[i : i + 2]
        clean = prior.denoise(state.x, sigma)
        guided, misfit, evaluated = self.compromise(state, clean, sigma, forward, observation)
        eta = self.zeta**0.5 if self.noise == "diffpir" else None
        x = injected(state.x, (guided, guided), (sigma, to), drawn(state, prior), eta)
        after = replace(state, x=x.to(state.x), step=i + 1, sigma=to, finished=i + 1 == self.levels)
        return after, info(state, self.levels, misfit, evaluated)

    def compromise(
        self, state: State, clean: Tensor, sigma: float, forward: Forward, observation: Observation
    ) -> tuple[Tensor, float | None, Pairs]:
        """x0' (float64), the misfit of D, and the pairs evaluated. Collective."""
        kappa = self.strength / sigma**2
        if self.prox == "svd":
            guided, misfit = _closed(state, clean, kappa, forward, observation)
            return guided, misfit, ()
        if self.prox == "cg":
            term = (lambda v: kappa * v, kappa * clean.double())
            found = solve(state, clean, forward, observation, "noise", term, self.iterations)
            guided, y = found.x, found.everyone
        else:
            guided, y = _descent(state, clean, kappa, self.iterations, forward, observation)
        return guided, misfit_per_datum(y, observation), ((clean, y),)


def _closed(
    state: State, clean: Tensor, kappa: float, forward: Forward, observation: Observation
) -> tuple[Tensor, float | None]:
    """x0' (float64) and the misfit of D."""
    parts = components(forward, observation, clean)
    d, trust = parts.of(clean), 1 / (1 + kappa * parts.t**2)
    guided = parts.replaced(clean, d, d + trust * (parts.y - d))
    return guided, parts.misfit(state, clean, observation)


def _descent(
    state: State,
    clean: Tensor,
    kappa: float,
    iterations: int,
    forward: Forward,
    observation: Observation,
) -> tuple[Tensor, Tensor]:
    """x0' (float64) and the data of all chains at D. A trial that fails does not stand."""
    d = clean.double()
    first = here = slope(state, clean, forward, observation)
    square = dots(here.gradient, here.gradient)
    alive = here.misfit.isfinite() & (square > 0)
    curvature = torch.where(alive, square / (2 * here.misfit), 1.0).clamp(min=1e-12)
    v = d
    for _ in range(iterations):
        g = here.gradient + kappa * (v - d)
        move = torch.where(each(alive, g), -g / each(curvature + kappa, g), 0.0)
        there = slope(state, (v + move).to(clean), forward, observation)
        length = dots(move, move)
        # Phi(v + move) <= Phi + grad Phi . move + L / 2 |move|^2: the quadratic term is exact.
        bound = here.misfit + dots(here.gradient, move) + 0.5 * curvature * length
        slack = 1e-12 * here.misfit
        stands = alive & (there.misfit <= bound + slack) & (length > 0)
        seen = dots(there.gradient - here.gradient, move) / length
        learned = torch.where(seen.isfinite(), seen, curvature).clamp(min=1e-12)
        curvature = torch.where(stands, learned, GROWTH * curvature)
        v = torch.where(each(stands, v), v + move, v)
        here = _chosen(stands, there, here)
    return v, first.everyone


def _chosen(stands: Tensor, there: Slope, here: Slope) -> Slope:
    """Of each chain the slope where it now is."""
    return Slope(
        torch.where(each(stands, here.gradient), there.gradient, here.gradient),
        torch.where(stands, there.misfit, here.misfit),
        here.y,
        here.everyone,
    )
