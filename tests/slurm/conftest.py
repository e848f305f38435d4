"""A real SLURM for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import lent


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    with lent():
        yield
