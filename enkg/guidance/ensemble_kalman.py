"""What ensemble Kalman methods have in common: their options, and the update they decide on.

The options treat what a small ensemble loses by estimating a gain from its own members; each is
off by default, and all but `inflation` keep the law for J to infinity.

| option | what it does | where |
|---|---|---|
| `deterministic` | square-root update, no perturbed observations | `enkg.guidance.kalman` |
| `folds` | gain of a member from the other members | `enkg.guidance.kalman` |
| `taper` | cross covariances tapered by their correlation | `enkg.guidance.taper` |
| `inflation` | anomalies multiplied after each update | `enkg.guidance.inflation` |
| `orthogonal` | first draws with the prior's exact moments | `enkg.guidance.orthogonal` |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from enkg.comm import Comm
from enkg.errors import InputError
from enkg.guidance.base import Guidance, State, check_folds, draw_lots
from enkg.guidance.inflation import inflated
from enkg.guidance.kalman import Weights, perturbed_weights, square_root_weights
from enkg.guidance.orthogonal import orthogonal_start
from enkg.guidance.taper import Tapered, tapered_update
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.sample import Flow, start


@dataclass(frozen=True)
class EnsembleKalman(Guidance):
    """Base of the methods that move members by ensemble Kalman updates."""

    deterministic: bool = False
    """Square-root update in place of perturbed observations."""
    folds: int = 1
    """Folds of the gain; 1 uses one gain for all members. More folds undo the loss of spread of
    small ensembles, for simulators that are not far from linear."""
    taper: bool = False
    """Taper the covariance of each unknown with each datum by their correlation."""
    inflation: float = 1.0
    """Factor of the anomalies after each update; 1 is none."""
    orthogonal: bool = False
    """First draws with the prior's exact mean and covariance; for Gaussian priors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folds(self.folds, self.members)
        if self.taper and (self.deterministic or self.folds > 1):
            raise InputError(
                "the taper is for perturbed observations with one gain; leave deterministic off "
                "and folds at 1"
            )
        if not 0 < self.inflation < float("inf"):
            raise InputError(f"inflation is {self.inflation}; expected a positive number, 1 for no")

    @property
    def posterior_law(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """On which problems the result is the exact posterior; on none with inflation."""
        if self.inflation != 1:
            return None
        return "linear simulator and Gaussian prior, J to infinity"

    def first_draws(
        self,
        prior: Prior,
        sigma: float,
        key: tuple[int, tuple[int, ...]],
        like: Tensor,
        comm: Comm,
        flow: Flow | None = None,
    ) -> Tensor:
        """This rank's first members at noise level sigma, (J_r, *X). key: seed, members."""
        if self.orthogonal:
            seed, members = key
            return orthogonal_start(prior, sigma, seed, self.members, members, like, comm)
        return start(prior, sigma, *key, like, flow=flow)

    def analysis(
        self,
        r: Tensor,
        power: float,
        state: State,
        everyone: Sequence[int],
        observation: Observation,
        living: Tensor,
    ) -> Weights | Tapered:
        """The update by whitened innovations r of the G living members, (G, m). For `once`."""
        lots = draw_lots((state.seed, state.step), everyone, observation, living, self.folds)
        if self.deterministic:
            return square_root_weights(r, power, lots.fold)
        if self.taper:
            return tapered_update(r, lots.eta, power)
        return perturbed_weights(r, lots.eta, power, lots.fold)

    def moved(self, update: Weights | Tapered) -> Callable[[Tensor], Tensor]:
        """The update with its inflation, for `mixed`."""
        return inflated(update, self.inflation)
