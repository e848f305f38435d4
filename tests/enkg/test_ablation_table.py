"""Results of ablations: the numbers of the tables are means and deviations, in every form."""

import csv
import io
import json

import matplotlib.image
import numpy as np
import pytest
import xarray as xr
from rich.cells import cell_len
from rich.console import Console

from enkg import ablation_cells as cells
from enkg import ablation_figures, ablation_report, ablation_table, store
from enkg.ablation_cells import Entry, Plan
from enkg.ablation_report import Number, body, escaped, latex, lines, markdown, show
from enkg.ablation_table import gather

METHODS = ("EnKG", "A & B_1", "50 %")
ERRORS = {"EnKG": (0.1, 0.2, 0.3), "A & B_1": (0.5, 0.7, None), "50 %": (None, None, None)}


@pytest.fixture
def folder(tmp_path):
    """Records of three methods, two noise levels, three seeds; some failed, one is skipped."""
    entries, number = [], 0
    for method in METHODS:
        for noise in ("0.2", "0.4"):
            for seed in range(3):
                labels = {"guidance": method, "noise": noise, "seed": str(seed)}
                if (method, noise) == ("50 %", "0.4"):
                    entries.append(Entry(labels, None, "no gradient"))
                    continue
                entries.append(Entry(labels, number))
                run = tmp_path / f"{number:04d}"
                (run / store.TREE).mkdir(parents=True)
                (run / store.SUMMARY).write_text("{}")
                error = ERRORS[method][seed]
                record = {"labels": labels, "state": "finished", "reason": "", "seconds": 1.0}
                record |= {"measures": {"relative_error": error, "calls": 1000 + number, "vjps": 0}}
                record |= {"trusted": seed > 0}
                if error is None:
                    record |= {"state": "failed", "reason": "EnsembleFailure: too few | left"}
                    record |= {"measures": {}, "trusted": False}
                cells.write_record(tmp_path, number, record)
                number += 1
    axes = {"guidance": METHODS, "noise": (0.2, 0.4), "seed": (0, 1, 2)}
    measures = ("relative_error", "calls", "vjps", "seconds")
    cells.save(tmp_path, Plan(axes, tuple(entries), "A title", ("seed",), None, measures))
    return tmp_path


def test_that_the_dataset_has_the_axes_as_dimensions_and_says_what_it_holds(folder):
    data = gather(folder)
    assert dict(data.sizes) == {"guidance": 3, "noise": 2, "seed": 3}
    assert data["noise"].values.tolist() == [0.2, 0.4]
    assert data["relative_error"].sel(guidance="EnKG", noise=0.4).values.tolist() == [0.1, 0.2, 0.3]
    assert data["relative_error"].attrs == {
        "long_name": "relative error of the posterior mean",
        "units": "1",
    }
    assert data["calls"].attrs["units"] == "1"
    assert np.isnan(data["relative_error"].sel(guidance="50 %")).all()
    assert (data["state"].sel(guidance="50 %", noise=0.4) == "skipped").all()
    assert (data["reason"].sel(guidance="50 %", noise=0.4) == "no gradient").all()


def test_that_netcdf_gives_back_what_was_written(folder, monkeypatch):
    monkeypatch.setattr(ablation_figures, "draw", lambda data, folder: [])
    data = ablation_table.write(folder)
    with xr.open_dataset(folder / "ablation.nc", engine="h5netcdf") as found:
        xr.testing.assert_identical(found.load(), data)
        assert found["trusted"].dtype == bool
    assert not list(folder.glob("*.partial"))


def test_that_the_csv_has_a_line_for_each_cell_with_all_digits(folder):
    cells.write_record(
        folder,
        0,
        {**(cells.record(folder, 0) or {}), "measures": {"relative_error": 0.1 + 0.2, "calls": 7}},
    )
    data = gather(folder)
    found = list(csv.DictReader(io.StringIO(lines(data))))
    assert len(found) == 18
    assert [(r["guidance"], r["noise"], r["seed"]) for r in found] == [
        (m, n, s) for m in METHODS for n in ("0.2", "0.4") for s in "012"
    ]
    assert float(found[0]["relative_error"]) == 0.1 + 0.2
    assert found[8]["relative_error"] == ""
    assert found[8]["reason"] == "EnsembleFailure: too few | left"
    assert [r["cell"] for r in found[:2]] == ["0", "1"]


