"""How dear is one Navier-Stokes call, next to the FFTs it cannot do without?

    python -m experiments.benchmarks.navier_stokes --sizes 32 64 128

A step of the scheme has 5 stages of 5 real FFTs, so n steps need 25 n. The bare-FFT program does
as many, of the same size, width and number type, and nothing else: inverse and forward in turn, in
one compiled jax loop. scipy.fft does the same from Python, on one thread.

Each round times all three one after another and takes the ratios within the round; the figures are
medians over rounds, with the quartiles of the ratio. A neighbour on the machine then slows both
sides of a ratio: trust the ratios, and the milliseconds only on a quiet machine.

A second line gives the gradient: `vjp` in calls of the same round, and what reverse mode holds for
a member, in MiB as XLA allocates it: a spectrum for every block of steps and what a block leaves;
and the same with all steps in one block, which is reverse mode without checkpoints.

Measured on 2 shared, busy CPU cores, chunk 16, as many steps as points per side: ratio to the jax
FFTs 1.5 (size 32), 1.1 to 1.4 (64, six runs), 1.6 (128); 24 to 54 ms a member at 64, by load.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from scipy import fft

from simulators.navier_stokes import NavierStokes2D
from simulators.navier_stokes.adjoint import BLOCK, adjoint_programs

FFTS_A_STEP = 25


def smooth_fields(members: int, size: int, seed: int = 0) -> np.ndarray:
    """Random vorticity of std 1.6 and peak speed about 2, (members, size, size), float32."""
    k1, k2 = np.fft.fftfreq(size, 1 / size)[:, None], np.fft.rfftfreq(size, 1 / size)[None, :]
    squared = k1**2 + k2**2
    white = np.random.default_rng(seed).standard_normal((members, size, size))
    w = np.fft.irfft2(np.where(squared == 0, 0, (squared + 9) ** -2.0) * np.fft.rfft2(white))
    return (1.6 * w / w.std()).astype(np.float32)


def jax_ffts(x: np.ndarray, steps: int) -> Callable[[], object]:
    """A call that does 25 * steps real FFTs on every field of x in one compiled loop."""
    import jax
    import jax.numpy as jnp

    def pair(_: object, spectrum: jax.Array) -> jax.Array:
        return jnp.fft.rfftn(jnp.fft.irfftn(spectrum, axes=(1, 2)), axes=(1, 2))

    @jax.jit
    def loop(x: jax.Array, pairs: int) -> jax.Array:
        return jax.lax.fori_loop(0, pairs, pair, jnp.fft.rfftn(x, axes=(1, 2)))

    return lambda: jax.block_until_ready(loop(x, FFTS_A_STEP * steps // 2))


def scipy_ffts(x: np.ndarray, steps: int) -> Callable[[], object]:
    """A call that does 25 * steps real FFTs on every field of x with scipy on one thread."""

    def loop() -> object:
        spectrum = fft.rfft2(x)
        for _ in range(FFTS_A_STEP * steps // 2):
            spectrum = fft.rfft2(fft.irfft2(spectrum))
        return spectrum

    return loop


def memory(size: int, width: int, block: int, steps: int) -> float:
    """MiB a member of reverse mode through so many steps with a checkpoint every `block` steps."""
    import jax
    import jax.numpy as jnp

    single, programs = adjoint_programs(size, 200.0, 4, 1.0, block)
    spectrum = jax.ShapeDtypeStruct((width, size, size // 2 + 1), jnp.complex64)
    count, dt = (jax.ShapeDtypeStruct((width,), kind) for kind in (jnp.int32, jnp.float32))
    first = jax.ShapeDtypeStruct((), jnp.int32)
    with single():
        compiled = programs.retreat.lower(spectrum, first, count, dt, spectrum).compile()
    kept = np.ceil(steps / block) * width * size * (size // 2 + 1) * 8
    return (compiled.memory_analysis().temp_size_in_bytes + kept) / width / 2**20


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(size: int, steps: int, chunk: int, rounds: int) -> tuple[float, np.ndarray]:
    """Seconds of the first call, compilation included; then wall times, (rounds, 4), in seconds.

    Columns: simulator, bare FFTs in jax, bare FFTs in scipy, vjp; each for `chunk` members.
    """
    x = smooth_fields(chunk, size)
    # No Courant limit here: every member takes `steps` steps, whatever its speed.
    flow = NavierStokes2D(size=size, chunk=chunk, ladder=(steps,), courant=1e9)
    first = seconds(lambda: flow(x))
    run = flow.run(x)
    if run.failed.any() or run.reruns.any():
        raise SystemExit(f"{steps} steps are too few at size {size}: give more with --steps")
    v = smooth_fields(chunk, size, seed=1)
    calls = (lambda: flow(x), jax_ffts(x, steps), scipy_ffts(x, steps), lambda: flow.vjp(x, v))
    for call in calls:
        call()
    return first, np.array([[seconds(call) for call in calls] for _ in range(rounds)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print one row for each size."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.navier_stokes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", default=[32, 64], help="points per side (32 64)")
    add("--steps", type=int, help="time steps of one call (as many as points per side)")
    add("--chunk", type=int, default=16, help="members computed together (16)")
    add("--rounds", type=int, default=11, help="times each figure is measured (11)")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; give 1 or more")
    print("size steps chunk | first, s | ms/member | FFTs, jax  ratio (quartiles)   | scipy  ratio")
    for size in options.sizes:
        steps = options.steps or size
        first, times = measure(size, steps, options.chunk, options.rounds)
        own, jax_, scipy_, vjp = np.median(times, axis=0) * 1e3 / options.chunk
        low, ratio, high = np.percentile(times[:, 0] / times[:, 1], [25, 50, 75])
        other = np.median(times[:, 0] / times[:, 2])
        print(
            f"{size:4d} {steps:5d} {options.chunk:5d} | {first:8.1f} | {own:9.2f} | {jax_:9.2f} "
            f"{ratio:6.2f} ({low:.2f}-{high:.2f}) | {scipy_:6.2f} {other:6.2f}",
            flush=True,
        )
        low, ratio, high = np.percentile(times[:, 3] / times[:, 0], [25, 50, 75])
        held = [memory(size, options.chunk, block, steps) for block in (BLOCK, steps)]
        print(
            f"     vjp: {vjp:.2f} ms/member, {ratio:.2f} ({low:.2f}-{high:.2f}) calls; "
            f"{held[0]:.2f} MiB/member, {held[1]:.2f} without checkpoints",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
