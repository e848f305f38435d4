"""Reading the public M87 data of the Event Horizon Telescope, April 2017.

The recipe, after the published imaging scripts:

    load the uvfits file -> find the scans -> average each scan coherently -> treat the intra-site
    baselines -> number the stations by signal-to-noise ratio -> add 2 % of |V| in quadrature to the
    thermal errors -> minimal closure sets, not debiased

Intra-site baselines (ALMA-APEX, JCMT-SMA) see 1.2 Jy, most of it extended emission which an image
of some 100 microarcseconds cannot hold. Either their visibilities and errors are multiplied by
compact_flux / median |V| of ALMA-APEX ("rescale", the default), or those rows are left out
("drop"), or nothing is done ("keep"; then no compact image fits the log closure amplitudes).
Closure phases do not notice a rescaling.

The file is read with the eht-imaging package (`pip install "enkg[radio]"`), imported only here.

References:
    EHT Collaboration (2019), First M87 EHT Results: Calibrated Data, release 2019-D01-01,
        https://eventhorizontelescope.org/for-astronomers/data (Open Data Commons PDDL).
    EHT Collaboration (2019c, d), ApJL 875, L3 and L4: data processing; imaging.
    Chael et al. (2018), ApJ 857, 23: the eht-imaging package.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from experiments.m87.data import INTRA_SITE, ClosureData, table

FILE = "SR1_M87_2017_101_lo_hops_netcal_StokesI.uvfits"
"""11 April 2017, low band (227.07 GHz), 650,880 bytes."""

SHA256 = "697af2bb3bbf732115108ffefacd3e59e307f38fe685c3c4579146b0bd661298"

URL = (
    "https://raw.githubusercontent.com/eventhorizontelescope/2019-D01-01/"
    "27ae76aacb9067a83388395c3826012b97aac371/uvfits/" + FILE
)

REFERENCE = "ALMA-APEX", ("AA", "AP")
"""The intra-site baseline whose median amplitude sets the rescaling."""


def fetch() -> Path:
    """The data file of 11 April 2017, low band: from the folder ENKG_DATA, or downloaded once.

    The folder is searched recursively. The download goes to pooch's cache. The checksum is
    compared in either case.
    """
    folder = os.environ.get("ENKG_DATA")
    if folder:
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"ENKG_DATA names {folder}, which is not a folder; name one that holds {FILE}"
            )
        for path in sorted(Path(folder).rglob(FILE)):
            _check_sum(path, SHA256)
            return path
    try:
        import pooch
    except ImportError:
        raise ImportError(
            f'downloading {FILE} needs pooch: pip install "enkg[radio]", or set ENKG_DATA to a '
            "folder that holds the file"
        ) from None
    try:
        cache = pooch.os_cache("enkg")
        return Path(pooch.retrieve(URL, known_hash=f"sha256:{SHA256}", fname=FILE, path=cache))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{FILE} is neither below the folder ENKG_DATA ({folder or 'not set'}) nor could it "
            f"be downloaded ({type(error).__name__}); get it from {URL} and set ENKG_DATA to its "
            "folder"
        ) from error


def read_uvfits(
    path: str | os.PathLike[str] | None = None,
    *,
    sha256: str | None = None,
    systematics: float = 0.02,
    intra_site: str = "rescale",
    compact_flux: float = 0.6,
    compact_flux_std: float | None = None,
    products: tuple[str, ...] = ("closure_phase", "log_closure_amplitude"),
) -> ClosureData:
    """Scan-averaged closures of a uvfits file of this array; without a path, of `fetch()`.

    sha256: compared if given, and always where the file has the name of that of `fetch`: zeroed
    visibilities look like flagged ones, so nothing else would tell. systematics: fraction of |V|
    added in quadrature. intra_site: "rescale", "drop" or "keep" (see above). compact_flux: Jy;
    compact_flux_std: its error, needed only for the product "total_flux". products: what `y` holds.
    Cost: about 1 s, and 4 to 10 s for the first import of eht-imaging.
    """
    if intra_site not in ("rescale", "drop", "keep"):
        raise ValueError(f"intra_site is {intra_site!r}; give 'rescale', 'drop' or 'keep'")
    if not compact_flux > 0:
        raise ValueError(f"compact_flux is {compact_flux}; give a positive number of Jy")
    path = fetch() if path is None else Path(path)
    digest = _check_uvfits(path, sha256 or (SHA256 if path.name == FILE else None))
    averaged = _average(path)
    columns = {name: averaged.data[name] for name in ("time", "t1", "t2", "u", "v", "vis", "sigma")}
    columns, treatment = _treat_intra_site(columns, intra_site, compact_flux)
    data = table(
        columns["time"],
        columns["t1"],
        columns["t2"],
        columns["u"],
        columns["v"],
        columns["vis"],
        columns["sigma"],
        products=tuple(products),
        flux=compact_flux,
        flux_std=compact_flux_std,
        source=str(averaged.source),
        right_ascension=float(averaged.ra),
        declination=float(averaged.dec),
        frequency=float(averaged.rf),
        mjd=int(averaged.mjd),
        provenance={
            "file": path.name,
            "sha256": digest,
            "data set": "EHT 2019-D01-01, doi:10.3847/2041-8213/ab0c57",
            "averaging": "coherent, by scan",
            "intra-site baselines": treatment,
            "closures": "minimal sets, not debiased",
        },
    )
    return data.with_systematics(systematics)


def _treat_intra_site(
    columns: dict[str, np.ndarray], treatment: str, compact_flux: float
) -> tuple[dict[str, np.ndarray], str]:
    """Rescale, drop or keep the intra-site rows; returns the columns and a sentence about it."""
    short = np.hypot(columns["u"], columns["v"]) < INTRA_SITE
    rows = f"{short.sum()} of {len(short)} rows"
    if treatment == "keep" or not short.any():
        return columns, f"kept as they are, {rows}"
    if treatment == "drop":
        return {name: column[~short] for name, column in columns.items()}, f"dropped, {rows}"
    name, codes = REFERENCE
    pair = np.isin(columns["t1"], codes) & np.isin(columns["t2"], codes)
    if not pair.any():
        raise ValueError(
            f"the file has intra-site baselines but none of {name}, whose flux sets the "
            "rescaling; read it with intra_site='drop'"
        )
    measured = float(np.median(np.abs(columns["vis"][pair])))
    factor = np.where(short, compact_flux / measured, 1.0)
    scaled = {**columns, "vis": columns["vis"] * factor, "sigma": columns["sigma"] * factor}
    return scaled, f"rescaled from {measured:.3f} to {compact_flux:.3f} Jy, {rows}"


def _check_sum(path: Path, expected: str | None) -> str:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if expected is not None and digest != expected:
        raise ValueError(
            f"{path} has sha256 {digest[:12]}..., expected {expected[:12]}...; the file is damaged "
            "or another release: remove it and fetch it again"
        )
    return digest


def _check_uvfits(path: Path, expected: str | None) -> str:
    """Refuse what is missing, not FITS, shorter than its header says, or without visibilities."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the path of a .uvfits file")
    digest = _check_sum(path, expected)
    fits = import_fits()
    try:
        with quiet(), fits.open(path, memmap=False) as units:
            needed = [unit.fileinfo()["datLoc"] + unit.fileinfo()["datSpan"] for unit in units]
            groups, names = units[0].header.get("GROUPS", False), [unit.name for unit in units]
    except Exception as error:  # astropy raises a different type for every kind of damage
        raise ValueError(
            f"{path} is not a readable FITS file ({_one_line(error)}); fetch it again"
        ) from error
    if path.stat().st_size < max(needed):
        raise ValueError(
            f"{path} is truncated: it has {path.stat().st_size} bytes, its headers announce "
            f"{max(needed)}; fetch it again"
        )
    if not groups or "AIPS AN" not in names:
        raise ValueError(
            f"{path} is a FITS file without visibilities (units {names}); expected uvfits: random "
            "groups and an antenna table 'AIPS AN'"
        )
    return digest


def _average(path: Path) -> Any:
    """The scan-averaged observation of eht-imaging, Stokes I."""
    ehtim = import_ehtim()
    try:
        with quiet():
            observation = ehtim.obsdata.load_uvfits(str(path)).switch_polrep("stokes")
            observation.add_scans()
            averaged = observation.avg_coherent(0.0, scan_avg=True)
    except Exception as error:  # eht-imaging does not check its input and fails in many ways
        raise ValueError(
            f"{path} cannot be read as uvfits ({_one_line(error)}); it is damaged or not in the "
            "form of the EHT releases: fetch it again"
        ) from error
    if len(averaged.data) == 0:
        raise ValueError(f"{path} holds no visibilities; fetch it again")
    return averaged


def import_ehtim() -> ModuleType:
    """eht-imaging, without its greetings. Takes 4 to 10 s the first time."""
    import matplotlib

    with matplotlib.rc_context():  # it changes the fonts of everybody's figures
        return _import("ehtim")


def import_fits() -> ModuleType:
    """The FITS reader and writer of astropy."""
    return _import("astropy.io.fits")


def _import(name: str) -> ModuleType:
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'reading and writing radio files needs {name}: pip install "enkg[radio]" ({error})'
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what a library prints and warns about inside the block."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."