def test_that_rows_are_means_and_deviations_and_what_is_compared_varies_fastest(folder):
    found = body(gather(folder))
    assert [row[0] for row in found.rows] == [
        ["0.2", "EnKG"],
        ["0.2", "A & B_1"],
        ["0.2", "50 %"],
        ["0.4", "EnKG"],
        ["0.4", "A & B_1"],
    ]
    assert found.measures == ["relative_error", "calls"]
    assert "vjps 0 everywhere" in found.constant
    enkg, other, none = (row[1][0] for row in found.rows[:3])
    assert (enkg.mean, enkg.spread) == (pytest.approx(0.2), pytest.approx(0.1))
    assert (other.mean, other.spread) == (pytest.approx(0.6), pytest.approx(0.02**0.5))
    assert none.text() == "-"
    assert [row[2] for row in found.rows[:3]] == ["2 of 3", "1 of 3, 1 failed", "0 of 3, 3 failed"]
    assert found.failures == [
        "failed: A & B_1, noise 0.2, seed 2; A & B_1, noise 0.4, seed 2; 50 %, noise 0.2, seed 0; "
        "and 2 more: EnsembleFailure: too few | left",
        "skipped: 50 %, noise 0.4, seed 0; 50 %, noise 0.4, seed 1; 50 %, noise 0.4, seed 2: "
        "no gradient",
    ]


@pytest.mark.parametrize(
    ("mean", "spread", "whole", "text"),
    [
        (0.997, 0.0041, False, "0.9970 ± 0.0041"),
        (1.949, 1.46, False, "1.9 ± 1.5"),
        (123.4, 12.3, False, "123 ± 12"),
        (1.0, float("nan"), False, "1.00"),
        (0.25, 0.0, False, "0.250"),
        (3e-9, 1e-9, False, "3e-09 ± 1e-09"),
        (4576.0, 0.0, True, "4,576"),
        (4576.5, 12.2, True, "4,576 ± 12"),
    ],
)
def test_that_the_deviation_has_two_digits_and_the_mean_as_many_places(mean, spread, whole, text):
    assert Number(mean, spread, whole).text() == text


def test_that_latex_has_the_rows_and_no_sign_that_breaks_it(folder):
    text = latex(gather(folder))
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert text.count(r"\midrule") == 2
    assert r"0.2 & A \& B\_1 & $0.60 \pm 0.14$ & $1{,}006$" in text.replace(r" \pm 1$", "$")
    assert r"50 \%" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {4}
    assert escaped("{x}^2~\\") == r"\{x\}\textasciicircum{}2\textasciitilde{}\textbackslash{}"
    assert r"$3 \times 10^{-9} \pm 1 \times 10^{-9}$" in ablation_report._mathematical(
        Number(3e-9, 1e-9)
    )


def test_that_markdown_has_as_many_columns_in_each_row(folder):
    text = markdown(gather(folder))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 5
    assert {line.count("|") for line in table} == {6}
    assert "| 0.2 | EnKG | 0.20 ± 0.10 |" in text


@pytest.mark.parametrize("width", [40, 60, 200])
def test_that_every_number_is_printed_whole_at_any_width(folder, width):
    out = io.StringIO()
    show(gather(folder), Console(file=out, width=width))
    text = out.getvalue()
    for words in ("0.20 ± 0.10", "0.60 ± 0.14", "1 of 3, 1 failed", "A title", "EnKG"):
        assert words in text
    assert "…" not in text


PUBLISHED = ("relative_error", "mean_off_by", "variance_over_exact", "coverage_90", "crps")


def wide(failed: bool, label: str = "published EnKG", states: int = 1) -> xr.Dataset:
    """Two methods with the measures of a file in experiments/ablations; a cell may have failed."""
    methods, seeds = (label, "画像 prior"), range(states)
    shape = (2, states)
    number = np.linspace(1.234567, 0.987654, 2 * states).reshape(shape)
    number[0, 0] = np.nan if failed else 1.0
    state = np.full(shape, "finished", object)
    state[0, 0] = "failed" if failed else "finished"
    dims = ("guidance", "seed")
    values = {name: (dims, number) for name in (*PUBLISHED, "calls", "denoiser_calls", "seconds")}
    values["calls"] = (dims, number * 1e5)
    values |= {"state": (dims, state), "trusted": (dims, state == "finished")}
    values |= {"reason": (dims, np.where(state == "failed", "too few members are left", ""))}
    measures = [name for name in values if name not in ("state", "trusted", "reason")]
    attributes = {"title": "Linear-Gaussian problem, 64 unknowns", "over": '["seed"]'}
    attributes["measures"] = json.dumps(measures)
    data = xr.Dataset(values, {"guidance": list(methods), "seed": list(seeds)})
    return data.assign_attrs(attributes)


