"""The command line: ``fastcrit study``, ``train``, ``analyze``. Errors a user can mend are one line."""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

import fastcrit
from fastcrit.cli.exit_status import resumable
from fastcrit.cli.studies import Studies
from fastcrit.errors import FileFormatError

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    no_args_is_help=True,
    help="How diffusion models turn noise into patterns: spectra, lengths, gains, critical noise levels.",
    epilog="Exit status: 0 done; 1 done with parts left out; 2 wrong input; 130 stopped by Ctrl-C.",
    context_settings=HELP,
    pretty_exceptions_enable=False,
)
study = typer.Typer(
    cls=Studies, no_args_is_help=True, context_settings=HELP,
    help="Whole runs that leave a folder with the dataset and the figures.",
)  # fmt: skip
app.add_typer(study, name="study")
train = typer.Typer(no_args_is_help=True, context_settings=HELP, help="Train the networks that ship with fastcrit.")
app.add_typer(train, name="train")


class PaddingName(str, Enum):  # noqa: UP042 (StrEnum would change str() of a member)
    """Borders of the network."""

    circular = "circular"
    zeros = "zeros"


class PrecisionName(str, Enum):  # noqa: UP042 (StrEnum would change str() of a member)
    """Precision of the convolutions."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and what the core runs on.")] = False,
) -> None:
    if version:
        info = fastcrit.core_info()
        print(f"fastcrit {info['version']} (core: {info['instruction_set']}, {info['threads']} threads)")
        raise typer.Exit


@app.command("status")
def _status(
    run: Annotated[Path, typer.Argument(help="Folder of a run of study imagenet or guidance, running or not.")],
) -> None:
    """Print how far a run is: chunks, time a sample and what it goes to, what each rank does."""
    from fastcrit.studies.shared.status import status

    print(status(run))


@train.command("fashion-mnist")
def _train_fashion_mnist(
    out: Annotated[Path, typer.Option(help="Folder to make for the run; an existing one is refused without --resume.")],
    padding: Annotated[PaddingName, typer.Option(help="Borders: a torus, or zeros outside.")] = PaddingName.circular,
    seed: Annotated[int, typer.Option(help="Of weights, order and noise.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = 4000,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    precision: Annotated[
        PrecisionName, typer.Option(help="Of the convolutions; bfloat16 is faster where the processor has AMX.")
    ] = PrecisionName.float32,
    device: Annotated[str, typer.Option(help="Where to train, as torch names it: cpu, cuda, cuda:1.")] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run was stopped; begin where there is none.")
    ] = False,
) -> None:
    """Train the denoiser on the 60,000 images and write OUT/net.safetensors with its card."""
    from fastcrit.diffusion.fashion_mnist import train_denoiser

    with resumable(out):
        card = train_denoiser(
            out, padding.value, seed, steps, precision.value, batch, device=device, resume=resume, progress=True
        )
    print(f"{card}\n\nnetwork and card: {out}")


@train.command("fashion-mnist-classifier")
def _train_classifier(
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    seed: Annotated[int, typer.Option(help="Of weights, order and shifts.")] = 0,
    epochs: Annotated[int, typer.Option(help="Passes over the 60,000 images.")] = 4,
) -> None:
    """Train the classifier that says whether samples look like their labels."""
    from fastcrit.diffusion.fashion_mnist import train_and_save_classifier

    card = train_and_save_classifier(out, seed, epochs, progress=True)
    print(f"accuracy on the test set {card['test_accuracy']:.4f}; {out}")


@app.command("analyze")
def _analyze(
    file: Annotated[
        Path,
        typer.Argument(help="Fields (.npy .npz .pt .safetensors .zarr .nc .h5), a saved recorder, or a run's folder."),
    ],
    name: Annotated[str | None, typer.Option(help="Which array, where the file holds several: u, or run/u.")] = None,
    ndim: Annotated[int, typer.Option(help="Number of lattice axes.")] = 2,
    spacing: Annotated[
        float | None, typer.Option(help="Distance between sites; default: of the file's coordinates, or 1.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; what has no value is null.")] = False,
    dims: Annotated[
        str | None, typer.Option(help="Names of all axes: sample, perhaps level and channel, others: sample,level,y,x.")
    ] = None,
    levels: Annotated[str | None, typer.Option(help="Noise levels where the file has none: 80,40,20.")] = None,
    crop: Annotated[
        bool, typer.Option("--crop", help="The fields were cut from larger ones: no length takes them for tori.")
    ] = False,
    dask: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, such as tcp://host:8786.")] = None,
    workers: Annotated[int | None, typer.Option(help="Start so many Dask workers on this machine.")] = None,
    memory: Annotated[str, typer.Option(help="Of each of them.")] = "2GB",
    out: Annotated[Path | None, typer.Option(help="Dataset to write, .zarr.")] = None,
) -> None:
    """Print the structure factor and every correlation length of an ensemble, or what a study found.

    Of named axes "sample" is the ensemble, "level" the noise level, "channel" is averaged over, the others are the
    lattice. Without names axis 0 is the ensemble, the last axes are the lattice; axes between them are averaged over.
    Stored trajectories, which have an axis of noise levels, files of more than 128 MiB and what is given to Dask are
    read in blocks, once.
    """
    from fastcrit.cli.analyze import analyze_file

    analyze_file(
        file, name=name, ndim=ndim, spacing=spacing, as_json=as_json, dims=dims, levels=levels, crop=crop, dask=dask,
        workers=workers, memory=memory, out=out,
    )  # fmt: skip


@app.command("report")
def _report(
    run: Annotated[
        Path, typer.Argument(help="Folder of a finished study, or a folder of several, which are compared.")
    ],
    out: Annotated[Path | None, typer.Option(help="File to write; default: report.html in RUN.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write one HTML page of a run: verdict, interactive figures, states, data. It opens offline."""
    from fastcrit.report import write_report

    written = write_report(run, out, overwrite=force)
    print(f"{written.path}: {', '.join(written.runs)} ({written.path.stat().st_size / 1e6:.1f} MB)")
    if written.unfinished:
        print(f"left out, not finished: {', '.join(written.unfinished)}", file=sys.stderr)
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; mistakes in the input end in one line on standard error and exit status 2.

    With FASTCRIT_TRACEBACK=1 they end in a traceback.
    """
    try:
        app()
    except (ModuleNotFoundError, FileFormatError, ValueError, TypeError, OSError, ArithmeticError) as error:
        if os.environ.get("FASTCRIT_TRACEBACK", "").strip() == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
