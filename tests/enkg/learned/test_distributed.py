"""A training on two ranks of torchrun, and under launchers that it does not take."""

import torch

from enkg.learned import card
from enkg.learned.loop import train
from tests.enkg.learned.fields import training
from tests.enkg.ranks import launcher

FILE = """
from tests.enkg.learned.fields import training as small

training = small(held_out=8, rate=0.02)
"""


def weights(folder) -> dict[str, torch.Tensor]:
    return card.load_weights(folder, card.read(folder)["files"]["weights"])


def test_that_two_ranks_learn_what_one_learns(tmp_path):
    (tmp_path / "small.py").write_text(FILE)
    words = ("-m", "enkg", "train", tmp_path / "small.py", "--out", tmp_path / "two")
    done = launcher("torchrun").run(2, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the prior is in") == 1  # one rank speaks
    train(training(held_out=8, rate=0.02), tmp_path / "one")
    two, one = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert card.read(tmp_path / "two")["training"]["ranks"] == 2
    assert two.keys() == one.keys()
    for name, weight in one.items():  # six steps of 0.02 move a weight by up to 0.1
        torch.testing.assert_close(two[name], weight, atol=2e-5, rtol=1e-4, msg=name)


def test_that_mpi_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "small.py").write_text(FILE)
    words = ("-m", "enkg", "train", tmp_path / "small.py", "--out", tmp_path / "out")
    done = launcher("mpich").run(2, *words)
    assert done.returncode != 0
    assert done.stderr.count("started by torchrun, which PyTorch brings") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "card.toml").exists()
