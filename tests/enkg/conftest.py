"""What the tests of killed and resumed runs share."""

from collections.abc import Iterator

import pytest

from tests.enkg.killing import Nursery, Project


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


@pytest.fixture(scope="session")
def reference(nursery, tmp_path_factory) -> Project:
    """The run of tests.enkg.mortal that nobody disturbs."""
    project = Project(tmp_path_factory.mktemp("reference"), nursery)
    life = project.run()
    assert life.wait() == 0, life.text
    return project


@pytest.fixture
def project(nursery, tmp_path) -> Project:
    return Project(tmp_path / "a", nursery)
