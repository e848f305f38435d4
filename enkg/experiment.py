"""An experiment: everything that decides the result of an inversion."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from numpy import ndarray
from torch import Tensor

from enkg.arrays import tensor
from enkg.counted import counted
from enkg.errors import InputError
from enkg.failure import FailurePolicy
from enkg.field import Field, check_names
from enkg.guidance import Guidance, suited
from enkg.latent import Decoding
from enkg.low import Low
from enkg.observation import Observation
from enkg.prior import Prior
from enkg.report import Analysis
from enkg.simulator import Evaluator, Opening, Simulator
from enkg.units import Affine, Units


@dataclass(frozen=True, eq=False)
class Experiment:
    """An inversion: everything that decides its result.

    The truth, where it is known, is in the simulator's units and is used for metrics alone.
    """

    prior: Prior
    """What the unknown looks like."""
    simulator: Simulator | Evaluator | Opening
    """Members (B, *X) to data (B, *Y), in the simulator's units."""
    observation: Observation
    """The measurement and its noise."""
    guidance: Guidance = None  # pyright: ignore[reportAssignmentType]
    """The method; None takes what suits the prior: SLR if it is Gaussian, else EnKG."""
    units: Units = field(default_factory=Affine)
    """From the prior's numbers to the simulator's."""
    seed: int = 0
    """Same seed, same result."""
    unknown: Field = field(default_factory=lambda: Field("x"))
    """Name, axes and unit of the unknown."""
    data: Field = field(default_factory=lambda: Field("y"))
    """Name, axes and unit of the data."""
    truth: Any = None
    """The true unknown of a synthetic problem, shape X, in the simulator's units."""
    predict: int | None = None
    """Members whose data are simulated at the end, to measure the misfit; None takes as many as the
    method has members, which is all of them but for SLR."""
    observe: Callable[[ndarray], Any] | None = None
    """What the instrument makes of the simulator's answers: (B, *Y) to (B, *D), row by row."""
    low: Low | None = None
    """A cheaper simulator of the same physics, for methods that can use one."""
    failure: FailurePolicy = field(default_factory=FailurePolicy)
    """What happens to members that crash, hang or answer rubbish."""
    cache: Path | None = None
    """Folder of evaluated members: a call that was paid for once is never paid for again."""
    device: str = "cpu"
    """Where the ensemble lives: cpu, cuda (one GPU for each rank of a node), cuda:1, ..."""
    chunk: int | None = None
    """Members that the prior handles at once; None takes 16 on a CPU, and what fits on a GPU."""
    double: bool = False
    """Keep the ensemble in float64 instead of float32."""
    analyse: Callable[[xr.DataTree, Path | None], Analysis] | None = None
    """Called at the end with the results and the run directory: more metrics, tables and files."""

    def __post_init__(self) -> None:
        if not isinstance(self.prior, Prior):
            raise InputError(
                f"the prior is a {type(self.prior).__name__}; expected an object with `shape` and "
                "`denoise(x, sigma)`"
            )
        if self.guidance is None:
            object.__setattr__(self, "guidance", suited(self.prior))
        if not isinstance(self.guidance, Guidance):
            raise InputError(
                f"guidance is a {type(self.guidance).__name__}; expected a method such as "
                "enkg.EnKG()"
            )
        if not isinstance(self.observation, Observation):
            raise InputError("observation must be an enkg.Observation(y, std=...)")
        if not callable(self.simulator) and not isinstance(self.simulator, Evaluator | Opening):
            raise InputError(
                f"the simulator is a {type(self.simulator).__name__}; expected a function of a "
                "batch, enkg.Function, enkg.Pool, enkg.Program or enkg.UMBridge"
            )
        if self.low is not None and not isinstance(self.low, Low):
            raise InputError(
                f"low is a {type(self.low).__name__}; expected enkg.Low(simulator, cost=...)"
            )
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"chunk is {self.chunk}; expected at least one member, or None")
        if self.predict is not None and self.predict < 1:
            raise InputError(f"predict is {self.predict}; expected at least one member, or None")
        check_names(self.unknown, self.shape, self.data, self.observation.y.shape)
        if self.truth is not None:
            truth = tensor(self.truth)
            if tuple(truth.shape) != self.shape:
                raise InputError(f"the truth has shape {tuple(truth.shape)}, a member {self.shape}")
            object.__setattr__(self, "truth", truth)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape X of a member as the simulator sees it: a latent one is decoded."""
        prior = self.prior
        return tuple(prior.decoded_shape if isinstance(prior, Decoding) else prior.shape)

    def physical(self, x: Tensor, first: int = 0) -> Tensor:
        """Members of the prior, (J, ...), as the simulator sees them, (J, *X): decoded, and in its
        units. first: the place of the first among all."""
        if isinstance(self.prior, Decoding):
            prior = counted(self.prior, self.chunk, x.device, torch.get_num_threads())
            prior.first = first
            x = prior.decode(x)  # pyright: ignore[reportAttributeAccessIssue]
        return self.units.to_simulator(x)

    @property
    def predicted(self) -> int:
        """Number of members whose data are simulated at the end, where none fails."""
        asked = self.guidance.members if self.predict is None else self.predict
        return min(asked, self.guidance.posterior_members)
