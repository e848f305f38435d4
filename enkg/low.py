"""A cheaper simulator of the same physics beside the one that counts.

A coarser grid, a linearised model, an emulator: a method that knows of it asks it often and the
simulator seldom, and learns the difference from members that both have answered (a control
variate). A method that does not know of it ignores it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy import ndarray

from enkg.errors import InputError
from enkg.simulator import Evaluator, Opening, Simulator


@dataclass(frozen=True, eq=False)
class Low:
    """The low-fidelity simulator of an experiment (`Experiment(low=Low(f, cost=1 / 8))`).

    It is given the same members as the simulator, (B, *X) in the simulator's units, and its data,
    after `observe`, have the shape of the observation. Raises InputError for a cost that is not
    between 0 and 1.
    """

    simulator: Simulator | Evaluator | Opening
    """A function of a batch, or an adapter, as for the experiment's simulator."""
    cost: float
    """Cost of one of its calls, in calls of the simulator; for `call_equivalents` in the summary.
    It decides nothing."""
    observe: Callable[[ndarray], Any] | None = None
    """What the instrument makes of its answers, row by row; None takes that of the experiment."""

    def __post_init__(self) -> None:
        if not callable(self.simulator) and not isinstance(self.simulator, Evaluator | Opening):
            raise InputError(
                f"the low-fidelity simulator is a {type(self.simulator).__name__}; expected a "
                "function of a batch or an adapter such as enkg.Function"
            )
        if not 0 < self.cost < 1:
            raise InputError(
                f"the low-fidelity simulator has cost {self.cost}; expected a share of a "
                "simulator call between 0 and 1, such as 1 / 8"
            )
