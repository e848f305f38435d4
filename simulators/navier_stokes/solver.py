"""The vorticity equation on the torus, as a black box: fields now -> fields later.

    w_t + u . grad w = nu lap w - a k cos(k y),        nu = 1 / reynolds,  [0, 2 pi)^2, periodic
    -lap psi = w,   u = psi_y,   v = -psi_x,   mean(w) = const

on size x size points x_i = 2 pi i / size (axis 0 = x, axis 1 = y). The forcing is the curl of the
body force (a sin(k y), 0), the Kolmogorov flow. Pseudo-spectral in space with the 2/3 rule,
five-stage Runge-Kutta of order 4 for advection, Crank-Nicolson for diffusion, in float32: the
spectral solver of jax-cfd. Its mask is a row or two lopsided: size 32 keeps k1 from -11 to 9, size
64 from -21 to 20. On a random field at size 32 and Reynolds 100 a mask cut evenly at s/3 moved the
answer by 2.6 %, which says that the field needs a larger size.

**The step is each member's own.** With U the largest speed of the member's own field and
c = U dt size / (2 pi) its Courant number, a leg of length t takes the first rung of the ladder
that is at least t U size / (2 pi courant). Nothing is taken from the batch, so a fast member
neither slows the others nor changes their answers. Diffusion is implicit and sets no limit.
Times above 1 are done in equal legs of at most 1, each with its own step: flows speed up.

**A failure is data.** A member that is not finite after a leg, or has gained more vorticity than
the forcing can give, repeats that leg once at a quarter of the step. If this does not help, or if
the input was not finite or too fast for the ladder, its row is NaN; the other rows do not notice.

References:
    G. Dresdner et al., Learning to correct spectral methods for simulating turbulent flows,
    TMLR 2023, arXiv:2207.00556 (the solver in jax-cfd).
    C. Canuto et al., Spectral Methods, Springer 2007, appendix D.3 (the time stepper).
    M. Carpenter and C. Kennedy, Fourth-order 2N-storage Runge-Kutta schemes, NASA TM-109112,
    1994 (the coefficients).
    S. Orszag, On the elimination of aliasing in finite-difference schemes by filtering
    high-wavenumber components, J. Atmos. Sci. 28, 1971 (the 2/3 rule).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, isfinite, pi, sqrt

import numpy as np

from simulators.navier_stokes.adjoint import adjoint_program
from simulators.navier_stokes.program import vorticity_program

LADDER = (32, 48, 64, 96, 128, 192, 256, 384, 512)
QUARTER = 4  # a re-run takes this many times more steps
SLACK = 1.5  # rms vorticity may pass its bound by this much before a leg counts as blown up


def peak_speed(w: np.ndarray) -> np.ndarray:
    """The largest speed on the grid, max sqrt(u^2 + v^2), of each vorticity field.

    w: vorticity, shape (B, s, s). Returns shape (B,), float64; not finite where w is not.
    Cost: 3 FFTs a field.
    """
    s = w.shape[-1]
    k1 = np.fft.fftfreq(s, 1 / s)[:, None]
    k2 = np.fft.rfftfreq(s, 1 / s)[None, :]
    squared = k1**2 + k2**2
    squared[0, 0] = 1.0  # the mean carries no velocity: k1 = k2 = 0 there
    speed = np.empty(len(w))
    with np.errstate(all="ignore"):
        for i, field in enumerate(w):
            psi = np.fft.rfft2(field.astype(np.float64)) / squared
            u = np.fft.irfft2(1j * k2 * psi, s=(s, s))
            v = np.fft.irfft2(-1j * k1 * psi, s=(s, s))
            speed[i] = np.sqrt((u**2 + v**2).max())
    return speed


@dataclass(frozen=True)
class Run:
    """What one call did, member by member."""

    y: np.ndarray  # vorticity at t = duration, (B, s, s), float32; NaN where the member failed
    steps: np.ndarray  # time steps spent, re-runs included, (B,); 0: refused before the first step
    reruns: np.ndarray  # legs repeated at a quarter of the step, (B,)

    @property
    def failed(self) -> np.ndarray:
        """True for each member whose row is NaN, shape (B,)."""
        return np.logical_not(np.isfinite(self.y).all(axis=(1, 2)))


@dataclass(frozen=True)
class NavierStokes2D:
    """Vorticity at t = 0 to vorticity at t = duration: ``(B, size, size) -> (B, size, size)``.

    size: points per side, even. 64 does not resolve fully developed flow at Reynolds 200.
    reynolds: 1 / nu.
    duration: time units. One call costs at least ladder[0] steps per started time unit.
    forcing: wavenumber k of the body force (amplitude sin(k y), 0).
    amplitude: its strength a; 0 switches it off.
    courant: the Courant number no member starts a leg above. jax-cfd's scheme turned unstable at
        about 1.8 on developed flows; its error reaches the float32 floor of 1e-4 near 0.4.
    chunk: members per compiled call. The last chunk is padded, so that one program serves all.
    ladder: the step counts a leg may have. A member too fast for the last rung gets four times
        that many steps, and is a failed member if even this is too few.
    """

    size: int = 64
    reynolds: float = 200.0
    duration: float = 1.0
    forcing: int = 4
    amplitude: float = 1.0
    courant: float = 0.6
    chunk: int = 16
    ladder: tuple[int, ...] = LADDER

    def __post_init__(self) -> None:
        if self.size < 8 or self.size % 2:
            raise ValueError(f"size is {self.size}; give an even number of points, 8 or more")
        for name in ("reynolds", "duration", "courant"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; give a positive, finite number")
        if not (isfinite(self.amplitude) and self.amplitude >= 0):
            raise ValueError(f"amplitude is {self.amplitude}; give 0 (no forcing) or more")
        if not 1 <= self.forcing < self.size / 3:
            raise ValueError(
                f"forcing wavenumber is {self.forcing}; {self.size} points keep wavenumbers "
                f"1 to {ceil(self.size / 3) - 1}: give one of these or a larger size"
            )
        if self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; give 1 or more members per compiled call")
        rungs = tuple(self.ladder)
        if not rungs or rungs[0] < 1 or any(b <= a for a, b in pairwise(rungs)):
            raise ValueError(f"ladder is {rungs}; give rising step counts of 1 or more: (32, 64)")

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x: vorticity (B, size, size). Returns float32 of that shape; a failed member is NaN.

        Cost of a member: 25 FFTs a step, and 2 more. B = 0 is allowed.
        """
        return self.run(x).y

    def run(self, x: np.ndarray) -> Run:
        """The same answer as a call, with the steps and re-runs each member took."""
        return self._run(x)[0]

    def vjp(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        """J(x)^T v, the gradient of sum(v * simulator(x)): (B, s, s), (B, s, s) -> (B, s, s).

        float32; a row is NaN where the member fails or v is not finite. Cost of a member: about 5
        forward calls, one of them to know its steps. Memory: see `adjoint.py`.
        """
        v = self._checked(v, "v")
        run, legs = self._run(x)
        if v.shape != run.y.shape:
            raise ValueError(f"v has shape {v.shape}; expected {run.y.shape}, a row for each of x")
        v[run.failed | ~np.isfinite(v).all(axis=(1, 2))] = np.nan
        program = adjoint_program(self.size, self.reynolds, self.forcing, self.amplitude)
        t = self.duration / len(legs)
        for w, taken in reversed(legs):
            n = np.where(np.isfinite(v).all(axis=(1, 2)), taken, 0)
            v = self._in_chunks(program, n, t, w, v)
        v[~np.isfinite(v).all(axis=(1, 2))] = np.nan
        return v

    def _run(self, x: np.ndarray) -> tuple[Run, list[tuple[np.ndarray, np.ndarray]]]:
        """The answers; and of each leg, the fields before it and the steps that led to its end."""
        w = self._checked(x)
        steps = np.zeros(len(w), dtype=np.int64)
        reruns = np.zeros(len(w), dtype=np.int64)
        legs = []
        count = max(1, ceil(self.duration - 1e-9))
        t = self.duration / count
        for _ in range(count):
            n = self.steps(w, t)
            taken = n
            after = self._advance(w, n, t)
            steps += n
            again = (n > 0) & ~self._plausible(w, after, t)
            if again.any():
                n = np.where(again, QUARTER * n, 0)
                after[again] = self._advance(w[again], n[again], t)
                after[again & ~self._plausible(w, after, t)] = np.nan
                steps += n
                reruns += again
                taken = np.where(again, n, taken)
            legs.append((w, taken))
            w = after
        return Run(w, steps, reruns), legs

    def steps(self, w: np.ndarray, t: float) -> np.ndarray:
        """The steps each field of w, (B, size, size), takes for a leg of length t: (B,) ints.

        0 means that the field is not finite, or too fast for four times the last rung.
        """
        # A parcel gains speed at most a t from the forcing; the larger of the two is at least
        # half of what it can reach, and the scheme bears more than twice the Courant number.
        speed = np.maximum(peak_speed(w), self.amplitude * t)
        rungs = np.array([0, *self.ladder, QUARTER * self.ladder[-1], 0])
        with np.errstate(invalid="ignore"):
            least = np.where(np.isfinite(speed), speed, np.inf)
            least = least * t * self.size / (2 * pi * self.courant)
        return rungs[1:][np.searchsorted(rungs[1:-1], least)]

    def _checked(self, x: np.ndarray, name: str = "x") -> np.ndarray:
        """A float32 copy of x, (B, size, size)."""
        x = np.asarray(x)
        if x.ndim != 3 or x.shape[1:] != (self.size, self.size):
            raise ValueError(
                f"got an array {name} of shape {x.shape}; expected (B, {self.size}, {self.size}), "
                "members first: reshape it (x[None] for a single field) or set size to its grid"
            )
        if x.dtype.kind not in "fiu":
            raise ValueError(
                f"got {name} of dtype {x.dtype}; expected real numbers: pass x.real or floats"
            )
        with np.errstate(over="ignore"):
            return x.astype(np.float32)

    def _advance(self, w: np.ndarray, n: np.ndarray, t: float) -> np.ndarray:
        """w after time t in n steps, (B, size, size); NaN where n is 0."""
        program = vorticity_program(self.size, self.reynolds, self.forcing, self.amplitude)
        return self._in_chunks(program, n, t, w)

    def _in_chunks(
        self, program: Callable[..., np.ndarray], n: np.ndarray, t: float, *fields: np.ndarray
    ) -> np.ndarray:
        """program(field, n, dt, fields...) of all members, (B, size, size); NaN where n is 0.

        Members of like n share a chunk, because a chunk takes as many steps as its slowest.
        """
        after = np.full_like(fields[0], np.nan)
        order = np.argsort(n, kind="stable")
        order = order[n[order] > 0]
        for start in range(0, order.size, self.chunk):
            members = order[start : start + self.chunk]
            padded = np.zeros((len(fields), self.chunk, self.size, self.size), dtype=np.float32)
            count = np.zeros(self.chunk, dtype=np.int64)
            count[: members.size] = n[members]
            for place, given in zip(padded, fields, strict=True):
                place[: members.size] = given[members]
            dt = t / np.maximum(count, 1)
            after[members] = program(padded[0], count, dt, *padded[1:])[: members.size]
        return after

    def _plausible(self, before: np.ndarray, after: np.ndarray, t: float) -> np.ndarray:
        """True where a leg ended finite and within its bound on vorticity, shape (B,).

        Advection keeps the rms vorticity, diffusion lowers it, forcing adds at most a k t / sqrt 2.
        """
        with np.errstate(all="ignore"):
            rms_before, rms_after = (
                np.sqrt(np.mean(np.square(w), axis=(1, 2), dtype=np.float64))
                for w in (before, after)
            )
            bound = rms_before + self.amplitude * self.forcing * t / sqrt(2)
            return rms_after <= SLACK * bound  # False for NaN


def burned_in(simulator: NavierStokes2D, fields: np.ndarray, duration: float = 5.0) -> np.ndarray:
    """Let random fields become flows: the fields after `duration` time units.

    fields: vorticity (B, size, size), for instance a Gaussian random field. Returns float32 of
    that shape. Cost: `duration` calls of the simulator at duration 1.
    """
    return replace(simulator, duration=duration)(fields)
