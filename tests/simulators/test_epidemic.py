"""The epidemic simulator: its laws, and the script as a program, started anew or kept up."""

import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from enkg.execute.program import Program
from simulators.epidemic.seir import (
    INFECTIOUS,
    KNOTS,
    LATENT,
    POPULATION,
    START,
    WEEKS,
    ImpossibleError,
    main,
    trajectory,
    weekly_counts,
)

FOLDER = Path(__file__).parents[2] / "simulators" / "epidemic"
RNG = np.random.default_rng(5)
WALKS = math.log(0.35) + 0.3 * np.cumsum(RNG.standard_normal((6, len(KNOTS))), axis=1)
TOO_FAST = np.full(len(KNOTS), 10.0)


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "seir.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_that_nobody_appears_or_vanishes():
    days = np.linspace(0, 140, 57)
    for log_beta in WALKS:
        shares = trajectory(log_beta, days)
        np.testing.assert_allclose(shares.sum(axis=0), 1, rtol=0, atol=1e-13)
        assert (shares >= 0).all()
        assert (np.diff(shares[0]) <= 0).all()  # susceptible people only become fewer
        assert (np.diff(shares[3]) >= 0).all()


def test_that_without_contact_the_infectious_recover_exponentially():
    days = np.linspace(0, 140, 29)
    s, e, i, r = trajectory(np.full(len(KNOTS), -800.0), days)
    decay = START * np.exp(-days / INFECTIOUS)
    np.testing.assert_allclose(i, decay, rtol=0, atol=1e-9)
    np.testing.assert_allclose(r, START - decay, rtol=0, atol=1e-9)
    assert (s == 1 - START).all()
    assert (e == 0).all()
    assert (weekly_counts(np.full(len(KNOTS), -800.0)) < 1e-3).all()


@pytest.mark.parametrize("beta", [0.1, 0.2, 0.3])
def test_that_an_epidemic_starts_with_the_growth_rate_of_the_linear_equations(beta):
    # (g + 1/4)(g + 1/5) = beta / 4 while nearly everybody is susceptible
    a, b = 1 / LATENT, 1 / INFECTIOUS
    growth = (-(a + b) + math.sqrt((a - b) ** 2 + 4 * a * beta)) / 2
    _, _, i, _ = trajectory(np.full(len(KNOTS), math.log(beta)), np.array([30.0, 40.0]))
    assert math.log(i[1] / i[0]) / 10 == pytest.approx(growth, abs=0.002)


@pytest.mark.parametrize("beta", [0.15, 0.35, 2.0])
def test_that_the_susceptible_fall_as_the_final_size_relation_says(beta):
    # (ln S)' = -beta I and R' = I / 5, so ln S falls by 5 beta R exactly, at any time
    s, _, _, r = trajectory(np.full(len(KNOTS), math.log(beta)), np.array([50.0, 140.0]))
    np.testing.assert_allclose(np.log((1 - START) / s), INFECTIOUS * beta * r, rtol=1e-6)


def test_that_the_counts_are_those_of_another_integration():
    def derivative(t, u, log_beta):
        infections = math.exp(np.interp(t, KNOTS, log_beta)) * u[0] * u[2]
        onsets = u[1] / LATENT
        return [-infections, infections - onsets, onsets - u[2] / INFECTIOUS, onsets]

    for log_beta in WALKS:
        u, ever = np.array([1 - START, 0, START, 0]), [0.0]
        for begin, end in pairwise(WEEKS):  # no kink inside a week
            leg = solve_ivp(
                derivative, (begin, end), u, "LSODA", args=(log_beta,), rtol=1e-11, atol=1e-14
            )
            u = leg.y[:, -1]
            ever.append(u[3])
        expected = POPULATION * np.diff(ever)
        error = np.abs(weekly_counts(log_beta) - expected) / np.sqrt(expected)
        assert error.max() < 1e-3  # of a Poisson standard deviation


def test_that_the_integration_gives_up_on_impossible_epidemics():
    for level in (10.0, 1000.0):
        with pytest.raises(ImpossibleError):
            weekly_counts(np.full(len(KNOTS), level))
    with pytest.raises(ValueError, match="NaN"):
        weekly_counts(np.full(len(KNOTS), np.nan))


def test_that_the_program_gives_the_function_s_numbers_and_leaves_one_file(tmp_path):
    np.savetxt(tmp_path / "in.txt", WALKS[0], fmt="%.17g")
    done = program(tmp_path / "in.txt", tmp_path / "out.txt", "--sleep", 0.01)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "out.txt"), weekly_counts(WALKS[0]))
    assert sorted(os.listdir(tmp_path)) == ["in.txt", "out.txt"]


def test_that_an_impossible_epidemic_ends_with_3_and_writes_nothing(tmp_path):
    np.savetxt(tmp_path / "in.txt", TOO_FAST)
    done = program(tmp_path / "in.txt", tmp_path / "out.txt")
    assert done.returncode == 3
    assert done.stderr.startswith("impossible: no end after 20000 evaluations")
    assert os.listdir(tmp_path) == ["in.txt"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "No such file"),
        ("1 2 3", "holds 3 numbers; expected 11"),
        ("a word", "not a text of numbers"),
        ("nan " * 11, "NaN or infinity"),
    ],
)
def test_that_bad_input_ends_with_2_and_a_sentence(tmp_path, capsys, text, sentence):
    if text is not None:
        (tmp_path / "in.txt").write_text(text)
    assert main([str(tmp_path / "in.txt"), str(tmp_path / "out.txt")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.txt").exists()


def test_that_results_without_a_folder_end_with_2(tmp_path):
    np.savetxt(tmp_path / "in.txt", WALKS[0])
    done = program(tmp_path / "in.txt", tmp_path / "nowhere" / "out.txt")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["in.txt"]


def test_that_help_explains_files_and_exit_status(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for word in ("IN", "OUT", "exit status", "--serve", "--sleep", "impossible", "example"):
        assert word in text


def test_that_two_files_are_asked_for(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["in.txt"])
    assert "give two files" in capsys.readouterr().err


def test_that_the_script_needs_numpy_and_scipy_alone():
    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import seir, enkg_worker; "
        "print([m for m in ('enkg', 'torch', 'jax', 'xarray', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("mode", ["worker", "oneshot"])
def test_that_served_or_started_anew_the_answers_are_the_function_s(mode):
    members = 6 if mode == "worker" else 2
    x = np.insert(WALKS[:members], 1, TOO_FAST, axis=0)
    found = Program(FOLDER, slots=2, mode=mode).evaluate(x)
    good = np.arange(len(x)) != 1
    expected = np.stack([weekly_counts(member) for member in x[good]])
    np.testing.assert_array_equal(found.y[good], expected)
    assert np.isnan(found.y[1]).all()
    assert [failure is None for failure in found.failures] == good.tolist()
    assert "no end after 20000 evaluations" in str(found.failures[1])
