"""Guidance methods: how the measurement moves the ensemble.

`METHODS` names every method and preset; `enkg run FILE --guidance NAME` picks one.
"""

from dataclasses import replace
from typing import Any

from enkg.guidance.base import Forward, Guidance, Info, State
from enkg.guidance.daenk import DAEnK
from enkg.guidance.dpg import DPG
from enkg.guidance.eki import EKI, EKIPublished
from enkg.guidance.enkg import EnKG
from enkg.guidance.enkg_published import EnKGPublished
from enkg.guidance.es_mda import ESMDA
from enkg.guidance.gibbs import SplitGibbs
from enkg.guidance.gsg import GSG
from enkg.guidance.polish import Polish
from enkg.guidance.scg import SCG
from enkg.guidance.slr import SLR
from enkg.guidance.weighted import WeightedEnKG
from enkg.prior import Prior, White

_VP: dict[str, Any] = {"members": 2, "levels": 1000, "schedule": "variance-preserving"}
_EDM: dict[str, Any] = {"schedule": "karras", "sigma_max": 100.0, "sigma_min": 0.01}
_GSG = GSG(form="norm", queries=1024, **_VP)
_DPG = DPG(form="published", **_VP)
_SCG = SCG(sampler="euler-maruyama", **_VP)

METHODS: dict[str, Guidance] = {
    "enkg": EnKG(),
    "enkg-square-root": EnKG(deterministic=True),
    "enkg-inflated": EnKG(members=500, updates=5, deterministic=True, inflation=1.05),
    "enkg-polished": EnKG(updates=8, polish=Polish(5)),
    "weighted": WeightedEnKG(),
    "daenk": DAEnK(),
    "split-gibbs": SplitGibbs(),
    "es-mda": ESMDA(),
    "es-mda-16": ESMDA(updates=16),
    "es-mda-geometric": ESMDA(updates=5, ratio=3.0),
    "eki-one-step": ESMDA(updates=1),
    "eki": EKI(),
    "eki-own-residual": EKI(residual="own"),
    "eki-published": EKIPublished(),
    "slr": SLR(),
    "enkg-published": EnKGPublished(),
    "enkg-published-black-hole": EnKGPublished(
        members=1024, updates=1, step_size=3.5, first_guided=9, last_guided=71, decay_floor=1e-3
    ),
    "enkg-published-inversebench": EnKGPublished(first_guided=1, last_guided=79, flow_every=8),
    "gsg": GSG(),
    "gsg-forward": GSG(kind="forward"),
    "gsg-central-navier-stokes": replace(_GSG, guidance_scale=0.1),
    "gsg-forward-navier-stokes": replace(_GSG, kind="forward", guidance_scale=0.1),
    "gsg-central-black-hole": _GSG,
    "gsg-forward-black-hole": replace(_GSG, kind="forward"),
    "gsg-central-ffhq": replace(_GSG, guidance_scale=1.0),
    "gsg-forward-ffhq": replace(_GSG, kind="forward", guidance_scale=1.0),
    "gsg-central-inversebench": replace(_GSG, **_EDM, queries=2048),
    "gsg-forward-inversebench": replace(_GSG, **_EDM, queries=2048, kind="forward"),
    "scg": SCG(),
    "scg-navier-stokes": replace(_SCG, candidates=512),
    "scg-black-hole": replace(_SCG, candidates=1024),
    "scg-ffhq": replace(_SCG, candidates=256),
    "dpg": DPG(),
    "dpg-navier-stokes": replace(_DPG, candidates=4000, guidance_scale=64.0),
    "dpg-black-hole": replace(_DPG, candidates=5000, guidance_scale=10.0),
    "dpg-ffhq-inpainting": replace(_DPG, candidates=5000, guidance_scale=200.0),
    "dpg-ffhq-super-resolution": replace(_DPG, candidates=800, guidance_scale=160.0),
    "dpg-ffhq-deblurring": replace(_DPG, candidates=800, guidance_scale=200.0),
    "dpg-ffhq-phase-retrieval": replace(_DPG, candidates=1000, guidance_scale=300.0),
    "dpg-inversebench": replace(_DPG, **_EDM, candidates=5000, guidance_scale=180.0),
}
"""Methods and presets by name. The published presets carry the constants of the public scripts of
arXiv 2409.20175 (Navier-Stokes and FFHQ; black hole) and arXiv 2503.11043."""


def suited(prior: Prior) -> Guidance:
    """The method for a prior about which nothing else is known: SLR if it is Gaussian, else EnKG.

    Where the simulator is far from linear across a Gaussian prior, SLR ends unconverged and says
    so; then EnKG is the better choice.
    """
    return SLR() if isinstance(prior, White) else EnKG()


__all__ = [
    "DPG",
    "EKI",
    "ESMDA",
    "GSG",
    "METHODS",
    "SCG",
    "SLR",
    "DAEnK",
    "EKIPublished",
    "EnKG",
    "EnKGPublished",
    "Forward",
    "Guidance",
    "Info",
    "Polish",
    "SplitGibbs",
    "State",
    "WeightedEnKG",
    "suited",
]
