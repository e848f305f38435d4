"""What more ranks bring: strong and weak scaling here, and a model of larger machines.

    python experiments/benchmarks/scaling.py

Starts itself under mpiexec with 1 and 2 ranks (--ranks). The simulator sleeps, 50 ms for a member,
so that ranks do not take each other's cores. Strong: the same members on more ranks. Weak: as many
members on each rank. Efficiencies are ratios of wall times; the framework's share is the part of
the wall time that the slowest rank did not spend in the simulator. Then the analysis step alone on
one core, and the time of an update on 64 to 4,096 ranks by the model of `model`, with the
constants of a cluster and with those measured here. Needs the extra enkg[mpi].

S is the size of the ensemble in bytes, P the number of ranks. An update moves the unknowns of all
members to and fro, 2 S (P-1)/P^2, and once more for the spread in the log.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import enkg
from enkg.comm import ALONE, Comm, across, world
from enkg.comm.base import packed
from enkg.guidance.kalman import perturbed_weights
from experiments.benchmarks.overhead import problem

MIB = 2**20
MOVED = ("unknowns", "data", "weights", "decisions")


class Weighed:
    """The same ranks; counts the bytes that this one takes in from others."""

    def __init__(self, inner: Comm) -> None:
        self.inner = inner
        self.rank, self.size = inner.rank, inner.size
        self.local_rank, self.local_size = inner.local_rank, inner.local_size
        self.bytes: Counter[str] = Counter()

    def gather(self, value: Any) -> list[Any]:
        found = self.inner.gather(value)
        self.bytes["decisions"] += sum(len(packed(v)) for v in found) - len(packed(value))
        return found

    def broadcast(self, value: Any) -> Any:
        found = self.inner.broadcast(value)
        self.bytes["weights"] += len(packed(found)) * (self.rank != 0)
        return found

    def rows(self, x: Tensor) -> Tensor:
        found = self.inner.rows(x)
        self.bytes["data"] += found.nbytes - x.nbytes
        return found

    def swap(self, parts: Sequence[Tensor]) -> list[Tensor]:
        found = self.inner.swap(parts)
        self.bytes["unknowns"] += sum(p.nbytes for k, p in enumerate(found) if k != self.rank)
        return found

    def barrier(self) -> None:
        self.inner.barrier()

    def abort(self, code: int) -> NoReturn:
        self.inner.abort(code)


def on_a_rank(given: argparse.Namespace) -> None:
    """One run of this many ranks; rank 0 writes what all of them saw."""
    comm = Weighed(world())
    enkg.run(problem(8, 4 * comm.size, 0.0, 1), comm=comm)  # imports, first uses
    case = problem(given.size, given.members, given.seconds, given.updates, chunk=1)
    comm.bytes.clear()
    comm.barrier()
    begin = time.perf_counter()
    summary = json.loads(enkg.run(case, comm=comm).attrs["summary"])
    comm.barrier()
    wall, moved = time.perf_counter() - begin, dict(comm.bytes)
    block = -(-given.members // comm.size)
    sweeps = given.updates + 1  # the predicted data of the result are one more
    largest = comm.gather(moved)[-1]  # the last rank takes in the weights too
    bounds = times(comm)
    if comm.rank == 0:
        told = {
            "wall": wall,
            "asleep": block * given.seconds * sweeps,
            "calls": summary["calls"],
            "bytes": {name: count / given.updates for name, count in largest.items()},
            **bounds,
        }
        given.report.write_text(json.dumps(told))


def times(comm: Comm) -> dict[str, float]:
    """Latency of a message, seconds, and bytes a second that a rank takes in, in an exchange."""
    if comm.size == 1:
        return {}
    block = torch.zeros(comm.size, 32 * MIB // 4 // comm.size)
    parts = list(block.split(1))
    latency = median(comm.barrier, 200) / log2(comm.size)
    taken = block.nbytes * (comm.size - 1) / comm.size
    return {"alpha": latency, "bandwidth": taken / median(lambda: comm.swap(parts), 10)}


def seconds(f: Callable[[], object], repeats: int) -> list[float]:
    """Of each call."""
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        f()
        found.append(time.perf_counter() - begin)
    return found


def median(f: Callable[[], object], repeats: int) -> float:
    return float(np.median(seconds(f, repeats)))


def fastest(f: Callable[[], object], repeats: int) -> float:
    return min(seconds(f, repeats))


def started(given: argparse.Namespace, ranks: int, members: int) -> dict[str, Any]:
    """What `on_a_rank` found on so many ranks."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = {
            "--report": report,
            "--members": members,
            "--size": given.size,
            "--seconds": given.seconds,
            "--updates": given.updates,
        }
        words = [str(word) for pair in options.items() for word in pair]
        command = [*shlex.split(given.launcher), str(ranks), sys.executable, __file__, *words]
        subprocess.run(command, check=True)
        return json.loads(report.read_text())


