"""What tells simulators apart, in this session and in others."""

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

import enkg
from enkg.execute.cache import Cached
from enkg.execute.identity import identity_of
from enkg.execute.pool import Pool
from tests.enkg.execute import members as m
from tests.enkg.execute.helpers import printed, python


@dataclass
class Wave:
    speed: float
    grid: np.ndarray

    def __call__(self, x):
        return self.speed * x

    def square(self, x):
        return x**2


class Lazy:
    def __init__(self, order):
        self.order = order

    @cached_property
    def table(self):
        return np.arange(self.order)

    def __call__(self, x):
        return x + self.table[0]


def scaled(factor):
    @jax.jit
    def f(x):
        return factor * x

    return f


def closed(value):
    return lambda x: value * x


def with_default(x, factor=2.0):
    return factor * x


GRID = np.arange(3.0)
DISTINCT = {
    "function": lambda: m.double,
    "another": lambda: m.own_pid,
    "one member": lambda: enkg.Function(m.double, batched=False),
    "torch": lambda: enkg.Function(m.double, to=torch.from_numpy),
    "dataclass": lambda: Wave(1.0, GRID),
    "its number": lambda: Wave(2.0, GRID),
    "its array": lambda: Wave(1.0, GRID + 1e-15),
    "its method": lambda: Wave(1.0, GRID).square,
    "object": lambda: Lazy(2),
    "its attribute": lambda: Lazy(3),
    "partial": lambda: partial(with_default, factor=2.0),
    "its keyword": lambda: partial(with_default, factor=3.0),
    "closure": lambda: closed(1.0),
    "its cell": lambda: closed(2.0),
    "its nested cell": lambda: closed({"a": [1, (2, {3})]}),
    "jax": lambda: scaled(2.0),
    "its constant": lambda: scaled(3.0),
    "lambda": lambda: lambda x: x + 1,
    "its sister": lambda: lambda x: x + 2,
    "cached by functools": lambda: lru_cache(m.double),
    "torch module": lambda: torch.nn.Linear(2, 2, dtype=torch.float64).requires_grad_(False),
    "ufunc": lambda: np.sin,
    "another ufunc": lambda: np.cos,
}


def test_that_simulators_have_identities_of_their_own_that_last():
    torch.manual_seed(0)
    first = {name: identity_of(make()) for name, make in DISTINCT.items()}
    torch.manual_seed(0)
    assert {name: identity_of(make()) for name, make in DISTINCT.items()} == first
    assert len(set(first.values())) == len(first)


def test_that_chunks_and_pools_leave_the_identity_alone():
    assert identity_of(m.double) == identity_of(enkg.Function(m.double, chunk=3))
    one = identity_of(enkg.Function(m.double, batched=False))
    assert identity_of(Pool(m.double, processes=3)) == Pool(m.double).identity() == one


def test_that_use_leaves_the_identity_alone():
    lazy = Lazy(2)
    before = identity_of(lazy)
    assert lazy(1.0) == 1.0
    assert "table" in vars(lazy)
    assert identity_of(lazy) == before
    f = scaled(2.0)
    before = identity_of(f)
    f(np.ones(3))
    assert identity_of(f) == before


def test_that_identities_are_those_of_other_sessions():
    code = """
        import numpy as np
        from enkg.execute.identity import identity_of
        from functools import partial
        from tests.enkg.execute import members
        options = {"a": {"x", "y", "z"}, "b": np.arange(4), "c": members}
        print(identity_of(partial(members.Scaled(3.0), options)))
    """
    assert len({printed(python(code, PYTHONHASHSEED=seed)) for seed in ("1", "2")}) == 1


def test_that_the_text_of_the_file_belongs_to_the_identity(tmp_path):
    seen = set()
    for number in (1, 2):
        (tmp_path / "waves.py").write_text(f"SPEED = {number}\ndef f(x): return SPEED * x\n")
        code = "import waves, enkg.execute.identity as i; print(i.identity_of(waves.f))"
        seen.add(printed(python(code, tmp_path, PYTHONDONTWRITEBYTECODE="1")))
    assert len(seen) == 2


def test_that_state_without_identity_asks_for_a_version(tmp_path):
    with Path(__file__).open() as file:

        def simulator(x, file=file):
            return x

        with pytest.raises(enkg.InputError, match=r"TextIOWrapper.*version="):
            Cached(simulator, tmp_path)(GRID)
        np.testing.assert_array_equal(Cached(simulator, tmp_path, "1")(GRID), GRID)
