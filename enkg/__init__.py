"""enkg: inverting black-box scientific simulators with diffusion priors.

    experiment = enkg.Experiment(prior=..., simulator=..., observation=enkg.Observation(y, std=0.1))
    tree = enkg.run(experiment, "runs/first")

Start with `Experiment` and `run`; `enkg --help` lists what the command line does.
"""

__version__ = "0.5.0"

from enkg import comm
from enkg.ablation import Ablation
from enkg.bridge import differentiable, jax_vjp, torch_vjp
from enkg.calibrate import Calibration, calibrate
from enkg.errors import EnkgError, EnsembleFailure, InputError, MissingCapability, StoreError
from enkg.execute import Cached, Function, Pool, Program, UMBridge
from enkg.experiment import Experiment
from enkg.failure import Cause, Failure, FailurePolicy
from enkg.field import Field
from enkg.guidance import (
    ADMMTV,
    DAPS,
    DDNM,
    DDRM,
    DPG,
    DPS,
    EKI,
    ER,
    ESMDA,
    GSG,
    HIO,
    ILVR,
    MCG,
    METHODS,
    MMPS,
    OSS,
    PSLD,
    SCG,
    SLR,
    ConjugatePiGDM,
    DAEnK,
    DiffPIR,
    EKIPublished,
    EnKG,
    EnKGPublished,
    Guidance,
    Info,
    LatentDAPS,
    PiGDM,
    PnPADMM,
    Polish,
    REDdiff,
    ReSample,
    ScoreALD,
    SDEdit,
    SplitGibbs,
    State,
    WeightedEnKG,
)
from enkg.latent import latent
from enkg.learned import (
    EDM,
    Denoiser,
    FlowMatching,
    Generated,
    LogNormal,
    Reflect,
    Rotate,
    Shift,
    Trained,
    Training,
    UNet,
    VariancePreserving,
    from_diffusers,
    latent_from_diffusers,
    rescaled,
    samples,
    train,
)
from enkg.low import Low
from enkg.observation import Observation
from enkg.poisson import Poisson
from enkg.prior import Gaussian, Mixture, Prior
from enkg.report import Analysis, Table
from enkg.run import run
from enkg.sample import Flow
from enkg.simulator import Evaluator, Result, Simulator
from enkg.store import export_netcdf, summary
from enkg.store import open_run as open
from enkg.transform import Eigenbasis, Identity, RealFourier
from enkg.units import Affine, Log, Units

__all__ = [
    "ADMMTV",
    "DAPS",
    "DDNM",
    "DDRM",
    "DPG",
    "DPS",
    "EDM",
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
    "Ablation",
    "Affine",
    "Analysis",
    "Cached",
    "Calibration",
    "Cause",
    "ConjugatePiGDM",
    "DAEnK",
    "Denoiser",
    "DiffPIR",
    "EKIPublished",
    "Eigenbasis",
    "EnKG",
    "EnKGPublished",
    "EnkgError",
    "EnsembleFailure",
    "Evaluator",
    "Experiment",
    "Failure",
    "FailurePolicy",
    "Field",
    "Flow",
    "FlowMatching",
    "Function",
    "Gaussian",
    "Generated",
    "Guidance",
    "Identity",
    "Info",
    "InputError",
    "LatentDAPS",
    "Log",
    "LogNormal",
    "Low",
    "MissingCapability",
    "Mixture",
    "Observation",
    "PiGDM",
    "PnPADMM",
    "Poisson",
    "Polish",
    "Pool",
    "Prior",
    "Program",
    "REDdiff",
    "ReSample",
    "RealFourier",
    "Reflect",
    "Result",
    "Rotate",
    "SDEdit",
    "ScoreALD",
    "Shift",
    "Simulator",
    "SplitGibbs",
    "State",
    "StoreError",
    "Table",
    "Trained",
    "Training",
    "UMBridge",
    "UNet",
    "Units",
    "VariancePreserving",
    "WeightedEnKG",
    "calibrate",
    "comm",
    "differentiable",
    "export_netcdf",
    "from_diffusers",
    "jax_vjp",
    "latent",
    "latent_from_diffusers",
    "open",
    "rescaled",
    "run",
    "samples",
    "summary",
    "torch_vjp",
    "train",
]
