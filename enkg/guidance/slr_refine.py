"""Members of SLR that the simulator has moved: randomised maximum likelihood, with local models.

The last draws of SLR are those of one Gaussian, and leave a posterior that is a curved sheet. Here
each member has a prior draw a and a draw e of the noise, and looks for the z with the least

    f(z) = 1/2 |z - a|^2 + 1/2 |y + e - G(z)|^2                                  whitened data

For a linear simulator these z are draws of the posterior. The first z is the least for SLR's own
linear model. Then, in rounds of one simulator call a member,

    G is regressed on z over the recent evaluations by kernel ridge regression in the features
        x = u (z - c), c the mean of the members: k(x, x') = s + <x, x'> + q <x, x'>^2,
        s the mean of |x|^2; penalty and q those of the least leave-one-out error on the new rows
    R = I + 0.9 E^T E / N + 0.1 tr(E^T E) / (N m) I                  E: leave-one-out residuals
    A = slope of the regression at the member's z, (K, m)
    p = a + A (A^T A + R)^-1 (y + e - G(z) + A^T (z - a))                    Gauss-Newton
    z <- z + t (p - z) where f falls by it, and t grows; else t shrinks

The kernel is that of all straight lines and parabolas: the first with the prior belief of SLR that
a unit of the field matters about as much in every direction, the second with the same belief for
its products. So members on different parts of a curved sheet have slopes of their own.

A member is a minimum of its own f and no draw of the posterior where the simulator bends.

Randomised maximum likelihood: Kitanidis 1995, doi 10.1029/95WR01945; Oliver, He and Reynolds 1996.
Its iteration by ensembles, with one slope for all: Chen and Oliver 2013,
doi 10.1007/s10596-013-9351-5. Local slopes from a recycled regression are enkg's own.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from enkg.guidance.slr_regression import Evaluations, Fit, joined, singular

REMEMBERED = 0.8
"""Weight of an evaluation over that of one that is a round younger."""
FORGET = 0.01
"""Evaluations whose weight has fallen below this are dropped."""
ROWS = 2000
"""Most evaluations of a regression."""
CURVATURES = (0.0, 0.03, 0.1, 0.3, 1.0)
"""q, in units of 1 / s."""
PENALTIES = tuple(10.0**e for e in (-5, -4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 1))
"""In units of s."""
NEGLIGIBLE = 1e-6
"""Directions of the data in which the model varies by less, as a mean square in units of the noise,
are left out."""
SETTLED = 1e-3
"""A round that lowers f by a smaller share, in the mean over the members, is the last if most of
them took their step; so is the first where SLR's own model errs by a smaller mean square, in units
of the noise."""


@dataclass(frozen=True, eq=False)
class Refined:
    """Where the members stand. step: of SLR, at which this began. prior: a, (N, K). noise: e,
    (N, m). z: the best so far, (N, K), with its innovations r, (N, m), and f, (N,), infinite before
    the first answer. length: t, (N,). settled: whether the last round changed next to nothing."""

    step: int
    prior: Tensor
    noise: Tensor
    z: Tensor
    r: Tensor
    value: Tensor
    length: Tensor
    settled: bool = False


def begun(fit: Fit, mean: Tensor, prior: Tensor, noise: Tensor, step: int) -> Refined:
    """The members by the linear model of SLR, made around `mean`; r is what this model says."""
    r = fit.gap + noise - (prior - mean) @ fit.slope
    z = prior + _solved(torch.cat([fit.slope, fit.root]), 1 + fit.floor, r) @ fit.slope.T
    r = fit.gap - (z - mean) @ fit.slope
    unknown = torch.full((len(z),), torch.inf, dtype=z.dtype)
    return Refined(step, prior, noise, z, r, unknown, torch.ones_like(unknown))


def _solved(h: Tensor, c: float, r: Tensor) -> Tensor:
    """(h^T h + c I)^-1 of each row of r, from the smaller of h^T h and h h^T."""
    values, _, directions = singular(h)
    along = r @ directions
    return (r - (along * (values / (values + c))) @ directions.T) / c


def judged(members: Refined, tried: Tensor, r: Tensor, living: Tensor) -> Refined:
    """After the answers to what was tried. r: innovations, (N, m). living: who has one, (N,)."""
    value = tried.sub(members.prior).square().sum(1) + r.add(members.noise).square().sum(1)
    value = (0.5 * value).masked_fill(~living, torch.inf)
    better = value < members.value
    now = torch.where(better, value, members.value)
    if bool(members.value.isinf().all()):  # the first answers: how good is SLR's own model?
        settled = float((r - members.r)[living].square().mean()) < SETTLED
    else:
        fell = ((members.value - now) / now)[living]
        length = (tried - members.z).square().sum(1)
        took = better | (length < SETTLED * members.z.square().sum(1))
        settled = float(took[living].double().mean()) > 0.5 and float(fell.mean()) < SETTLED
    grown = torch.where(better, 1.5 * members.length, members.length / 3).clamp(max=1)
    return replace(
        members,
        z=torch.where(better[:, None], tried, members.z),
        r=torch.where(better[:, None], r, members.r),
        value=now,
        length=grown,
        settled=settled,
    )


def remember(memory: Evaluations, new: Evaluations, step: int) -> Evaluations:
    """The evaluations that still count, at most ROWS, the new ones last; these at most ROWS / 2."""
    few = slice(ROWS // 2)
    new = Evaluations(new.z[few], new.r[few], new.step[few])
    keep = REMEMBERED ** (step - memory.step).double() >= FORGET
    keep[: max(0, len(keep) + len(new.z) - ROWS)] = False
    return joined(Evaluations(memory.z[keep], memory.r[keep], memory.step[keep]), new)


def proposed(members: Refined, memory: Evaluations, u: Tensor, step: int) -> Tensor:
    """What to try next, (N, K). step: of the newest rows of the memory."""
    answered = members.value.isfinite()
    model = Local.fitted(memory, members.z[answered].mean(0), u, step)
    target = model.seen(members.r + members.noise)
    moved = []
    for z, a, wanted, t in zip(members.z, members.prior, target, members.length, strict=True):
        slope = model.slope(z)
        system = slope.T @ slope
        system.diagonal().add_(1)
        right = (wanted + (z - a) @ slope)[:, None]
        step_to = a + (slope @ torch.cholesky_solve(right, torch.linalg.cholesky(system)))[:, 0]
        moved.append(z + t * (step_to - z))
    return torch.stack(moved)


@dataclass(frozen=True, eq=False)
class Local:
    """The kernel regression, in coordinates in which R is the identity.

    features: x of the rows, (N, K). weights: (N, p). seeing: whitened data to the p directions in
    which the model varies, (m, p). q: curvature.
    """

    centre: Tensor
    u: Tensor
    features: Tensor
    weights: Tensor
    seeing: Tensor
    q: float

    @classmethod
    def fitted(cls, memory: Evaluations, centre: Tensor, u: Tensor, step: int) -> "Local":
        """Cost: some 10 N^3 for each curvature, N rows."""
        new = int((memory.step == step).sum())
        x, weight = (memory.z - centre) * u, REMEMBERED ** (step - memory.step).double()
        root = weight.sqrt()[:, None]
        scale = float(x[-new:].square().sum(1).mean()) or 1.0
        y = -memory.r
        y = y - (weight[:, None] * y).sum(0) / weight.sum()
        lines, best = x @ x.T, None
        for curvature in CURVATURES:
            q = curvature / scale
            kernel = lines + q * lines.square() + scale
            values, vectors = torch.linalg.eigh(root * kernel * root.T)
            values, turned = values.clamp(min=0), vectors.T @ (root * y)
            for penalty in PENALTIES:
                inverse = 1 / (values + penalty * scale)
                dual = vectors[-new:] @ (inverse[:, None] * turned)
                left = dual / (vectors[-new:].square() @ inverse)[:, None]
                error = float(left.square().mean())
                if best is None or error < best[0]:
                    best = error, q, kernel, root * (vectors @ (inverse[:, None] * turned)), left
        assert best is not None
        _, q, kernel, dual, left = best
        # R^-1/2 from the directions of E, then the directions in which R^-1/2 A differs from zero.
        squares, _, erring = singular(left * (0.9 / len(left)) ** 0.5)
        floor = 1 + 0.1 * float(left.square().mean())

        def whitened(rows: Tensor) -> Tensor:
            shrunk = 1 - (floor / (floor + squares)).sqrt()
            return (rows - ((rows @ erring) * shrunk) @ erring.T) / floor**0.5

        predicted = whitened(kernel @ dual)
        squares_of, _, varying = singular(predicted - predicted.mean(0))
        varying = varying[:, squares_of > NEGLIGIBLE * len(predicted)]
        seeing = whitened(varying.T).T
        return cls(centre, u, x, dual @ seeing, seeing, q)

    def seen(self, r: Tensor) -> Tensor:
        """Whitened data (N, m) in the model's p directions, (N, p)."""
        return r @ self.seeing

    def slope(self, z: Tensor) -> Tensor:
        """A at z, (K, p)."""
        bend = 1 + 2 * self.q * (self.features @ ((z - self.centre) * self.u))
        return self.u[:, None] * (self.features.T @ (bend[:, None] * self.weights))
