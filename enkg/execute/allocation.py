"""The nodes of a SLURM allocation, and which of them each slot has for its members."""

import os
import re
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from enkg.errors import InputError
from enkg.execute.environment import RANK

SIZES = ("SLURM_STEP_NUM_TASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
"""How many ranks run beside this one, by the launchers that say so."""


@dataclass(frozen=True)
class Node:
    """A machine, and how many cores of it are ours."""

    name: str
    cores: int


def nodes() -> tuple[Node, ...]:
    """The nodes on which this process may start programs, in SLURM's order.

    Those of the allocation for a process that is alone in it; for one of several ranks only the
    node that it runs on, because the other nodes have ranks of their own. Outside an allocation,
    this machine.

    Raises InputError if SLURM's own description cannot be read. Cost: one call of scontrol where
    there is an allocation of several nodes.
    """
    names = os.environ.get("SLURM_JOB_NODELIST")
    here = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    if not names or "SLURM_JOB_ID" not in os.environ or is_rank():
        return (Node(here, usable_cores()),)
    found = [names] if re.fullmatch(r"[\w.-]+", names) else hostnames(names)
    cores = expand(os.environ.get("SLURM_JOB_CPUS_PER_NODE", str(usable_cores())))
    if len(cores) != len(found):
        raise InputError(
            f"SLURM_JOB_NODELIST names {len(found)} nodes and SLURM_JOB_CPUS_PER_NODE "
            f"{len(cores)}; start enkg in a batch script or in salloc"
        )
    return tuple(Node(*pair) for pair in zip(found, cores, strict=True))


def is_rank() -> bool:
    """Whether other ranks of the same run are beside this process."""
    sizes = [os.environ.get(name, "") for name in SIZES]
    known = [int(size) for size in sizes if size.isdigit()]
    return any(size > 1 for size in known) or (not known and in_step())


def others() -> int:
    """How many nodes of the allocation do nothing if this process uses its own node alone."""
    count = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    return 0 if is_rank() or not count.isdigit() else int(count) - 1


def away(nodes: Sequence[str]) -> bool:
    """Whether one of the nodes is another machine than this one."""
    return any(node != os.environ.get("SLURMD_NODENAME") for node in nodes)


def in_step() -> bool:
    """Whether a launcher started this process, whose cores then count as used."""
    return any(name in os.environ for name in RANK)


def hostnames(names: str) -> list[str]:
    """Each node of a list such as gpu[01-03,07]. Raises InputError if scontrol cannot tell."""
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", names],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(
            f"the nodes of this allocation, {names}, cannot be listed: scontrol: {error}"
        ) from error
    if done.returncode != 0 or not done.stdout.split():
        raise InputError(
            f"the nodes of this allocation, {names}, cannot be listed: scontrol says: "
            f"{done.stderr.strip() or 'nothing'}"
        )
    return done.stdout.split()


def expand(counts: str) -> list[int]:
    """Numbers of SLURM_JOB_CPUS_PER_NODE.

    >>> expand("8(x2),4")
    [8, 8, 4]
    """
    found: list[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise InputError(
                f"SLURM_JOB_CPUS_PER_NODE is {counts!r}; expected counts such as 8(x2),4"
            )
        found += [int(match[1])] * int(match[2] or 1)
    return found


def places(
    available: Sequence[Node], ranks: int, threads: int, slots: int | None = None
) -> list[tuple[str, ...]]:
    """The nodes of each slot.

    A member of `ranks` times `threads` cores lies on one node where there is room, else on as many
    whole nodes, side by side, as it needs. slots: how many there are to be; None takes as many as
    have room. They are dealt to the nodes in turn.

    Raises InputError if a member, or the slots, do not have room.
    """
    room = {node.name: node.cores // threads for node in available}  # ranks that fit
    found: list[tuple[str, ...]] = []
    if max(room.values()) >= ranks:
        while any(free >= ranks for free in room.values()):
            for name, free in room.items():
                if free >= ranks:
                    room[name] = free - ranks
                    found.append((name,))
    else:
        group: list[str] = []
        for name in room:
            group.append(name)
            if sum(room[each] for each in group) >= ranks:
                found.append(tuple(group))
                group = []
    total = sum(node.cores for node in available)
    if not found:
        raise InputError(
            f"a member takes {ranks} ranks of {threads} cores, and this allocation has {total} "
            f"cores on {len(available)} nodes; ask for more, or give fewer ranks"
        )
    if slots is not None and slots > len(found):
        raise InputError(
            f"slots is {slots}, but this allocation of {total} cores has room for {len(found)} "
            f"members of {ranks} ranks and {threads} cores each; give fewer slots or ask for more"
        )
    return found[:slots]


def usable_cores() -> int:
    """Cores of this machine that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
