"""Guidance methods: how the measurement moves the ensemble.

`METHODS` names every method and preset; `enkg run FILE --guidance NAME` picks one.
"""

from enkg.guidance.base import Forward, Guidance, Info, State
from enkg.guidance.enkg import EnKG
from enkg.guidance.enkg_published import EnKGPublished
from enkg.guidance.es_mda import ESMDA
from enkg.guidance.slr import SLR

METHODS: dict[str, Guidance] = {
    "enkg": EnKG(),
    "enkg-square-root": EnKG(deterministic=True),
    "es-mda": ESMDA(),
    "slr": SLR(),
    "enkg-published": EnKGPublished(),
    "enkg-published-black-hole": EnKGPublished(
        members=1024, updates=1, step_size=3.5, first_guided=9, last_guided=71, decay_floor=1e-3
    ),
    "enkg-published-inversebench": EnKGPublished(first_guided=1, last_guided=79, flow_every=8),
}
"""Methods and presets by name. The published presets carry the constants of the public scripts of
arXiv 2409.20175 (Navier-Stokes and FFHQ; black hole) and arXiv 2503.11043."""

__all__ = [
    "ESMDA",
    "METHODS",
    "SLR",
    "EnKG",
    "EnKGPublished",
    "Forward",
    "Guidance",
    "Info",
    "State",
]
