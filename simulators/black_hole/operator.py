"""What a radio interferometer sees of an image: visibilities and their closure quantities.

An image of n x n pixels of side p (radians; field of view n p), row 0 north and column 0 east, has
pixel centres

    x_j = p ((n-1)/2 - j)  (east positive),      y_i = p ((n-1)/2 - i)  (north positive)

and, with triangular pixels (the image is continuous and piecewise bilinear), the visibility on the
baseline (u, v), in wavelengths,

    V(u, v) = sinc(u p)^2 sinc(v p)^2  sum_ij I_ij exp(+2 pi i (u x_j + v y_i)),
    sinc(a) = sin(pi a) / (pi a)

Pulse and sign are those of the eht-imaging package. The sum is one dense matrix product, which for
some hundred baselines is faster than a non-uniform FFT. From V follow the data products

    visibility              Re V, Im V                                       2 M numbers, unit of I
    amplitude               |V|                                              M numbers, unit of I
    closure_phase           cos phi, sin phi per triangle                    2 T numbers
    log_closure_amplitude   ln|V_12| + ln|V_34| - ln|V_14| - ln|V_23|        Q numbers
    total_flux              sum_ij I_ij                                      1 number, unit of I

(see `closures.py`). Closure phases are given as phasors, which never wrap. Both closures are blind
to the total flux and to the position of the source: use any normalisation of the image.

References:
    Thompson, Moran & Swenson (2017), Interferometry and Synthesis in Radio Astronomy.
    Chael et al. (2018), ApJ 857, 23: imaging with closure quantities, and the eht-imaging package.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .closures import closure_phasors, incidence, log_closure_amplitudes, row_numbers
from .files import complete_or_absent

MICROARCSECOND = np.pi / 180 / 3600 * 1e-6
"""Radians in a microarcsecond."""

PRODUCTS = ("visibility", "amplitude", "closure_phase", "log_closure_amplitude", "total_flux")
"""Names of the data products."""

CLOSURES = ("closure_phase", "log_closure_amplitude")

WIDTH = 32
"""Images in one matrix product. Fixed and padded, so that an answer never depends on the batch."""

WEAK = 1e-4
"""A float32 visibility below this fraction of the total flux is computed again in float64."""


def pixel_centres(pixels: int, field_of_view: float) -> np.ndarray:
    """Coordinates of columns (east positive) or rows (north positive), shape (pixels,).

    In the unit of field_of_view, falling from (field_of_view - one pixel)/2 to minus that.
    """
    return field_of_view / pixels * ((pixels - 1) / 2 - np.arange(pixels))


@dataclass(frozen=True, eq=False)
class BlackHole:
    """Images to closure quantities: `simulator(x) -> y`, shape (B, n, n) -> (B, m).

    u, v: baselines in wavelengths, shape (M,). triangles (T, 3) and quadrangles (Q, 4): row numbers
    into u and v, by the convention of `closures.py` (see `minimal_closures`). pixels: n.
    field_of_view: width of the image in microarcseconds. products: names out of `PRODUCTS`, in the
    order in which they fill y; `slices` says where. dtype: of the matrix product.

    x may be any array of real numbers; physical images are non-negative. y is float64.
    A member whose image is not finite, or which has a closure through a visibility that is zero to
    working precision (an empty image has), comes back as a row of NaN. An answer depends on its own
    image alone, to the last bit, whatever the batch. With dtype "float32" visibilities are good to
    3e-7 of the total flux; a member with a visibility below 1e-4 of it is repeated in float64.

    Memory: 8 M n^2 bytes for the float32 matrix (7 MB at M = 216, n = 64), built at the first call
    and not pickled.
    """

    u: np.ndarray
    v: np.ndarray
    triangles: np.ndarray
    quadrangles: np.ndarray
    pixels: int
    field_of_view: float
    products: tuple[str, ...] = CLOSURES
    dtype: str = "float32"
    _matrices: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("u", np.ascontiguousarray(self.u, dtype=np.float64))
        put("v", np.ascontiguousarray(self.v, dtype=np.float64))
        if self.u.ndim != 1 or self.u.shape != self.v.shape or len(self.u) == 0:
            raise ValueError(
                f"u and v have shapes {self.u.shape} and {self.v.shape}; give two vectors of the "
                "same length, one entry per baseline, in wavelengths"
            )
        if not (np.isfinite(self.u).all() and np.isfinite(self.v).all()):
            raise ValueError("u or v holds NaN or infinity; remove those baselines")
        put("triangles", row_numbers("triangles", self.triangles, 3, len(self.u)))
        put("quadrangles", row_numbers("quadrangles", self.quadrangles, 4, len(self.u)))
        given = (self.products,) if isinstance(self.products, str) else self.products
        put("products", tuple(given))
        unknown = [name for name in self.products if name not in PRODUCTS]
        if unknown or not self.products or len(set(self.products)) < len(self.products):
            raise ValueError(
                f"products is {self.products}; give one or more different names out of {PRODUCTS}"
            )
        if int(self.pixels) != self.pixels or self.pixels < 1:
            raise ValueError(f"pixels is {self.pixels}; give a whole number of at least 1")
        put("pixels", int(self.pixels))
        put("field_of_view", float(self.field_of_view))
        if not 0 < self.field_of_view < np.inf:
            raise ValueError(
                f"field_of_view is {self.field_of_view}; give the width of the image in "
                "microarcseconds, for instance 128"
            )
        put("dtype", str(self.dtype))
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype is {self.dtype!r}; give 'float32' or 'float64'")

    @property
    def x_shape(self) -> tuple[int, int]:
        """Shape of one image."""
        return self.pixels, self.pixels

    @property
    def y_shape(self) -> tuple[int]:
        """Shape of one answer, (m,)."""
        return (sum(self._size(name) for name in self.products),)

    @property
    def slices(self) -> dict[str, slice]:
        """Where each product stands in y. Phases: first all cosines, then all sines."""
        ends = np.cumsum([self._size(name) for name in self.products])
        return {
            name: slice(int(end) - self._size(name), int(end))
            for name, end in zip(self.products, ends, strict=True)
        }

    def _size(self, product: str) -> int:
        return {
            "visibility": 2 * len(self.u),
            "amplitude": len(self.u),
            "closure_phase": 2 * len(self.triangles),
            "log_closure_amplitude": len(self.quadrangles),
            "total_flux": 1,
        }[product]

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """Data products of images: (B, n, n) -> (B, m), float64; failed members are rows of NaN.

        Cost: 0.1 ms per image at n = 64 and M = 216, in batches of 32 or more, on one core.
        """
        images, finite = self._images(x)
        return self._answers(images, self._visibilities(images), finite)

    def visibilities(self, x: ArrayLike) -> np.ndarray:
        """Complex visibilities of images: (B, n, n) -> (B, M), in the unit of a pixel."""
        images, finite = self._images(x)
        visibility = self._visibilities(images)
        visibility[~finite] = np.nan
        return visibility

    def _images(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Flattened images (B, n^2), zero where not finite; and which were finite, (B,)."""
        images = np.asarray(x)
        if images.ndim != 3 or images.shape[1:] != self.x_shape:
            hint = "; for one image give x[None]" if images.shape == self.x_shape else ""
            raise ValueError(
                f"images have shape {images.shape}; expected (B, {self.pixels}, {self.pixels}), "
                f"members first{hint}"
            )
        if images.dtype.kind not in "fiub":
            raise ValueError(f"images have dtype {images.dtype}; give real numbers")
        images = images.reshape(len(images), self.pixels**2)
        if images.dtype.kind != "f":
            images = images.astype(np.float64)
        finite = np.asarray(np.isfinite(images).all(axis=1))
        return np.where(finite[:, None], images, 0), finite

    def _visibilities(self, images: np.ndarray) -> np.ndarray:
        """(B, n^2) -> (B, M); all images finite."""
        visibility = _complex(_times(images, self._matrix(self.dtype)))
        if self.dtype == "float32":
            flux = np.abs(images).sum(axis=1, dtype=np.float64)
            weak = (np.abs(visibility) < WEAK * flux[:, None]).any(axis=1)
            if weak.any():
                visibility[weak] = _complex(_times(images[weak], self._matrix("float64")))
        return visibility

    def _matrix(self, dtype: str) -> np.ndarray:
        """Real and imaginary parts of the Fourier matrix side by side, shape (n^2, 2 M)."""
        if dtype not in self._matrices:
            pixel = self.field_of_view / self.pixels * MICROARCSECOND
            centre = pixel_centres(self.pixels, self.field_of_view * MICROARCSECOND)
            east = np.exp(2j * np.pi * np.outer(centre, self.u)) * np.sinc(self.u * pixel) ** 2
            north = np.exp(2j * np.pi * np.outer(centre, self.v)) * np.sinc(self.v * pixel) ** 2
            wave = (north[:, None, :] * east[None, :, :]).reshape(self.pixels**2, -1)
            self._matrices[dtype] = _parts(wave).astype(dtype)
        return self._matrices[dtype]

    def _answers(
        self, images: np.ndarray, visibility: np.ndarray, finite: np.ndarray
    ) -> np.ndarray:
        """Data products (B, m) of visibilities (B, M), with NaN rows for the failed members."""
        y = np.empty((len(images), *self.y_shape))
        for name, place in self.slices.items():
            if name == "visibility":
                y[:, place] = _parts(visibility)
            elif name == "amplitude":
                y[:, place] = np.abs(visibility)
            elif name == "closure_phase":
                y[:, place] = _parts(closure_phasors(visibility, self.triangles))
            elif name == "log_closure_amplitude":
                y[:, place] = log_closure_amplitudes(visibility, self.quadrangles)
            else:
                y[:, place] = images.sum(axis=1, dtype=np.float64)[:, None]
        y[~(finite & self._closed(images, visibility))] = np.nan
        y[~np.isfinite(y).all(axis=1)] = np.nan
        return y

    def _closed(self, images: np.ndarray, visibility: np.ndarray) -> np.ndarray:
        """Which members have all the visibilities that their closures go through."""
        tables = {"closure_phase": self.triangles, "log_closure_amplitude": self.quadrangles}
        rows = [table.ravel() for name, table in tables.items() if name in self.products]
        used = np.unique(np.concatenate(rows)) if rows else np.array([], dtype=np.intp)
        zero = np.finfo(np.float64).eps * np.abs(images).sum(axis=1, dtype=np.float64)
        return (np.abs(visibility[:, used]) > zero[:, None]).all(axis=1)

    def vjp(self, x: ArrayLike, v: ArrayLike) -> np.ndarray:
        """J(x)^T v, the gradient of sum(v * simulator(x)): (B, n, n), (B, m) -> (B, n, n).

        For the gradient-based methods that this simulator is compared with. NaN for failed members.
        Cost: two to three forward calls.
        """
        images, finite = self._images(x)
        weight = np.asarray(v, dtype=np.float64)
        if weight.shape != (len(images), *self.y_shape):
            raise ValueError(f"v has shape {weight.shape}; expected {(len(images), *self.y_shape)}")
        visibility = self._visibilities(images)
        failed = ~finite | np.isnan(self._answers(images, visibility, finite)).any(axis=1)
        visibility[failed] = 1
        with np.errstate(divide="ignore", invalid="ignore"):
            direction = np.where(visibility == 0, 0, visibility / np.abs(visibility))
            inverse = np.where(visibility == 0, 0, 1 / np.conj(visibility))
        # cotangent = d/d(Re V) + i d/d(Im V);  d ln|V| = Re(conj(inverse) dV),
        # d arg V = Re(conj(i inverse) dV)
        cotangent = np.zeros_like(visibility)
        flux = np.zeros((len(images), 1))
        for name, place in self.slices.items():
            w = weight[:, place]
            half = w.shape[1] // 2
            if name == "visibility":
                cotangent += w[:, :half] + 1j * w[:, half:]
            elif name == "amplitude":
                cotangent += w * direction
            elif name == "closure_phase":
                phasor = closure_phasors(visibility, self.triangles)
                per_radian = np.real(phasor) * w[:, half:] - np.imag(phasor) * w[:, :half]
                closing = incidence(self.triangles, len(self.u))
                cotangent += 1j * inverse * _times(per_radian, closing)
            elif name == "log_closure_amplitude":
                closing = incidence(self.quadrangles, len(self.u))
                cotangent += inverse * _times(w, closing)
            else:
                flux = w
        gradient = _times(_parts(cotangent), self._matrix(self.dtype).T) + flux
        gradient[failed] = np.nan
        return gradient.reshape(len(images), *self.x_shape)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the geometry (not the matrix) as .npz; the file is complete or absent."""
        with complete_or_absent(path) as part, part.open("wb") as file:
            held: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in _stored()}
            np.savez(file, **held)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BlackHole:
        """Read what `save` wrote; u, v, pixels and field_of_view must be there."""
        try:
            with np.load(path, allow_pickle=False) as file:
                held = {name: file[name] for name in file.files}
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} does not exist; BlackHole.save writes it") from None
        except Exception as error:  # numpy raises a different type for every kind of damage
            raise ValueError(
                f"{path} is not a readable .npz file ({error}); BlackHole.save writes one"
            ) from error
        known = _stored()
        missing = [name for name in ("u", "v", "pixels", "field_of_view") if name not in held]
        unknown = [name for name in held if name not in known]
        if missing or unknown:
            raise ValueError(f"{path} lacks {missing} and has unknown {unknown}; expected {known}")
        held.setdefault("triangles", np.empty((0, 3), int))
        held.setdefault("quadrangles", np.empty((0, 4), int))
        for name, convert in (("pixels", int), ("field_of_view", float), ("dtype", str)):
            if name in held:
                held[name] = convert(held[name])
        if "products" in held:
            held["products"] = tuple(str(name) for name in np.atleast_1d(held["products"]))
        return cls(**held)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_matrices": {}}


def _stored() -> list[str]:
    """Names of the fields that describe a simulator, in order."""
    return [f.name for f in fields(BlackHole) if f.init]


def _parts(z: np.ndarray) -> np.ndarray:
    """Real parts, then imaginary parts: (B, k) -> (B, 2 k)."""
    return np.concatenate([np.real(z), np.imag(z)], axis=1)


def _complex(parts: np.ndarray) -> np.ndarray:
    """The inverse of `_parts`: (B, 2 k) -> (B, k)."""
    half = parts.shape[1] // 2
    return parts[:, :half] + 1j * parts[:, half:]


def _times(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """rows @ matrix in the precision of the matrix, as float64: (B, k), (k, l) -> (B, l).

    In products of exactly `WIDTH` rows: BLAS takes different paths for different widths, which
    changes the last bits. Each row is first scaled to order one by a power of two, which is exact:
    no unit is too small or too large for float32.
    """
    _, exponent = np.frexp(np.abs(rows).max(axis=1, initial=0, keepdims=True).astype(np.float64))
    out = np.empty((len(rows), matrix.shape[1]))
    for start in range(0, len(rows), WIDTH):
        part = slice(start, min(start + WIDTH, len(rows)))
        padded = np.zeros((WIDTH, rows.shape[1]), dtype=matrix.dtype)
        padded[: part.stop - start] = np.ldexp(rows[part].astype(np.float64), -exponent[part])
        out[part] = (padded @ matrix)[: part.stop - start]
    return np.ldexp(out, exponent)
