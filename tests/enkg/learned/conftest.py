"""A learned prior that several files look at."""

from pathlib import Path

import pytest

from enkg import Field
from enkg.learned.loop import train
from tests.enkg.learned.fields import SMALL, training


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """The folder of a U-Net that has made a few large steps, with figures of merit."""
    out = tmp_path_factory.mktemp("priors") / "tiny"
    train(
        training(
            network=SMALL,
            held_out=8,
            rate=0.05,
            unknown=Field("w", "1/s", "vorticity", ("row", "column"), colour_map="RdBu_r"),
            about="A field on a torus.",
            limits=("Knows eight points a side.",),
            recipe="drawn from a Gaussian",
            licence="CC0",
        ),
        out,
    )
    return out
