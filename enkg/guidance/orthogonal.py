"""First draws whose sample moments are those of the prior, for Gaussian priors.

White draws z_j ~ N(0, I) are centred, and their leading K' = min(K, J - 1) coordinates (those of
the largest prior scale) replaced by the nearest matrix with orthogonal columns of equal length:

    Z' = sqrt(J - 1) U V^T,    U S V^T = singular value decomposition of Z - mean Z

So the sample mean is exactly zero in all coordinates and the sample covariance exactly the identity
in the leading K': an ensemble update sees the prior's true covariance there, and makes no error of
sampling but that of its perturbations. The rest of the coordinates is centred only: J members
cannot be orthogonal in more than J - 1.

The members are no longer independent of each other. Second-order exact draws of this kind: Pham
2001, "Stochastic methods for sequential data assimilation in strongly nonlinear systems", Monthly
Weather Review 129, 1194-1207.

Cost: one decomposition of a J x K' matrix, on rank 0; no simulator or denoiser call.
"""

import torch
from torch import Tensor

from enkg import random
from enkg.comm import Comm, once
from enkg.errors import MissingCapability
from enkg.prior import Flowing, Prior, White
from enkg.random import Stream

CLEAN = 1e-6
"""Noise level, in units of the largest prior scale, that is zero to a flow that goes up."""


def orthogonal_start(
    prior: Prior,
    sigma: float,
    seed: int,
    count: int,
    members: tuple[int, ...],
    like: Tensor,
    comm: Comm,
) -> Tensor:
    """This rank's `members` of `count` draws from p_sigma, (J_r, *X). Collective.

    Noise goes on by the flow, which for a Gaussian prior multiplies each coordinate: so the draws
    are orthogonal at every level. Raises MissingCapability if the prior is not White.
    """
    if not (isinstance(prior, White) and isinstance(prior, Flowing)):
        raise MissingCapability(
            "orthogonal=True", "a Gaussian prior (enkg.Gaussian)", "leave it off for other priors"
        )
    scales = prior.scales.double().cpu()

    def draws() -> Tensor:
        z = random.normal((len(scales),), seed, Stream.INITIAL, range(count), 0)
        return orthogonalised(z, scales)

    white = once(comm, draws)[list(members)]
    x = prior.from_white(white.to(like))
    return x if sigma == 0 else prior.flow(x, CLEAN * float(scales.max()), sigma)


def orthogonalised(z: Tensor, scales: Tensor) -> Tensor:
    """Draws (J, K) with sample mean 0 and, in the K' coordinates of largest scale, covariance I."""
    z = z - z.mean(dim=0)
    order = scales.sort(descending=True, stable=True).indices
    leading = order[: min(len(order), int((scales > 0).sum()), len(z) - 1)]
    u, _, vt = torch.linalg.svd(z[:, leading], full_matrices=False)
    z[:, leading] = (len(z) - 1) ** 0.5 * u @ vt
    return z