@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("width", [36, 45, 61, 79, 80, 81, 100, 120, 200])
def test_that_no_line_is_too_long_and_nothing_is_cut(width, failed, states):
    data = wide(failed, states=states)
    out = io.StringIO()
    show(data, Console(file=out, width=width))
    table = out.getvalue().split("failed: ")[0]
    assert max(map(cell_len, table.splitlines())) <= width
    found = body(data)
    words = {word for head in found.heads for word in head.split()}
    words |= {text for labels, ns, last in found.rows for text in (*labels, last)}
    words |= {number.text() for _, numbers, _ in found.rows for number in numbers}
    assert any(word.endswith(f"of {states}, 1 failed") for word in words) == failed
    for word in words:
        assert word in table, word
    assert "…" not in table


def test_that_labels_wider_than_the_terminal_are_folded():
    label = "a label that is longer than all of the terminal " * 2
    out = io.StringIO()
    show(wide(True, label.strip()), Console(file=out, width=40))
    table = out.getvalue().split("failed: ")[0]
    assert max(map(cell_len, table.splitlines())) <= 40
    for word in (*label.split(), "0 of 1, 1 failed"):
        assert word in table


def test_that_the_numbers_of_a_changed_cell_are_in_the_means(folder):
    for number, state in ((1, "changed"), (0, "failed")):
        cells.write_record(folder, number, {**(cells.record(folder, number) or {}), "state": state})
    row = body(gather(folder)).rows[0]
    assert row[1][0].mean == pytest.approx(0.2)
    assert row[2] == "2 of 3, 1 changed, 1 failed"


def test_that_a_cell_whose_run_was_removed_is_missing(folder):
    (folder / "0000" / store.SUMMARY).unlink()
    data = gather(folder)
    assert data["state"].item(0) == "missing"
    (folder / "0000" / store.RECORD).write_text("{}")
    assert gather(folder)["state"].item(0) == "unfinished"
    assert "2 of 3, 1 to run" in markdown(data)


# --- figures ----------------------------------------------------------------------------------


def invented(along: str = "", **sizes: int) -> xr.Dataset:
    """Numbers of no runs, with the axes and their lengths."""
    shape, dims = tuple(sizes.values()), tuple(sizes)
    draw = np.random.default_rng(0)
    variables = {
        "relative_error": draw.uniform(0.1, 1, shape),
        "coverage_90": draw.uniform(0, 1, shape),
        "calls": 10 ** draw.uniform(2, 5, shape),
        "seconds": draw.uniform(1, 2, shape),
    }
    coords = {n: np.array([f"{n} {k}" for k in range(size)], object) for n, size in sizes.items()}
    attributes = {"title": "T", "measures": json.dumps(list(variables)), "along": along}
    attributes["over"] = json.dumps(["seed"] if "seed" in sizes else [])
    data = xr.Dataset({k: (dims, v, {"long_name": k}) for k, v in variables.items()}, coords)
    return data.assign_attrs(attributes)


@pytest.mark.parametrize(
    "data",
    [
        invented(method=12, noise=2, task=2, seed=2),
        invented("members", method=2, members=3, seed=2),
        invented(seed=3),
        invented(method=2),
    ],
    ids=["twelve", "along", "seeds", "plain"],
)
def test_that_the_figures_are_drawn(data, tmp_path):
    drawn = ablation_figures.draw(data, tmp_path / "figures")
    assert [file.name for file in drawn] == [
        "error_against_calls.png",
        "error_against_seconds.png",
        "coverage.png",
    ]
    for file in drawn:
        picture = matplotlib.image.imread(file)
        assert picture.std() > 0.01


def test_that_what_is_not_known_is_not_drawn(tmp_path):
    data = invented(method=2, seed=2)
    data["coverage_90"] = data["coverage_90"] * np.nan
    data["relative_error"][1] = np.nan
    names = [file.name for file in ablation_figures.draw(data, tmp_path)]
    assert names == ["error_against_calls.png", "error_against_seconds.png"]
    assert ablation_figures.draw(data * np.nan, tmp_path) == []


def test_that_each_of_twelve_methods_has_a_look_of_its_own():
    looks = {tuple(ablation_figures._style(number).values()) for number in range(12)}
    colours = {colour for colour, _ in looks}
    assert len(looks) == len(colours) == 12
