"""All methods and presets by name.

A preset is a method with the constants that somebody published for one problem.
"""

from dataclasses import replace
from typing import Any

from enkg.guidance.admm_tv import ADMMTV
from enkg.guidance.base import Guidance
from enkg.guidance.conjugate_pigdm import ConjugatePiGDM
from enkg.guidance.daenk import DAEnK
from enkg.guidance.daps import DAPS
from enkg.guidance.ddnm import DDNM
from enkg.guidance.ddrm import DDRM
from enkg.guidance.diffpir import DiffPIR
from enkg.guidance.dpg import DPG
from enkg.guidance.dps import DPS
from enkg.guidance.eki import EKI, EKIPublished
from enkg.guidance.enkg import EnKG
from enkg.guidance.enkg_published import EnKGPublished
from enkg.guidance.error_reduction import ER
from enkg.guidance.es_mda import ESMDA
from enkg.guidance.gibbs import SplitGibbs
from enkg.guidance.gsg import GSG
from enkg.guidance.hio import HIO
from enkg.guidance.ilvr import ILVR
from enkg.guidance.latent_daps import LatentDAPS
from enkg.guidance.mcg import MCG
from enkg.guidance.mmps import MMPS
from enkg.guidance.oss import OSS
from enkg.guidance.pigdm import PiGDM
from enkg.guidance.pnp_admm import PnPADMM
from enkg.guidance.polish import Polish
from enkg.guidance.psld import PSLD
from enkg.guidance.reddiff import REDdiff
from enkg.guidance.resample import ReSample
from enkg.guidance.scg import SCG
from enkg.guidance.scoreald import ScoreALD
from enkg.guidance.sdedit import SDEdit
from enkg.guidance.slr import SLR
from enkg.guidance.weighted import WeightedEnKG

_VP: dict[str, Any] = {"members": 2, "levels": 1000, "schedule": "variance-preserving"}
_EDM: dict[str, Any] = {"schedule": "karras", "sigma_max": 100.0, "sigma_min": 0.01}
_GSG = GSG(form="norm", queries=1024, **_VP)
_DPG = DPG(form="published", **_VP)
_SCG = SCG(sampler="euler-maruyama", **_VP)
_LOG: dict[str, Any] = {
    "schedule": "geometric",
    "levels": 100,
    "sigma_max": 100.0,
    "sigma_min": 0.01,
}
_DPS = DPS(form="norm", guidance_scale=0.5, **_VP)
_DIFFPIR = DiffPIR(prox="svd", noise="diffpir", zeta=0.1, **{**_VP, "levels": 100})
_RED = REDdiff(
    weighting="constant",
    strength=0.25,
    loss="squared",
    decay="none",
    antithetic=False,
    **_VP,
)
_PUBLISHED: dict[str, Any] = {
    "sigma_min": 0.1,
    "correction": "none",
    "decay": 0.01,
    "radius": "sigma",
    "estimate": "flow",
    "start": "clean",
    "noise": 0.01,
}
_DAPS = DAPS(levels=200, sigma_max=100.0, steps=100, **_PUBLISHED)
_LATENT = LatentDAPS(
    levels=50, sigma_max=10.0, move="hmc", flow_steps=2, flow_end=0.001, **_PUBLISHED
)
_DAPS_STEP = {
    "phase-retrieval": 5e-5,
    "inpainting-box": 5e-5,
    "inpainting-random": 1e-4,
    "super-resolution": 1e-4,
    "gaussian-blur": 1e-4,
    "motion-blur": 5e-5,
    "hdr": 2e-5,
    "nonlinear-blur": 1e-5,
}
_DAPS_HMC = {
    "phase-retrieval": (62, 9.75e-6, 0.73),
    "inpainting-box": (84, 1.15e-5, 0.003),
    "inpainting-random": (11, 3.56e-5, 0.80),
    "super-resolution": (12, 1.04e-4, 0.90),
    "gaussian-blur": (82, 4.04e-5, 0.10),
    "motion-blur": (96, 3.69e-5, 0.11),
    "hdr": (100, 2.18e-5, 0.23),
    "nonlinear-blur": (85, 1.20e-5, 0.46),
}
_LATENT_HMC = {
    "phase-retrieval": (65, 2.1e-5, 0.41),
    "inpainting-box": (15, 9.02e-6, 0.74),
    "inpainting-random": (38, 8.40e-6, 0.92),
    "super-resolution": (24, 1.35e-4, 0.86),
    "gaussian-blur": (35, 2.70e-6, 0.95),
    "motion-blur": (49, 2.4e-5, 0.45),
    "hdr": (38, 4.52e-6, 0.58),
    "nonlinear-blur": (80, 3.71e-6, 0.91),
}
"""Steps, step size and momentum of each task, as the public code has them."""


def _daps(task: str) -> DAPS:
    steps = 200 if task == "nonlinear-blur" else 100
    return replace(_DAPS, step_size=_DAPS_STEP[task], steps=steps)


