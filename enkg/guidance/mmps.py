"""MMPS: moment matching posterior sampling, the exact guidance of a Gaussian prior.

The mean of x_0 given x at noise level sigma is D = D(x, sigma), its covariance is sigma^2 J_D with
the Jacobian J_D of the denoiser: both are identities (Tweedie, to first and second order). If x_0
given x is taken for the Gaussian with these two moments, then for data y = A x_0 + N(0, Gamma)

    D_y = D + sigma^2 J_D^T A^T (sigma^2 A J_D A^T + Gamma)^-1 (y - A D).

For a Gaussian prior nothing has been neglected: D_y is E[x_0 | x, y], so the probability flow with
D_y carries N(., sigma^2 I) at a high level to the posterior. It is the yardstick of the methods
that take something else for the covariance: r^2 I (PiGDM), nothing (DPS).

The system is solved by conjugate gradients (`enkg.guidance.guided`). J_D is symmetric, as it is a
covariance, and J_D^T stands for J_D; where the Jacobian of a trained denoiser is not, few
iterations are the remedy (arXiv 2405.13712, section 4 and appendix).

products="adjoint" takes A v and A^T v of a linear simulator. products="differences" is for a
simulator that is not linear and has vjp: A is its Jacobian at D, A^T v a product vjp(D, v), and

    A v = |v| (G(D + h e) - G(D - h e)) / (2 h),    e = v / |v|,

with the root mean square for |.|: its error is of order h^2, and it takes two simulator calls.

The start is N(., sigma_max^2 I) around the prior, which is not yet conditional on y; sigma_max
must be large against the prior's own spread.

Law: linear simulator and Gaussian prior give the exact posterior, as levels and iterations go up.

Cost, for E evaluations of D_y (2 levels - 1 by Heun, else levels), K iterations in each (at most
`iterations`; all chains go on until the last has converged) and J chains: simulator calls E K J and
one for G(0), or E (2 K - 1) J with differences; products with the simulator's transpose and with
J_D^T E K J each, and one of the latter; denoiser calls E J, and those of the start. iterations=1
asks for no product with A.

Reference: Rozet et al. 2024, arXiv 2405.13712, equations 17 to 20 and algorithm 1.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from enkg.abilities import Ability
from enkg.errors import InputError
from enkg.guidance.chains import check_choices, operator, pulled_back
from enkg.guidance.guided import At, Guided, System, check_iterations, solved


@dataclass(frozen=True)
class MMPS(Guided):
    """Guidance with the covariance of the denoiser. Cost: `levels` x 2 x `iterations` calls a
    member at most."""

    posterior_law: ClassVar[str | None] = "linear simulator and Gaussian prior"

    sigma_max: float = 80.0
    """Highest noise level, in prior units; large against the prior's own spread."""
    sigma_min: float = 0.002
    """Lowest noise level before zero; small against the finest scale of the prior."""
    iterations: int = 16
    """Most iterations of the conjugate gradients in each evaluation; as many as data are enough."""
    tolerance: float = 1e-3
    """Share of the whitened residual at which a chain's solve ends."""
    products: Literal["adjoint", "differences"] = "adjoint"
    """How A v is found: by the linear simulator itself, or by central differences of a nonlinear
    one."""
    step_length: float = 1e-3
    """Length h of a difference (products="differences" alone), in prior units."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "products")
        check_iterations(self.iterations, self.tolerance)
        if not self.step_length > 0:
            raise InputError(f"step_length is {self.step_length}; expected a positive number")

    @property
    def needs(self) -> tuple[Ability, ...]:
        return ("adjoint",) if self.products == "adjoint" and self.iterations > 1 else ("vjp",)

    @property
    def sweeps(self) -> int:
        if self.products == "differences":
            return self.evaluations * (2 * self.iterations - 1)
        return self.evaluations * self.iterations

    def shift(self, at: At) -> Tensor:
        op = operator(at.forward)

        def transpose(v: Tensor) -> Tensor:
            return op.vjp(at.clean, v) if self.needs == ("vjp",) else op.adjoint(v)

        def differences(v: Tensor) -> Tensor:
            there, here = (at.forward(at.clean + h * v.to(at.clean)) for h in self._lengths)
            return at.state.own(there - here).to(v) / (2 * self.step_length)

        system = System(
            at.sigma**2,
            transpose,
            lambda v: pulled_back(at.prior, at.x, at.sigma, v),
            differences if self.products == "differences" else op.linear,
        )
        return at.sigma**2 * solved(at, system, self.iterations, self.tolerance)

    @property
    def _lengths(self) -> tuple[float, float]:
        return self.step_length, -self.step_length
