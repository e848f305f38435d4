"""Networks that somebody else trained, as priors.

Each adapter turns what a network computes into D(x, sigma) = E[x_0 | x_0 + sigma n = x], n standard
normal. With mu = 1 / sqrt(1 + sigma^2) and eps, x_0, v, F the network's answers:

    Denoiser               D = f(x, sigma)
    EDM                    D = c_skip x + c_out F(c_in x, ln(sigma) / 4)
    VariancePreserving     x_t = mu x = sqrt(abar) x_0 + sqrt(1 - abar) n, abar = mu^2
        noise              D = x - sigma eps(x_t, t)
        sample             D = x_0(x_t, t)
        velocity           D = mu x_t - sigma mu v(x_t, t),  v = mu eps - sigma mu x_0
    FlowMatching           x_t = t x = t x_0 + (1 - t) n, t = 1 / (1 + sigma)
                           D = x_t + (1 - t) v(x_t, t),  v = x_0 - n

A network is a function of a batch (B, *X) and of its times (B,), row by row; made of torch
operations, it can be differentiated (`enkg.prior.vjp`). A torch module, or a method of one, is put
into evaluation mode, is moved to where the members are, and gets them in its own precision; the
answer has theirs. No graph is kept unless x asks for a gradient.

References: Karras et al. 2022, arXiv 2206.00364, table 1; Ho et al. 2020, arXiv 2006.11239; Song et
al. 2021, arXiv 2011.13456, appendix C; Salimans and Ho 2022, arXiv 2202.00512 (velocity); Lipman et
al. 2023, arXiv 2210.02747 (flow matching).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import ismethod
from math import expm1, inf, log, log1p, sqrt
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from enkg.arrays import tensor
from enkg.errors import InputError

PREDICTIONS = ("noise", "sample", "velocity")


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A denoiser that exists: f(x, sigma) = E[x_0 | x_sigma = x], (B, *X) to (B, *X), row by row.

    per_row: f gets sigma as a tensor (B,) instead of as a number. Raises InputError where f is no
    function or answers in another shape. Cost: one call of f.
    """

    f: Callable[..., Tensor] = field(repr=False)
    shape: tuple[int, ...]
    per_row: bool = False

    def __post_init__(self) -> None:
        _check(self, self.f)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        return _answer(self.f, self.shape, x, _each(x, sigma) if self.per_row else sigma)


@dataclass(frozen=True, eq=False)
class EDM:
    """A network F(c_in x, c_noise) with the preconditioning of Karras et al. 2022 (table 1).

    F: (B, *X) and (B,) to (B, *X). sigma_data: deviation of the data it was trained on, in the
    prior's numbers. A network that has the preconditioning inside is a `Denoiser`. Cost: one call.
    """

    network: Callable[..., Tensor] = field(repr=False)
    shape: tuple[int, ...]
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _check(self, self.network)
        _positive(sigma_data=self.sigma_data)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        total = sqrt(sigma**2 + self.sigma_data**2)
        F = _answer(self.network, self.shape, x / total, _each(x, log(sigma) / 4))
        return (self.sigma_data / total) ** 2 * x + sigma * self.sigma_data / total * F


@dataclass(frozen=True, eq=False)
class VariancePreserving:
    """A network of the variance-preserving diffusion (DDPM, DDIM, score_sde's VP, ADM).

    network: (B, *X) and times (B,) to (B, *X). predicts: "noise", "sample" (x_0) or "velocity". Of
    an answer with twice the channels, (B, 2 C, ...), the first C are used: the others are a learned
    variance.

    alphas_cumprod: abar of the training steps 0, 1, ..., falling; the time is the index of the step
    with this sigma, linear in log sigma between steps, and rounded only with integer_times (for a
    network that looks it up in a table). None takes the continuous schedule
    ln(1 + sigma^2) = beta_min t + beta_d t^2 / 2, 0 < t <= 1, and the network gets time_scale t.

    clip: bounds D to -clip ... clip, as many samplers do; D has no gradient there. Above
    `sigma_max`, which the network has never seen, D(x, sigma) is taken to be
    D(x sigma_max / sigma, sigma_max). Cost: one call.
    """

    network: Callable[..., Tensor] = field(repr=False)
    shape: tuple[int, ...]
    predicts: str = "noise"
    alphas_cumprod: Any = field(default=None, repr=False)
    beta_min: float = 0.1
    beta_d: float = 19.9
    time_scale: float = 1.0
    integer_times: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        _check(self, self.network)
        if self.predicts not in PREDICTIONS:
            raise InputError(
                f"predicts is {self.predicts!r}; expected one of {', '.join(PREDICTIONS)}"
            )
        if self.clip is not None:
            _positive(clip=self.clip)
        if self.alphas_cumprod is not None:
            object.__setattr__(self, "alphas_cumprod", _falling(self.alphas_cumprod))
            return
        _positive(beta_min=self.beta_min, time_scale=self.time_scale)
        if self.integer_times or not 0 <= self.beta_d < inf:
            raise InputError(
                f"beta_d={self.beta_d}, integer_times={self.integer_times} without alphas_cumprod; "
                "the continuous schedule needs beta_d >= 0, and has no integer times"
            )

    @cached_property
    def sigmas(self) -> ndarray:
        """Noise levels of the training steps, rising; infinity where no signal is left."""
        with np.errstate(divide="ignore"):
            return np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)

    @cached_property
    def sigma_max(self) -> float:
        """The highest noise level of the training."""
        if self.alphas_cumprod is None:
            return sqrt(expm1(self.beta_min + 0.5 * self.beta_d))
        return float(self.sigmas[np.isfinite(self.sigmas)][-1])

    def time(self, sigma: float) -> float:
        """What the network calls this noise level."""
        if self.alphas_cumprod is not None:
            known = self.sigmas[np.isfinite(self.sigmas)]
            index = float(np.interp(log(sigma), np.log(known), np.arange(len(known))))
            return round(index) if self.integer_times else index
        spent = log1p(sigma**2)
        root = sqrt(self.beta_min**2 + 2 * self.beta_d * spent)
        return self.time_scale * 2 * spent / (self.beta_min + root)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        level = min(sigma, self.sigma_max)
        x = x * (level / sigma)
        mu = 1 / sqrt(1 + level**2)
        time = _each(x, self.time(level))
        time = time.long() if self.integer_times else time
        answer = _answer(self.network, self.shape, mu * x, time, learned_variance=True)
        if self.predicts == "noise":
            denoised = x - level * answer
        elif self.predicts == "sample":
            denoised = answer
        else:
            denoised = mu * (mu * x) - level * mu * answer
        return denoised if self.clip is None else denoised.clamp(-self.clip, self.clip)


