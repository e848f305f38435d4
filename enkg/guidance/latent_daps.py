"""LatentDAPS: decoupled annealing of a prior over latent variables.

    space="latent"   U(z) = Phi(G(decode(z))) + |z - c|^2 / (2 r^2)      the chain moves z
    space="pixel"    U(x) = Phi(G(x)) + |x - decode(c)|^2 / (2 r^2)      the chain moves x, and
                     z = encode(x) at its end

c, r, the chains and the noise after them are those of `enkg.guidance.daps`, in latent units. The
first is DAPS itself, which works on any prior that decodes; the second never differentiates the
decoder, and its r is a length in pixels. With an orthonormal linear decoder and encoder both have
the same prior term inside the decoder's range; what the data say about the rest moves x there, and
encode drops it.

Cost: that of DAPS, a decoder call with each simulator call; space="pixel": one decoder and one
encoder call a chain and level.

Reference: Zhang et al. 2024, arXiv 2407.01521 (LatentDAPS, of which the public code has the latent
space).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from enkg.comm import ALONE, Comm
from enkg.errors import MissingCapability
from enkg.guidance.base import Forward
from enkg.guidance.chains import check_choices, operator
from enkg.guidance.daps import DAPS, WalkState
from enkg.guidance.daps_moves import Potential
from enkg.latent import Decoding, Encoding
from enkg.observation import Observation
from enkg.prior import Prior


@dataclass(frozen=True)
class LatentDAPS(DAPS):
    """Decoupled annealing in latent or decoded space. Cost: that of DAPS."""

    space: Literal["latent", "pixel"] = "latent"
    """Where the Markov chains move; "pixel" needs a prior that encodes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, "space")

    def init(self, prior: Prior, seed: int, like: Tensor, comm: Comm = ALONE) -> WalkState:
        check_coder("LatentDAPS", prior, encodes=self.space == "pixel")
        return super().init(prior, seed, like, comm)

    def _drawn(
        self,
        state: WalkState,
        clean: Tensor,
        squared: Tensor,
        forward: Forward,
        observation: Observation,
    ) -> tuple[Tensor, Tensor, Potential]:
        if self.space == "latent":
            return super()._drawn(state, clean, squared, forward, observation)
        op = operator(forward)
        pull = None if self.move == "metropolis" else op.pixel.vjp
        centre = op.decode(clean)
        potential = Potential(state, op.pixel, pull, observation, centre, squared)
        x, scale = self._explored(state, potential)
        return op.encode(x).to(clean), scale, potential


def check_coder(method: str, prior: Prior, encodes: bool = True) -> None:
    """Raises MissingCapability for a prior without decoder, or without encoder where it is used."""
    if not isinstance(prior, Decoding):
        raise MissingCapability(
            method, "a prior that decodes, enkg.latent(prior, decode, shape)", "daps does without"
        )
    if encodes and not isinstance(prior, Encoding):
        raise MissingCapability(
            method,
            "a prior that encodes, enkg.latent(prior, decode, shape, encode)",
            'latent-daps with space="latent" does without',
        )
