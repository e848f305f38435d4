"""The data as one array, for the methods that hand them to an inverse."""

from torch import Tensor

from enkg.errors import InputError
from enkg.observation import Observation


def whole(observation: Observation, count: int, like: Tensor) -> Tensor:
    """y once for each of so many chains, (count, *Y). Raises InputError where data are missing."""
    missing = int((~observation.mask).sum())
    if missing:
        raise InputError(
            f"{missing} of {observation.mask.numel()} data are masked, and an inverse needs all of "
            "them; leave missing data to the simulator, which then gives the others alone"
        )
    return observation.y.to(like).expand(count, *observation.y.shape)