def scaling(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Both tables, and what moved; returns what the largest number of ranks found."""
    last: dict[str, Any] = {}
    traffic = Table(title="MiB that a rank takes in, each update")
    for head in "ranks", "members", "2 S (P-1)/P^2", *MOVED:
        traffic.add_column(head, justify="right")
    for name, members in ("strong", lambda _: given.members), ("weak", lambda p: given.members * p):
        table = Table(title=f"{name} scaling, {given.seconds * 1e3:g} ms a member")
        for head in "ranks", "members", "wall s", "efficiency", "framework's share":
            table.add_column(head, justify="right")
        first = 0.0
        for ranks in given.ranks:
            found = started(given, ranks, members(ranks))
            wall = found["wall"]
            first = first or wall * (given.ranks[0] if name == "strong" else 1)
            ideal = first / (ranks if name == "strong" else 1)
            state = 4 * members(ranks) * given.size**2
            table.add_row(
                *(str(ranks), str(members(ranks)), f"{wall:.2f}", f"{ideal / wall:.3f}"),
                f"{1 - found['asleep'] / wall:.1%}",
            )
            if ranks > 1:
                traffic.add_row(
                    *(str(ranks), str(members(ranks))),
                    f"{2 * state * (ranks - 1) / ranks**2 / MIB:.3f}",
                    *(f"{found['bytes'].get(kind, 0.0) / MIB:.3f}" for kind in MOVED),
                )
            last = found
        console.print(table)
    console.print(traffic)
    return last


def analysis(members: int, side: int, console: Console) -> float:
    """The analysis step alone on one core; returns its floating point operations a second."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(members, side * side, generator=draw)
    mix, tile = torch.randn(members, members, generator=draw), x[:, :256].contiguous()
    rate = 2 * members**2 * 256 / fastest(lambda: mix @ tile, 20)
    table = Table(title=f"analysis of {members} members of {side}^2 unknowns on one core")
    for head in ("data", "weights s", "update s", "together s", "bound of the update s"):
        table.add_column(head, justify="right")
    for m in (64, members):
        r = torch.randn(members, m, generator=draw, dtype=torch.float64)
        eta = torch.randn(members, m, generator=draw, dtype=torch.float64)
        weights = perturbed_weights(r, eta, 0.5).to(x)
        solve = median(lambda r=r, eta=eta: perturbed_weights(r, eta, 0.5), 3)
        update = median(lambda weights=weights: across(ALONE, x, weights), 3)
        work = sum(2 * factor.numel() * x.shape[1] for factor in weights.factors)
        table.add_row(
            *(str(m), f"{solve:.3f}", f"{update:.3f}", f"{solve + update:.3f}"),
            f"{work / rate:.3f}",
        )
    console.print(table)
    console.print(
        f"A product of matrices reaches {rate / 1e9:.0f} GFLOP/s here in float32; the bound is the "
        "work of the products with the ensemble at this rate.\n"
    )
    return rate


@dataclass(frozen=True)
class Machine:
    """alpha: seconds of a message. bandwidth: bytes a second into a rank. rate: floating point
    operations a second of a rank."""

    name: str
    alpha: float
    bandwidth: float
    rate: float


CLUSTER = Machine("a cluster: 5 us, 12.5 GB/s, 10 TFLOP/s a rank", 5e-6, 12.5e9, 1e13)


def model(machine: Machine, ranks: int, members: int, side: int, data: int) -> dict[str, float]:
    """Seconds of one update beside its simulator calls; 4 bytes a number, but 8 in weights.

    An exchange of members for unknowns and back (`across`), the product, the data of all members
    on every rank, and the weights, which rank 0 computes and sends to all.
    """
    alpha, b, rate = machine.alpha, machine.bandwidth, machine.rate
    d, J, P = side * side, members, ranks
    state = 4 * J * d
    thin = 2 * data < J
    sent = 8 * J * (2 * data if thin else J)
    solve = 2 * J * data**2 + data**3 / 3 if thin else 2 * J**2 * data + J**3 / 3 + 2 * J**3
    product = 4 * J * data * d if thin else 2 * J**2 * d
    return {
        "data": alpha * log2(P) + 4 * J * data * (P - 1) / P / b,
        "gather all": alpha * log2(P) + state * (P - 1) / P / b,
        "exchange": 2 * (alpha * (P - 1) + state * (P - 1) / P**2 / b),
        "product": product / P / rate,
        "weights": 2 * solve / rate + alpha * log2(P) + 2 * sent / b,  # float64 at half the rate
    }


def predicted(machine: Machine, given: argparse.Namespace, console: Console) -> None:
    J, side, m = given.model_members, given.model_size, given.model_data
    console.print(f"Model, not measured: {J} members of {side}^2, {m} data; {machine.name}")
    table = Table(title="ms of an update")
    parts = ("data", "exchange", "gather all", "product", "weights")
    for head in "ranks", "calls", *parts, "in calls":
        table.add_column(head, justify="right")
    for ranks in (64, 256, 1024, 4096):
        found = model(machine, ranks, J, side, m)
        asleep = -(-J // ranks) * given.seconds
        total = asleep + sum(found.values()) - found["gather all"]
        table.add_row(
            *(str(ranks), f"{asleep * 1e3:.0f}"),
            *(f"{found[part] * 1e3:.2f}" for part in parts),
            f"{J / ranks * given.seconds / total:.1%}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    launcher = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or "mpiexec"
    add("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of ranks to start")
    add("--members", type=int, default=64, help="members (weak scaling: on each rank)")
    add("--size", type=int, default=64, help="points per side of the field")
    add("--seconds", type=float, default=0.05, help="of a simulator call")
    add("--updates", type=int, default=4, help="of each run")
    add("--launcher", default=f"{shlex.quote(launcher)} -n", help="the number of ranks follows it")
    add("--analysis", type=int, default=2048, help="members of the analysis alone; 0 leaves it out")
    add("--analysis-size", type=int, default=128, help="points per side, analysis alone")
    add("--model-members", type=int, default=4096, help="members, model")
    add("--model-size", type=int, default=256, help="points per side, model")
    add("--model-data", type=int, default=1024, help="data, model")
    add("--report", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.report is not None:
        on_a_rank(given)
        return
    console = Console()
    last = scaling(given, console)
    rate = analysis(given.analysis, given.analysis_size, console) if given.analysis else 0.0
    predicted(CLUSTER, given, console)
    if rate and "alpha" in last:
        alpha, b = last["alpha"], last["bandwidth"]
        words = f"{alpha * 1e6:.0f} us, {b / 1e9:.2f} GB/s, {rate / 1e9:.0f} GFLOP/s a rank"
        predicted(Machine(f"as measured here: {words}", alpha, b, rate), given, console)


if __name__ == "__main__":
    main()
