"""The posterior of phase retrieval on digits, by two independent sets of tempered chains.

    python experiments/references/digits_phase.py --make      # computes what is missing
    python experiments/references/digits_phase.py             # prints how well the two agree

There is no closed form, so this is a reference within sampling error. For each setting 3,200
particles are tempered twice, with two seeds (`experiments.references.tempered`); kept are 256 draws
of each (float16), and mean, standard deviations and class shares over all particles of both.

The two sets are compared by their energy distance (that of exact draws is 0 within its scatter) and
by the total variation between their class shares. Printed beside them is the error of one set's
mean in standard deviations of the posterior: 1 / sqrt(3200) = .018 for independent draws.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

import enkg
from enkg import metrics
from experiments.digits.setting import Setting
from experiments.references.digits import Reference, class_weights
from experiments.references.tempered import Chains, tempered
from priors import digits
from simulators.small_images import PADDED

FILE = Path(__file__).with_name("digits_phase.npz")
NOISES = (0.05,)
TRUTHS = 20
KEPT = 256  # draws of each of the two sets
SEEDS = (0, 1)
Arrays = dict[str, ndarray]


def potential(setting: Setting) -> Callable[[Tensor], Tensor]:
    """Phi of a setting of `phase` in torch up to a constant, (N, 64) to (N,).

    A frequency and its opposite have one magnitude, so half the frequencies are enough, with the
    mean of the two data and twice the weight.
    """
    y = setting.observation.y
    opposite = y.flip(0, 1).roll((1, 1), (0, 1))
    half = PADDED // 2
    inside = torch.zeros(half + 1, dtype=torch.bool)
    inside[1:half] = True  # the outer two columns hold their own opposites
    data = torch.where(inside, (y + opposite)[:, : half + 1] / 2, y[:, : half + 1])
    weight = torch.where(inside, 2.0, 1.0) / (2 * setting.noise**2)

    def phi(x: Tensor) -> Tensor:
        u = (x.reshape(-1, 8, 8) + 1) / 2
        magnitude = torch.fft.rfft2(u, s=(PADDED, PADDED), norm="ortho").abs()
        return (weight.to(x) * (magnitude - data.to(x)).square()).flatten(1).sum(dim=1)

    return phi


def chains(setting: Setting, seed: int) -> Chains:
    """One set of particles for a setting of `phase`."""
    return tempered(
        digits.centres().images.flatten(1).float(),
        setting.bandwidth,
        potential(setting),
        0.25 / setting.noise**2,  # magnitudes stretch no distance, and du = dx / 2
        seed,
    )


def compared(sets: Sequence[Chains]) -> Arrays:
    """What is kept of two sets."""
    images = [c.x.double().reshape(-1, 8, 8) for c in sets]
    # Neighbours among the particles may have one ancestor: evenly spaced ones differ most.
    drawn = [x[torch.linspace(0, len(x) - 1, KEPT).long()] for x in images]
    shares = [shares_of(c.component) for c in sets]
    whole = torch.cat(images)
    std = whole.std(dim=0)
    thinned = [x[:: max(1, len(x) // 2000)] for x in images]
    error = (images[0].mean(dim=0) - images[1].mean(dim=0)) / std
    return {
        "draws": torch.cat(drawn).numpy().astype(np.float16),
        "mean": whole.mean(dim=0).numpy().astype(np.float32),
        "std": std.numpy().astype(np.float32),
        "classes": torch.stack(shares).mean(dim=0).numpy(),
        "energy_distance": np.array(metrics.energy_distance(*thinned)),
        "class_distance": np.array(float((shares[0] - shares[1]).abs().sum() / 2)),
        "mean_error": np.array(float(error.square().mean().sqrt()) / 2**0.5),
        "acceptance": np.array(min(c.acceptance for c in sets)),
    }


def shares_of(component: Tensor) -> Tensor:
    """Class shares of particles by their components, (10,)."""
    counts = torch.bincount(component, minlength=digits.CENTRES).double()
    return class_weights(counts / counts.sum())


def name(setting: Setting) -> str:
    return f"{setting.bandwidth:g}-{setting.noise:g}-{setting.truth}"


def stored(setting: Setting, draws: int, file: Path = FILE) -> Reference:
    """The kept posterior of a setting, with up to so many draws, evenly from both sets.

    Raises enkg.InputError where this setting is not kept.
    """
    held = _read(file, [name(setting)])[name(setting)] if name(setting) in names(file) else None
    if held is None:
        raise enkg.InputError(
            f"no posterior is kept for phase with truth {setting.truth}, noise {setting.noise:g} "
            f"and bandwidth {setting.bandwidth:g}; there are those of truths 0 to {TRUTHS - 1} "
            f"with noise {' or '.join(f'{n:g}' for n in NOISES)}, or compute it: python "
            "experiments/references/digits_phase.py --make --truths ... --noise ..."
        )
    kept = torch.from_numpy(held["draws"]).double()
    kept = kept.reshape(len(SEEDS), -1, 8, 8).swapaxes(0, 1).flatten(0, 1)  # in turn from both
    mean, std, classes = (torch.from_numpy(held[k]).double() for k in ("mean", "std", "classes"))
    return Reference(mean, std, classes, kept[:draws], closed=False)


def names(file: Path) -> list[str]:
    """The settings that are kept."""
    if not file.is_file():
        return []
    with np.load(file) as held:
        return sorted({key.split("/")[0] for key in held.files})


def _read(file: Path, wanted: Sequence[str]) -> dict[str, Arrays]:
    with np.load(file) as held:
        return {
            one: {k.split("/")[1]: held[k] for k in held.files if k.split("/")[0] == one}
            for one in wanted
        }


def make(settings: Sequence[Setting], file: Path = FILE) -> None:
    """Computes the settings that are not kept yet, and keeps them; some minutes each."""
    for setting in settings:
        if name(setting) in names(file):
            continue
        begin = perf_counter()
        found = compared([chains(setting, seed) for seed in SEEDS])
        kept = _read(file, names(file)) if file.is_file() else {}
        kept[name(setting)] = found
        flat = {f"{one}/{k}": v for one, arrays in kept.items() for k, v in arrays.items()}
        part = file.with_suffix(".part.npz")
        np.savez_compressed(part, allow_pickle=False, **flat)
        part.rename(file)
        print(f"{told(name(setting), found)}  {perf_counter() - begin:.0f} s", flush=True)


def told(which: str, arrays: Arrays) -> str:
    classes = " ".join(
        f"{k}:{share:.3f}" for k, share in enumerate(arrays["classes"]) if share > 5e-4
    )
    return (
        f"{which:<12} energy distance {float(arrays['energy_distance']):.4f}  "
        f"class distance {float(arrays['class_distance']):.3f}  "
        f"mean error {float(arrays['mean_error']):.3f}  "
        f"accepted {float(arrays['acceptance']):.2f}  classes {classes}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="experiments/references/digits_phase.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--make", action="store_true", help="compute what is not kept yet")
    add("--truths", type=int, nargs="+", default=list(range(TRUTHS)), help="(0 to 19)")
    add("--noise", type=float, nargs="+", default=list(NOISES), help="(0.05)")
    options = parser.parse_args(arguments)
    settings = [Setting("phase", t, noise) for noise in options.noise for t in options.truths]
    if options.make:
        make(settings)
    held = _read(FILE, names(FILE)) if FILE.is_file() else {}
    for one, arrays in held.items():
        print(told(one, arrays))
    return 0


if __name__ == "__main__":
    sys.exit(main())