def _hmc(method: DAPS, constants: tuple[int, float, float]) -> DAPS:
    steps, step_size, momentum = constants
    return replace(method, move="hmc", steps=steps, step_size=step_size, momentum=momentum)


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
    "slr-refined": SLR(members=56, steps=28, draws=200, refine=6),
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
    "dps": DPS(),
    "dps-plain": DPS(form="plain"),
    "dps-paper-inpainting": _DPS,
    "dps-paper-super-resolution": replace(_DPS, guidance_scale=0.3),
    "dps-paper-gaussian-deblurring": replace(_DPS, guidance_scale=0.3),
    "dps-paper-motion-deblurring": replace(_DPS, guidance_scale=0.3),
    "dps-paper-nonlinear-deblurring": replace(_DPS, guidance_scale=0.3),
    "dps-paper-phase-retrieval": replace(_DPS, guidance_scale=1.0),
    "dps-inversebench": replace(_DPS, guidance_scale=10.0, sampler="euler-maruyama"),
    "mcg": MCG(),
    "mcg-paper": MCG(form="norm", guidance_scale=0.5, **_VP),
    "scoreald": ScoreALD(),
    "sdedit": SDEdit(),
    "sdedit-adjoint": SDEdit(guide="adjoint"),
    "sdedit-vp": SDEdit(levels=1000, schedule="variance-preserving"),
    "mmps": MMPS(),
    "mmps-ancestral": MMPS(sampler="ancestral", levels=150),
    "mmps-nonlinear": MMPS(products="differences"),
    "pigdm": PiGDM(),
    "pigdm-cg": PiGDM(inverse="cg"),
    "pigdm-surrogate": PiGDM(inverse="pinv"),
    "pigdm-paper": PiGDM(form="published", schedule="variance-preserving", levels=100),
    "pigdm-inversebench": PiGDM(form="published", noise="fixed", eta=0.2, **_LOG),
    "conjugate-pigdm": ConjugatePiGDM(),
    "conjugate-pigdm-surrogate": ConjugatePiGDM(inverse="pinv"),
    "conjugate-pigdm-super-resolution": ConjugatePiGDM(
        levels=5, weight=15.0, noise_std=0.0, start="published"
    ),
    "conjugate-pigdm-super-resolution-noisy": ConjugatePiGDM(
        levels=5, weight=2.0, shift=-0.15, start="published"
    ),
    "daps": DAPS(),
    "daps-hmc": DAPS(move="hmc", levels=20, steps=50),
    "daps-mh": DAPS(move="metropolis", levels=20, steps=200),
    "latent-daps": LatentDAPS(),
    "latent-daps-pixel": LatentDAPS(space="pixel"),
    **{f"daps-paper-{task}": _daps(task) for task in _DAPS_STEP},
    **{f"daps-hmc-paper-{task}": _hmc(_DAPS, _DAPS_HMC[task]) for task in _DAPS_HMC},
    **{f"latent-daps-paper-{task}": _hmc(_LATENT, _LATENT_HMC[task]) for task in _LATENT_HMC},
    "psld": PSLD(),
    "psld-paper": PSLD(levels=1000, schedule="variance-preserving"),
    "resample": ReSample(),
    "resample-paper": ReSample(
        levels=500,
        schedule="variance-preserving",
        pixel_iterations=2000,
        latent_iterations=500,
    ),
    "ddrm": DDRM(),
    "ddrm-published": DDRM(noise="ddrm", eta=0.85, **{**_VP, "levels": 20}),
    "ddrm-inversebench": DDRM(members=2, noise="ddrm", eta=0.85, **_LOG),
    "ddnm": DDNM(),
    "ddnm-plus": DDNM(plus=True),
    "ddnm-published": DDNM(noise="ddrm", eta=0.85, **{**_VP, "levels": 100}),
    "ddnm-plus-published": DDNM(plus=True, noise="ddrm", eta=0.85, **{**_VP, "levels": 100}),
    "diffpir": DiffPIR(),
    "diffpir-svd": DiffPIR(prox="svd"),
    "diffpir-cg": DiffPIR(prox="cg"),
    "diffpir-published": _DIFFPIR,
    "diffpir-deepinv": replace(_DIFFPIR, strength=7.0),
    "diffpir-inversebench": replace(_DIFFPIR, zeta=1.0, strength=8.0, levels=1000),
    "reddiff": REDdiff(),
    "reddiff-published": replace(_RED, weighting="linear", start="pinv"),
    "reddiff-inversebench": replace(_RED, rate=0.02),
    "reddiff-inversebench-black-hole": replace(_RED, loss="whitened", weight=1e-4, rate=0.01),
    "projection": ILVR(),
    "score-sde": ILVR(**_VP),
    "ilvr": ILVR(form="lowpass", factor=4, **_VP),
    "pnp-admm": PnPADMM(),
    "pnp-admm-svd": PnPADMM(solver="svd"),
    "pnp-admm-published": PnPADMM(iterations=10, metric="plain", penalty=0.2, strength=5e-4),
    "admm-tv": ADMMTV(),
    "admm-tv-published": ADMMTV(iterations=30, metric="plain", strength=2.7e-2, penalty=0.14),
    "admm-tv-inpainting-published": ADMMTV(
        iterations=30, metric="plain", strength=1e-2, penalty=1e-2
    ),
    "hio": HIO(),
    "hio-er": HIO(reduction=50),
    "hio-published": HIO(iterations=10_000),
    "er": ER(),
    "er-published": ER(iterations=10_000),
    "oss": OSS(),
    "oss-published": OSS(iterations=10_000),
}
"""Methods and presets by name. The published presets carry the constants of the public scripts of
arXiv 2409.20175 (Navier-Stokes and FFHQ; black hole), of arXiv 2503.11043 (inversebench), and of
the papers of each method; its own docstring says which of them are unconfirmed."""
