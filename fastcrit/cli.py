"""The command line: ``fastcrit study patch``, ``fastcrit analyze FILE``. Errors a user can mend are one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import xarray as xr

import fastcrit
from fastcrit import observe, store
from fastcrit.errors import FileFormatError

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="How diffusion models turn noise into patterns: spectra, lengths, gains, critical noise levels.",
    context_settings=HELP,
    pretty_exceptions_enable=False,
)
study = typer.Typer(
    no_args_is_help=True, context_settings=HELP, help="Whole runs that leave a folder with the dataset and the figures."
)
app.add_typer(study, name="study")


class DictionaryName(str, Enum):  # noqa: UP042 (StrEnum would change str() of a member)
    """Dictionaries of the patch study."""

    binary = "binary"
    fashion_mnist = "fashion-mnist"


class SolverName(str, Enum):  # noqa: UP042 (StrEnum would change str() of a member)
    """Solvers of the patch sampler."""

    sde = "sde"
    euler = "euler"
    heun = "heun"


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and what the core runs on.")] = False,
) -> None:
    if version:
        info = fastcrit.core_info()
        print(f"fastcrit {info['version']} (core: {info['instruction_set']}, {info['threads']} threads)")
        raise typer.Exit


@study.command("patch")
def _study_patch(
    out: Annotated[Path, typer.Option(help="Folder to make for the run; an existing one is refused.")],
    dictionary: Annotated[DictionaryName, typer.Option(help="Patterns of the model.")] = DictionaryName.binary,
    patterns: Annotated[int | None, typer.Option(help="Random patterns (8) or image patches (512).")] = None,
    size: Annotated[int, typer.Option(help="Side of a patch, odd.")] = 5,
    lattice: Annotated[int, typer.Option(help="Side of the periodic lattice.")] = 80,
    samples: Annotated[int, typer.Option(help="Trajectories.")] = 64,
    levels: Annotated[int, typer.Option(help="Recorded noise levels.")] = 48,
    high: Annotated[float, typer.Option(help="Highest noise level.")] = 50.0,
    low: Annotated[float, typer.Option(help="Lowest noise level.")] = 0.05,
    substeps: Annotated[int, typer.Option(help="Solver steps between recorded levels.")] = 4,
    solver: Annotated[
        SolverName, typer.Option(help="Reverse SDE, or the ODE by Euler or Heun steps.")
    ] = SolverName.sde,
    seed: Annotated[int, typer.Option(help="Of the trajectories.")] = 0,
    dictionary_seed: Annotated[int, typer.Option(help="Of the random patterns: another one is another model.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
) -> None:
    """Sample a patch model and compare its critical noise level with theory."""
    from fastcrit.studies.patch import PatchStudy, summary

    config = PatchStudy(
        dictionary=dictionary.value, patterns=patterns, size=size, lattice=lattice, samples=samples, levels=levels,
        high=high, low=low, substeps=substeps, solver=solver.value, seed=seed, dictionary_seed=dictionary_seed,
    )  # fmt: skip
    try:
        ds = config.run(out, resume=resume, progress=True)
    except KeyboardInterrupt:
        print(f"\nstopped: the same command with --resume goes on in {out}", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"\n{summary(ds)}\n\ndataset, figures and this table: {out}")


@app.command("analyze")
def _analyze(
    file: Annotated[
        Path,
        typer.Argument(help="Fields (.npy .npz .pt .safetensors .zarr .nc), a saved recorder, or a study's folder."),
    ],
    name: Annotated[str | None, typer.Option(help="Which array, where the file holds several.")] = None,
    ndim: Annotated[int, typer.Option(help="Number of lattice axes.")] = 2,
    spacing: Annotated[float, typer.Option(help="Distance between sites.")] = 1.0,
) -> None:
    """Print the structure factor and every correlation length of an ensemble, or the critical levels of a study.

    Axis 0 of the array is the ensemble, the last axes are the lattice; axes between them are averaged over.
    """
    if recorded := _recorded(file):
        print(fastcrit.critical_point(recorded()))
        return
    fields = store.load_array(file, name)
    S = fastcrit.structure_factor(fields, ndim=ndim, spacing=spacing)
    shape = " x ".join(map(str, np.shape(fields)[np.ndim(fields) - ndim :]))
    channels = len(np.reshape(S.S, (-1, len(S.k))))
    averaged = f", {channels} channels averaged" if channels > 1 else ""
    print(f"{file}: {S.n_samples} samples on {shape} sites{averaged}")
    print(f"\n{'k (rad/length)':>14} {'S':>14} {'stderr':>12} {'modes':>7}")
    mean = np.reshape(S.S, (-1, len(S.k))).mean(axis=0)
    # Channels of one sample are not independent: their errors are averaged, not reduced.
    error = np.reshape(S.stderr, (-1, len(S.k))).mean(axis=0)
    for row in zip(S.k, mean, error, S.counts, strict=True):
        print("{:14.6f} {:14.6g} {:12.3g} {:7d}".format(*row))
    print("\ncorrelation lengths, in units of the distance between sites times the spacing:")
    for method in fastcrit.METHODS:
        xi = fastcrit.correlation_length(fields, method=method, ndim=ndim, spacing=spacing)
        print(f"{method:<20}{np.mean(xi.value):10.4f} +- {np.mean(xi.stderr):.4f}  {' '.join(xi.flags)}")


def _recorded(path: Path) -> Callable[[], xr.Dataset] | None:
    """How to load what a recorder made, or None for a file of fields. Damage is found on loading."""
    if (path / "dataset.zarr").exists():
        path = path / "dataset.zarr"
    marks = path / ".zattrs"
    if marks.is_file() and store.FORMAT in marks.read_text(errors="replace"):
        return lambda: store.load_dataset(path)
    if path.is_file():
        with path.open("rb") as file:
            if observe.FORMAT.encode() in file.read(4096):  # in the header of a safetensors file
                return lambda: fastcrit.Recorder.load(path).dataset()
    return None


def main() -> None:
    """Run the command line; mistakes in the input end in one line on standard error and exit status 2."""
    try:
        app()
    except (ModuleNotFoundError, FileFormatError, ValueError, TypeError, OSError, OverflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
