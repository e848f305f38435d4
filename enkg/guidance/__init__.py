"""Guidance methods: how the measurement moves the ensemble.

`METHODS` names every method and preset; `enkg run FILE --guidance NAME` picks one.
"""

from enkg.guidance.admm_tv import ADMMTV
from enkg.guidance.base import Forward, Guidance, Info, State
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
from enkg.guidance.presets import METHODS
from enkg.guidance.psld import PSLD
from enkg.guidance.reddiff import REDdiff
from enkg.guidance.resample import ReSample
from enkg.guidance.scg import SCG
from enkg.guidance.scoreald import ScoreALD
from enkg.guidance.sdedit import SDEdit
from enkg.guidance.slr import SLR
from enkg.guidance.weighted import WeightedEnKG
from enkg.prior import Prior, White


def suited(prior: Prior) -> Guidance:
    """The method for a prior about which nothing else is known: SLR if it is Gaussian, else EnKG.

    Where the simulator is far from linear across a Gaussian prior, SLR ends unconverged and says
    so; then EnKG is the better choice.
    """
    return SLR() if isinstance(prior, White) else EnKG()


__all__ = [
    "ADMMTV",
    "DAPS",
    "DDNM",
    "DDRM",
    "DPG",
    "DPS",
    "EKI",
    "ER",
    "ESMDA",
    "GSG",
    "HIO",
    "ILVR",
    "MCG",
    "METHODS",
    "MMPS",
    "OSS",
    "PSLD",
    "SCG",
    "SLR",
    "ConjugatePiGDM",
    "DAEnK",
    "DiffPIR",
    "EKIPublished",
    "EnKG",
    "EnKGPublished",
    "Forward",
    "Guidance",
    "Info",
    "LatentDAPS",
    "PiGDM",
    "PnPADMM",
    "Polish",
    "REDdiff",
    "ReSample",
    "SDEdit",
    "ScoreALD",
    "SplitGibbs",
    "State",
    "WeightedEnKG",
    "suited",
]
