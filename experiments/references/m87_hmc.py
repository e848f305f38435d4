"""The Gaussian-prior posterior of M87 by Hamiltonian Monte Carlo: the reference for the ensembles.

    python experiments/references/m87_hmc.py
    python experiments/references/m87_hmc.py --store

Same data, likelihood (phasors and log closure amplitudes) and prior as image.py with --prior
gaussian, but sampled with gradients, in the whitened coefficients w ~ N(0, I) of the prior:

    U(w) = 1/2 |w|^2 + 1/2 |r(w)|^2,     mass = I + mean of J^T J over the chains,  J = dr/dw.

This mean Gauss-Newton mass is computed anew before each warm-up round. The covariance of the chains
is no substitute: closures leave the position of the source free, so the posterior is a thin curved
sheet, and what is wide on the whole is stiff at each point. Along that sheet the trajectories are
slow, so Metropolis moves shift the images too. With D the derivative along an axis and U the basis,
dz/dt = U^T D (mu / scale + U z) is an affine flow of the coefficients; its matrix is made exactly
antisymmetric, so it keeps volumes, runs back as it runs on, and t and -t are proposed alike.

Two runs share nothing but the target. One starts at the members of a tempered EnKG; the other at
prior draws, whose likelihood is raised from 1/1000 to its full power during the warm-up. Some
chains are left in modes of far lower density: where the potential is HOPELESS above the median at
the end of a warm-up round, a chain goes on from the place of another. How many did is printed. What
else is printed, and with --store written to m87.npz beside this file, is the pooled answer, the
split R-hat over the chains of both runs, and how far the two runs differ.

References: Neal 2011, "MCMC using Hamiltonian dynamics"; Girolami & Calderhead 2011, JRSS B 73, 123
(Fisher information as the metric).
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg import expm
from torch import Generator, Tensor

import enkg
from experiments.m87.chi_squares import chi_squares
from experiments.m87.data import ClosureData
from experiments.m87.imaging import FLUX, Sky, imaging
from experiments.m87.ring import fit_rings
from experiments.m87.uvfits import read_uvfits
from experiments.references.chains import effective_size, split_r_hat
from priors.log_images import CLIP
from simulators.black_hole import BlackHole
from simulators.black_hole.closures import incidence

STORED = Path(__file__).parent / "m87.npz"
FIELD_OF_VIEW = 128.0
LEADING = 10  # coefficients whose split R-hat is stated by itself
IMAGES = 24  # snapshots of each chain of which images are made
RINGS = 4  # snapshots of each chain to which rings are fitted, 20 ms each
BRIGHT = 400  # pixels, the brightest of the mean image, of which the split R-hat is stated
METRIC = 24  # chains over which J^T J is averaged
SHIFTS = (0.05, 0.1, 0.2, 0.3)  # pixels, of which one is drawn for each move
HOPELESS = 50.0  # the potential itself has a standard deviation near 10
POWERS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The stored answer. mean, std: images (64, 64) in Jy per pixel. facts: see `m87_hmc.py`."""

    mean: np.ndarray
    std: np.ndarray
    facts: dict[str, Any]


def load(path: Path = STORED) -> Reference:
    """The stored reference; no sampling."""
    with np.load(path) as stored:
        facts = json.loads(str(stored["facts"]))
        return Reference(stored["mean"].astype(float), stored["std"].astype(float), facts)


class Posterior:
    """Potential of whitened coefficients w; power: that of the likelihood."""

    def __init__(self, sky: Sky, simulator: BlackHole, observation: enkg.Observation) -> None:
        basis = sky.basis
        pixels = int(np.prod(basis.shape))
        each = np.eye(pixels, dtype=np.float32).reshape(pixels, *basis.shape)
        response = torch.from_numpy(simulator.visibilities(each))
        self.real, self.imaginary = response.real.float(), response.imag.float()
        rows = len(simulator.u)
        self.triangles = torch.from_numpy(incidence(simulator.triangles, rows).T).float()
        self.quadrangles = torch.from_numpy(incidence(simulator.quadrangles, rows).T).float()
        self.lift = torch.from_numpy(basis.scale * basis.basis * np.sqrt(basis.variance)).float()
        self.mean = torch.from_numpy(basis.mean).float()
        self.y, self.std = observation.y.float(), observation.std.float()

    def images(self, w: Tensor) -> Tensor:
        """Coefficients (B, K) to images (B, n * n) of sum one."""
        return torch.softmax((self.mean + w @ self.lift.T).clamp(*CLIP), dim=1)

    def residual(self, w: Tensor) -> Tensor:
        """(B, K) to whitened residuals (B, m)."""
        image = self.images(w)
        real, imaginary = image @ self.real, image @ self.imaginary
        phase = torch.atan2(imaginary, real) @ self.triangles
        log = 0.5 * (real.square() + imaginary.square()).log() @ self.quadrangles
        return (self.y - torch.cat([phase.cos(), phase.sin(), log], dim=1)) / self.std

    def potential(self, w: Tensor, power: float = 1.0) -> Tensor:
        """(B, K) to (B,)."""
        return 0.5 * w.square().sum(1) + 0.5 * power * self.residual(w).square().sum(1)

    def gradient(self, w: Tensor, power: float = 1.0) -> tuple[Tensor, Tensor]:
        """Potential (B,) and its gradient (B, K)."""
        w = w.detach().requires_grad_()
        u = self.potential(w, power)
        return u.detach(), torch.autograd.grad(u.sum(), w)[0]

    def scale(self, w: Tensor, power: float = 1.0) -> Tensor:
        """S with S S^T the inverse of the mass, (K, K), from the chains w (B, K)."""
        jacobian = torch.func.jacfwd(lambda v: self.residual(v[None])[0])
        mass = torch.eye(w.shape[1], dtype=torch.float64)
        for row in w:
            mass += power / len(w) * (j := jacobian(row).double()).T @ j
        return torch.linalg.inv(torch.linalg.cholesky(mass)).T.contiguous().float()


