"""The Gaussian-prior posterior of M87 by Hamiltonian Monte Carlo: the reference for the ensembles.

    python experiments/references/m87_hmc.py

Same data, likelihood (phasors and log closure amplitudes) and prior as image.py with --prior
gaussian, but sampled with gradients: chains in the whitened coefficients of the prior, with a mass
matrix from a tempered EnKG ensemble, whose members are also the starting points. With --start prior
the chains start from prior draws instead. Prints what image.py prints and the split R-hat.

Reference: Neal 2011, "MCMC using Hamiltonian dynamics".
"""

import argparse
import dataclasses
import time

import numpy as np
import torch
from torch import Tensor

import enkg
from experiments.m87.chi_squares import chi_squares
from experiments.m87.imaging import FLUX, Sky, imaging
from experiments.m87.ring import fit_rings
from experiments.m87.uvfits import read_uvfits
from experiments.references.chains import split_r_hat
from priors.log_images import CLIP
from simulators.black_hole import BlackHole
from simulators.black_hole.closures import incidence


class Posterior:
    """Potential U(w) = 1/2 |w|^2 + 1/2 |residual|^2 of whitened coefficients w."""

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

    def potential(self, w: Tensor) -> Tensor:
        """(B, K) to (B,)."""
        image = self.images(w)
        real, imaginary = image @ self.real, image @ self.imaginary
        phase = torch.atan2(imaginary, real) @ self.triangles
        log = 0.5 * (real.square() + imaginary.square()).log() @ self.quadrangles
        y = torch.cat([phase.cos(), phase.sin(), log], dim=1)
        return 0.5 * w.square().sum(1) + 0.5 * ((self.y - y) / self.std).square().sum(1)

    def gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Potential (B,) and its gradient (B, K)."""
        w = w.detach().requires_grad_()
        u = self.potential(w)
        return u.detach(), torch.autograd.grad(u.sum(), w)[0]


def sample(
    posterior: Posterior, start: Tensor, scale: Tensor, iterations: int, leapfrogs: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draws of the second half, (iterations / 2, chains, K), and acceptance of each chain.

    scale: lower triangle S with S S^T near the posterior covariance; momenta live in its
    coordinates. The step is adapted to 80 % acceptance in the first half, then fixed.
    """
    generator = torch.Generator().manual_seed(seed)
    w, step, kept, accepted = start, 0.2, [], torch.zeros(len(start))
    u, slope = posterior.gradient(w)
    for iteration in range(iterations):
        p = torch.randn(w.shape, generator=generator)
        energy = u + 0.5 * p.square().sum(1)
        length = step * (0.8 + 0.4 * float(torch.rand((), generator=generator)))
        q, g, v = w, slope, u
        for _ in range(leapfrogs):
            p = p - 0.5 * length * g @ scale
            q = q + length * p @ scale.T
            v, g = posterior.gradient(q)
            p = p - 0.5 * length * g @ scale
        change = energy - v - 0.5 * p.square().sum(1)
        yes = torch.rand(len(w), generator=generator).log() < change
        w = torch.where(yes[:, None], q, w)
        u, slope = torch.where(yes, v, u), torch.where(yes[:, None], g, slope)
        if iteration < iterations // 2:
            rate = float(change.clamp(max=0).exp().nan_to_num(0).mean())
            step *= float(np.exp((rate - 0.8) / (1 + iteration) ** 0.5))
        else:
            kept.append(w)
            accepted += yes / (iterations - iterations // 2)
    return torch.stack(kept), accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--chains", type=int, default=48)
    parser.add_argument("--iterations", type=int, default=800, help="half of them are warm-up")
    parser.add_argument("--leapfrogs", type=int, default=16)
    parser.add_argument("--start", choices=("ensemble", "prior"), default="ensemble")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    data = read_uvfits()
    experiment = dataclasses.replace(
        imaging(data, "gaussian", 512, 128.0), analyse=None, seed=given.seed
    )
    units, simulator = experiment.units, experiment.simulator
    assert isinstance(units, Sky)
    assert isinstance(simulator, BlackHole)
    posterior = Posterior(units, simulator, experiment.observation)
    tree = enkg.run(experiment)
    images = torch.from_numpy(tree["posterior"].to_dataset()["brightness"].values)
    basis = units.basis
    coefficients = units.to_prior(images.double()).flatten(1).float() @ torch.from_numpy(
        basis.basis
    )
    ensemble = coefficients / torch.from_numpy(basis.variance).sqrt()
    scale = torch.linalg.cholesky(
        torch.cov(ensemble.T).double() + 1e-4 * torch.eye(len(basis.variance))
    ).float()
    start = ensemble[: given.chains]
    if given.start == "prior":
        generator = torch.Generator().manual_seed(given.seed)
        start = torch.randn(start.shape, generator=generator)

    begin = time.perf_counter()
    draws, accepted = sample(posterior, start, scale, given.iterations, given.leapfrogs, given.seed)
    seconds = time.perf_counter() - begin
    thin = draws[:: max(1, len(draws) // 20)]
    sky = FLUX * posterior.images(thin.flatten(0, 1)).reshape(-1, *basis.shape).numpy()
    mean = sky.mean(axis=0)
    chi, members = (chi_squares(v, data, 128.0) for v in (mean[None], sky))
    rings = fit_rings(sky[:: max(1, len(sky) // 480)], 128.0)
    low, middle, high = np.nanquantile(rings.diameter, [0.16, 0.5, 0.84])
    u = torch.stack([posterior.potential(w) for w in draws]).numpy()
    phasor = {
        name: (float(chi[name][0]), float(np.median(members[name])))
        for name in ("closure_phase", "log_closure_amplitude")
    }
    print(
        f"{given.chains} chains x {given.iterations} x {given.leapfrogs}, start {given.start}: "
        f"{seconds:.0f} s, acceptance {float(accepted.mean()):.2f}, split R-hat of U "
        f"{split_r_hat(u):.3f}, of the leading coefficients "
        f"{max(split_r_hat(draws[:, :, k].numpy()) for k in range(10)):.3f}"
    )
    for name, (of_mean, of_members) in phasor.items():
        print(f"chi-square {name}: mean image {of_mean:.2f}, median member {of_members:.2f}")
    print(f"relative spread {sky.std(axis=0, ddof=1).sum() / mean.sum():.3f}")
    print(f"ring diameter {middle:.1f} uas, 68 %: {low:.1f} to {high:.1f}")


if __name__ == "__main__":
    main()