@dataclass(frozen=True, eq=False)
class FlowMatching:
    """A network of the straight flow x_t = t x_0 + (1 - t) n, from noise (t = 0) to data (t = 1).

    network: v = x_0 - n, (B, *X) and time_scale t (B,) to (B, *X). reverse: the network's time runs
    from data to noise, s = 1 - t, and its velocity is n - x_0 (Stable Diffusion 3, diffusers).
    Cost: one call.
    """

    network: Callable[..., Tensor] = field(repr=False)
    shape: tuple[int, ...]
    reverse: bool = False
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        _check(self, self.network)
        _positive(time_scale=self.time_scale)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        t, rest = 1 / (1 + sigma), sigma / (1 + sigma)
        time = self.time_scale * (rest if self.reverse else t)
        v = _answer(self.network, self.shape, t * x, _each(x, time))
        return t * x + rest * (-v if self.reverse else v)


def _each(x: Tensor, value: float) -> Tensor:
    """The same number for each row, (B,)."""
    return x.new_full((len(x),), value)


def _answer(
    network: Callable[..., Tensor],
    shape: tuple[int, ...],
    x: Tensor,
    time: Tensor | float,
    learned_variance: bool = False,
) -> Tensor:
    """network(x, time), checked, with the dtype of x."""
    if tuple(x.shape[1:]) != shape:
        raise InputError(f"a batch of shape {tuple(x.shape)}; expected (B, *{shape})")
    given = x
    module = _module(network)
    weights = None if module is None else next(_floats(module), None)
    if module is not None and module.training:
        module.eval()
    if module is not None and weights is not None:
        if weights.device != x.device:
            module.to(x.device)
        given = x.to(weights.dtype)
        if isinstance(time, Tensor) and time.is_floating_point():
            time = time.to(weights.dtype)
    with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
        answer = network(given, time)
    if not isinstance(answer, Tensor):
        raise InputError(
            f"the network returned a {type(answer).__name__}; expected a tensor {tuple(x.shape)}. "
            "Wrap it: lambda x, t: network(x, t).sample, or whatever holds the tensor"
        )
    twice = (len(x), 2 * shape[0], *shape[1:]) if shape else ()
    if learned_variance and tuple(answer.shape) == twice:
        answer = answer[:, : shape[0]]
    if answer.shape != x.shape:
        raise InputError(
            f"the network was given shape {tuple(x.shape)} and returned {tuple(answer.shape)}; "
            "expected the same shape"
        )
    return answer.to(x.dtype)


def _module(network: Any) -> torch.nn.Module | None:
    """The torch module that this is, or is a method of."""
    owner = network.__self__ if ismethod(network) else network
    return owner if isinstance(owner, torch.nn.Module) else None


def _floats(module: torch.nn.Module) -> Any:
    """Weights and buffers that decide device and precision."""
    yield from (p for p in module.parameters() if p.is_floating_point())
    yield from (b for b in module.buffers() if b.is_floating_point())


def _check(prior: Any, network: Any) -> None:
    """Checks the function and the shape that an adapter was given; the shape becomes a tuple."""
    if not callable(network):
        raise InputError(
            f"the network is a {type(network).__name__}; expected a function of a batch and its "
            "noise level or time"
        )
    shape = prior.shape if isinstance(prior.shape, Sequence) else (prior.shape,)
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise InputError(f"shape is {prior.shape!r}; expected the sizes of one member, as integers")
    object.__setattr__(prior, "shape", tuple(shape))
    module = _module(network)
    if module is not None:
        module.eval()


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < inf:
            raise InputError(f"{name} is {number}; expected a positive number")


def _falling(alphas_cumprod: Any) -> ndarray:
    """abar of the training steps, float64."""
    values = tensor(alphas_cumprod, torch.float64).numpy()
    falls = values.ndim == 1 and len(values) > 1 and bool((np.diff(values) < 0).all())
    if not falls or not (values[-1] >= 0 and values[0] < 1) or not values[-2] > 0:
        raise InputError(
            f"alphas_cumprod of shape {values.shape}; expected (T,), falling from below 1 to 0 or "
            "more. These are the products of 1 - beta, not the betas"
        )
    return values