def shifts(sky: Sky) -> list[tuple[Tensor, Tensor]]:
    """Maps w to w R^T + c, (K, K) and (K,), that shift images along either axis, both ways."""
    basis, side = sky.basis, sky.basis.shape[0]
    spread = np.sqrt(basis.variance.astype(float))
    wave = 2j * np.pi * np.fft.fftfreq(side)
    wave[side // 2] = 0  # so that the derivative is real and antisymmetric
    maps = []
    for axis in range(2):

        def derivative(columns: np.ndarray, axis: int = axis) -> np.ndarray:
            fields = columns.reshape(side, side, -1)
            factor = np.expand_dims(wave, (1 - axis, 2))
            slopes = np.fft.ifft(np.fft.fft(fields, axis=axis) * factor, axis=axis).real
            return basis.basis.T @ slopes.reshape(side * side, -1)

        matrix = derivative(basis.basis)
        count = len(matrix)
        generator = np.zeros((count + 1, count + 1))
        generator[:count, :count] = (matrix - matrix.T) / 2
        generator[:count, count:] = derivative(basis.mean / basis.scale)
        for pixels in SHIFTS:
            for way in (pixels, -pixels):
                flow = expm(way * generator)[:count]
                turn, move = flow[:, :count] * spread / spread[:, None], flow[:, count] / spread
                maps.append((torch.from_numpy(turn).float(), torch.from_numpy(move).float()))
    return maps


@dataclasses.dataclass(frozen=True, eq=False)
class Hamiltonian:
    """Transitions of many chains: `leapfrogs` steps on average, then `shifted` shifts."""

    posterior: Posterior
    scale: Tensor
    leapfrogs: int
    maps: list[tuple[Tensor, Tensor]]
    shifted: int
    power: float = 1.0

    def move(self, w: Tensor, step: float, generator: Generator) -> tuple[Tensor, Tensor, float]:
        """New (B, K), their potentials (B,), and the mean probability of acceptance.

        Length and step are drawn anew, the same for all chains, against periodic trajectories.
        """
        u, g = self.posterior.gradient(w, self.power)
        p = torch.randn(w.shape, generator=generator)
        energy = u + 0.5 * p.square().sum(1)
        longer, stretch = torch.rand(2, generator=generator).tolist()
        length = step * (0.9 + 0.2 * stretch)
        q, v = w, u
        for _ in range(max(1, round(self.leapfrogs * (0.5 + longer)))):
            p = p - 0.5 * length * g @ self.scale
            q = q + length * p @ self.scale.T
            v, g = self.posterior.gradient(q, self.power)
            p = p - 0.5 * length * g @ self.scale
        change = (energy - v - 0.5 * p.square().sum(1)).nan_to_num(-torch.inf)
        yes = torch.rand(len(w), generator=generator).log() < change
        rate = float(change.clamp(max=0).exp().mean())
        w, u = torch.where(yes[:, None], q, w), torch.where(yes, v, u)
        for k in torch.randint(len(self.maps), (self.shifted,), generator=generator).tolist():
            turn, move = self.maps[k]
            q = w @ turn.T + move
            v = self.posterior.potential(q, self.power)
            yes = torch.rand(len(w), generator=generator).log() < u - v
            w, u = torch.where(yes[:, None], q, w), torch.where(yes, v, u)
        return w, u, rate

    def adapt(
        self, w: Tensor, step: float, iterations: int, generator: Generator
    ) -> tuple[Tensor, float]:
        """Chains after warm-up, and the step of which 80 % are accepted."""
        for iteration in range(iterations):
            w, _, rate = self.move(w, step, generator)
            step *= float(np.exp((rate - 0.8) / (1 + iteration) ** 0.5))
        return w, step


@dataclasses.dataclass(frozen=True, eq=False)
class Chains:
    """Draws (iterations, chains, K) and potentials (iterations, chains) after warm-up."""

    draws: Tensor
    potential: Tensor
    acceptance: float
    step: float
    seconds: float
    replaced: int


def sample(
    posterior: Posterior,
    maps: list[tuple[Tensor, Tensor]],
    start: Tensor,
    powers: tuple[float, ...],
    given: argparse.Namespace,
    seed: int,
) -> Chains:
    """Chains from start (B, K); powers: of the likelihood, before it is full, one round each."""
    generator = torch.Generator().manual_seed(seed)
    begin = time.perf_counter()
    w, step = start, 0.2
    moves, replaced = None, 0
    for power in (*powers, *(1.0,) * given.rounds):
        scale = posterior.scale(w[:METRIC], power)
        moves = Hamiltonian(posterior, scale, given.leapfrogs, maps, given.shifts, power)
        w, step = moves.adapt(w, step, given.warm_up, generator)
        if power == 1:
            w, count = _without_hopeless(posterior, w, generator)
            replaced += count
    assert moves is not None
    draws, potential, rates = [], [], []
    for _ in range(given.iterations):
        w, u, rate = moves.move(w, step, generator)
        draws.append(w)
        potential.append(u)
        rates.append(rate)
    return Chains(
        torch.stack(draws),
        torch.stack(potential),
        float(np.mean(rates)),
        step,
        time.perf_counter() - begin,
        replaced,
    )


def _without_hopeless(posterior: Posterior, w: Tensor, generator: Generator) -> tuple[Tensor, int]:
    """Chains (B, K), those in far worse modes at the places of others, and their number."""
    u = posterior.potential(w)
    good = (u < u.median() + HOPELESS).nonzero()[:, 0]
    drawn = good[torch.randint(len(good), (len(w),), generator=generator)]
    kept = torch.where(u < u.median() + HOPELESS, torch.arange(len(w)), drawn)
    return w[kept], len(w) - len(good)


def skies(posterior: Posterior, draws: Tensor, count: int) -> np.ndarray:
    """Images of `count` snapshots of each chain, (count, chains, n, n), Jy per pixel."""
    rows = np.linspace(0, len(draws) - 1, min(count, len(draws))).round().astype(int)
    thin = draws[rows]
    flat = FLUX * posterior.images(thin.flatten(0, 1)).numpy()
    side = round(flat.shape[1] ** 0.5)
    return flat.reshape(*thin.shape[:2], side, side)


def centroid(images: np.ndarray) -> np.ndarray:
    """Centre of light of images (..., n, n): (..., 2), pixels, row and column."""
    index = np.arange(images.shape[-1])
    rows, columns = images.sum(axis=-1), images.sum(axis=-2)
    return np.stack([rows @ index, columns @ index], axis=-1) / FLUX


def figures(posterior: Posterior, draws: Tensor, data: ClosureData) -> dict[str, Any]:
    """What image.py states of an ensemble, of the chains (iterations, chains, K)."""
    each = skies(posterior, draws, IMAGES)
    images = each.reshape(-1, *each.shape[2:])
    mean, std = images.mean(axis=0), images.std(axis=0, ddof=1)
    rings = fit_rings(skies(posterior, draws, RINGS).reshape(-1, *mean.shape), FIELD_OF_VIEW)
    chi, members = (chi_squares(v, data, FIELD_OF_VIEW) for v in (mean[None], images))
    names = ("closure_phase", "log_closure_amplitude")
    misfit = torch.stack([posterior.residual(w).square().sum(1) for w in draws[::10]])
    independent = len(data.triangles) + len(data.quadrangles)
    return {
        "mean": mean,
        "std": std,
        "relative_spread": float(std.sum() / mean.sum()),
        "misfit_per_datum": float(misfit.mean()) / independent,
        "ring": {k: np.round(v, 3).tolist() for k, v in rings.quantiles().items()},
        "members_with_a_ring": float(rings.good.mean()),
        "chi_square_of_mean": {n: float(chi[n][0]) for n in names},
        "chi_square_median": {n: float(np.median(members[n])) for n in names},
    }


def convergence(posterior: Posterior, draws: Tensor, potential: Tensor) -> dict[str, Any]:
    """Split R-hat and effective sizes over all chains; draws (iterations, chains, K)."""
    each = skies(posterior, draws, len(draws) // 4)
    centre = centroid(each)
    rings = fit_rings(skies(posterior, draws, RINGS).reshape(-1, *each.shape[2:]), FIELD_OF_VIEW)
    diameter = rings.diameter.reshape(RINGS, -1)
    diameter = diameter[:, np.isfinite(diameter).all(axis=0)]
    flat = each.reshape(*each.shape[:2], -1)
    bright = np.argsort(-flat.mean(axis=(0, 1)))[:BRIGHT]
    coefficients = [draws[:, :, k].numpy() for k in range(draws.shape[2])]
    of_coefficients = [split_r_hat(c) for c in coefficients]
    of_pixels = [split_r_hat(flat[:, :, p]) for p in bright]
    return {
        "potential": split_r_hat(potential.numpy()),
        "leading_coefficients": max(of_coefficients[:LEADING]),
        "all_coefficients": max(of_coefficients),
        "position": max(split_r_hat(centre[..., k]) for k in range(2)),
        "diameter": split_r_hat(diameter),
        "bright_pixels": max(of_pixels),
        "bright_pixels_median": float(np.median(of_pixels)),
        "effective_size_position": min(effective_size(centre[..., k]) for k in range(2)),
        "effective_size_coefficients": min(effective_size(c) for c in coefficients),
    }


def agreement(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """How far two runs differ; mean images by the sum of absolute differences over the flux."""
    return {
        "mean_image": float(abs(one["mean"] - two["mean"]).sum() / one["mean"].sum()),
        "correlation_of_std": float(np.corrcoef(one["std"].ravel(), two["std"].ravel())[0, 1]),
        "relative_spread": [one["relative_spread"], two["relative_spread"]],
        "diameter": [one["ring"]["diameter"], two["ring"]["diameter"]],
    }


def starts(posterior: Posterior, experiment: enkg.Experiment, chains: int) -> tuple[Tensor, Tensor]:
    """Whitened coefficients (chains, K) of a tempered EnKG's members, and of prior draws."""
    units = experiment.units
    assert isinstance(units, Sky)
    tree = enkg.run(experiment)
    images = torch.from_numpy(tree["posterior"].to_dataset()["brightness"].values)[:chains]
    basis = units.basis
    coefficients = (
        units.to_prior(images.double()).flatten(1) @ torch.from_numpy(basis.basis).double()
    )
    ensemble = (coefficients / torch.from_numpy(basis.variance).double().sqrt()).float()
    generator = torch.Generator().manual_seed(experiment.seed + 1)
    return ensemble, torch.randn(ensemble.shape, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--chains", type=int, default=48, help="of each run")
    parser.add_argument("--iterations", type=int, default=240, help="after warm-up")
    parser.add_argument("--leapfrogs", type=int, default=16)
    parser.add_argument("--shifts", type=int, default=36, help="moves after each trajectory")
    parser.add_argument("--warm-up", type=int, default=20, help="iterations of each round")
    parser.add_argument("--rounds", type=int, default=3, help="of the warm-up, at full power")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", action="store_true", help=f"write {STORED.name}")
    given = parser.parse_args()

    data = read_uvfits()
    experiment = dataclasses.replace(
        imaging(data, "gaussian", 512, FIELD_OF_VIEW), analyse=None, seed=given.seed
    )
    assert isinstance(experiment.units, Sky)
    assert isinstance(experiment.simulator, BlackHole)
    posterior = Posterior(experiment.units, experiment.simulator, experiment.observation)
    maps, runs = shifts(experiment.units), []
    for k, start in enumerate(starts(posterior, experiment, given.chains)):
        chains = sample(posterior, maps, start, POWERS if k else (), given, given.seed + k)
        runs.append(chains)
        print(
            f"from {('the ensemble', 'prior draws')[k]}: {given.chains} chains x "
            f"{given.iterations} x {given.leapfrogs}, {chains.seconds:.0f} s, step "
            f"{chains.step:.2f}, acceptance {chains.acceptance:.2f}, {chains.replaced} replaced",
            flush=True,
        )
    draws = torch.cat([run.draws for run in runs], dim=1)
    potential = torch.cat([run.potential for run in runs], dim=1)
    facts = figures(posterior, draws, data)
    mean, std = facts.pop("mean"), facts.pop("std")
    facts["split_r_hat"] = convergence(posterior, draws, potential)
    facts["replaced"] = [run.replaced for run in runs]
    facts["two_runs"] = agreement(*(figures(posterior, run.draws, data) for run in runs))
    settings = " ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in vars(given).items()
        if name != "store"
    )
    facts["command"] = f"python experiments/references/m87_hmc.py {settings} --store"
    print(json.dumps(facts, indent=1))
    if given.store:
        arrays = {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}
        np.savez_compressed(STORED, facts=json.dumps(facts), **arrays)


if __name__ == "__main__":
    main()
