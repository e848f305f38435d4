"""enkg train: samples to a prior."""

import tomllib
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table as Grid

from enkg import load, stop
from enkg.build import CONFIG, print_help
from enkg.comm import Comm, together
from enkg.errors import InputError
from enkg.learned import Training, card, loop, samples
from enkg.options import Train
from enkg.progress import Learning


def train(given: list[str], comm: Comm, console: Console) -> int:
    """The command; returns the exit code."""
    options, training, rest = together(comm, lambda: _described(given, console))
    out = options.out or Path("priors") / options.file.stem
    if options.time_limit is not None:
        stop.limit(options.time_limit)
    watcher = Learning(console) if comm.rank == 0 else None
    loop.train(
        training,
        out,
        resume=options.resume,
        overwrite=options.overwrite,
        force=options.force,
        watcher=watcher,
        comm=comm,
        source=str(options.file),
        arguments=rest,
    )
    if comm.rank == 0:
        show(out, console)
        console.print(
            f'the prior is in {out}/, with figures: enkg.Trained("{out}")',
            highlight=False,
            soft_wrap=True,
        )
    return 0


def is_prior(folder: Path) -> bool:
    """Whether a folder holds a learned prior."""
    return (folder / card.CARD).is_file()


def check_kind(folder: Path) -> None:
    """Raises InputError for the folder of an autoencoder, which is no prior by itself."""
    if "autoencoder" in tomllib.loads((folder / card.CARD).read_text()):
        raise InputError(
            f"{folder} holds an autoencoder; its prior over latents is in {folder / 'latent'}"
        )


def show(folder: Path, console: Console) -> None:
    """Prints what the card says of a prior: its limits, and its figures of merit."""
    check_kind(folder)
    found = card.read(folder)
    told, merits = found["training"], found.get("merits", {})
    console.print(f"[bold]{found['name']}[/]  {found.get('about', '')}", highlight=False)
    for limit in found.get("limits", []):
        console.print(f"limit: {limit}", highlight=False, markup=False)
    console.print(
        f"members {tuple(found['member']['shape'])}, {told['parameters']:,} weights, "
        f"{told['seen']:,} samples seen in {told['steps']:,} steps"
        + ("" if told.get("finished", True) else "; the training is not finished"),
        highlight=False,
    )
    if not merits:
        console.print("no figures of merit: no samples were held out, or it is not finished")
        return
    denoising = merits["denoising"]
    grid = Grid("noise level", "linear", "learned", "ratio", title="Denoising error, held out")
    for column in grid.columns:
        column.justify = "right"
    exact = denoising.get("exact")
    if exact:
        grid.add_column("exact", justify="right")
    for k, sigma in enumerate(denoising["sigmas"]):
        cells = [f"{sigma:g}", f"{denoising['linear'][k]:.4f}", f"{denoising['learned'][k]:.4f}"]
        cells.append(f"{denoising['ratio'][k]:.3f} ± {denoising['ratio_error'][k]:.3f}")
        grid.add_row(*cells, *([f"{exact[k]:.4f}"] if exact else []))
    console.print(grid)
    for line in _lines(merits):
        console.print(line, highlight=False, soft_wrap=True)


def _lines(merits: dict[str, Any]) -> list[str]:
    energy, memory, values = merits["energy"], merits["memory"], merits["values"]
    lines = []
    if "spectrum" in merits:
        s = merits["spectrum"]
        lines.append(
            f"spectrum of samples: off by {s['mean_error']:.1%} on average, at most "
            f"{s['max_error']:.1%} (data against data {s['mean_floor']:.1%}, {s['max_floor']:.1%})"
        )
    lines += [
        f"values: std {values['samples']['std']:.3f} (data {values['held_out']['std']:.3f}), "
        f"kurtosis {values['samples']['kurtosis']:.2f} ({values['held_out']['kurtosis']:.2f}), "
        f"Wasserstein distance {values['wasserstein']:.3f} (floor {values['floor']:.3f})",
        f"energy distance of samples {energy['value']:.4f} (floor {energy['floor']:.4f})",
        f"nearest training sample at {memory['ratio']:.2f} of the distance of held-out samples; "
        f"{memory['share']:.1%} of the samples nearer than 1 % of those",
    ]
    return lines


def _described(given: list[str], console: Console) -> tuple[Train, Training, list[str]]:
    """The options, the training that the rest of the line describes, the rest."""
    wants_help = any(word in ("-h", "--help") for word in given)
    rest = [word for word in given if word not in ("-h", "--help")]
    if not rest:
        tyro.cli(Train, args=given, prog="enkg train")
    options, rest = tyro.cli(Train, args=rest, prog="enkg train", return_unknown_args=True)
    if wants_help:
        print_help(lambda: tyro.cli(Train, args=["--help"], prog="enkg train"))
        console.print(f"[bold]What {options.file} accepts besides[/]")
    program = f"enkg train {options.file}"
    before = list(rest)
    if options.file.suffix == ".py":
        found, rest = _from_python(options, program, rest, wants_help)
    else:
        found = Training(
            samples(options.file, options.variable, options.sample_dim, options.stacked),
            recipe=str(options.file),
        )
    training = tyro.cli(
        Training,
        default=found,
        args=["--help"] if wants_help else rest,
        prog=program,
        config=CONFIG,
    )
    return options, training, before


def _from_python(
    options: Train, program: str, rest: list[str], wants_help: bool
) -> tuple[Training, list[str]]:
    file = options.file
    if options.variable or options.sample_dim or options.stacked:
        raise InputError(
            f"--variable, --sample-dim and --stacked are for files of data; {file} says itself "
            "what its samples are"
        )
    found = load.defined(
        file,
        "training",
        Training,
        "training = enkg.Training(...), or a function of that name that returns one",
    )
    if isinstance(found, Training):
        return found, rest
    if wants_help:
        print_help(lambda: tyro.cli(found, args=["--help"], prog=program, config=CONFIG))
    made, rest = load.guarded(
        file,
        lambda: tyro.cli(found, args=rest, prog=program, return_unknown_args=True, config=CONFIG),
    )
    if not isinstance(made, Training):
        raise InputError(
            f"`training` in {file} returned a {type(made).__name__}; expected an enkg.Training"
        )
    return made, rest
