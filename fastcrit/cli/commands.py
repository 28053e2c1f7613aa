"""The command line: ``fastcrit study``, ``train``, ``analyze``. Errors a user can mend are one line."""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

import fastcrit
from fastcrit.cli.config_file import with_config_file
from fastcrit.cli.exit_status import resumable
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
    no_args_is_help=True, context_settings=HELP, help="Whole runs that leave a folder with the dataset and the figures."
)
app.add_typer(study, name="study")
train = typer.Typer(no_args_is_help=True, context_settings=HELP, help="Train the networks that ship with fastcrit.")
app.add_typer(train, name="train")


class DictionaryName(str, Enum):  # noqa: UP042 (StrEnum would change str() of a member)
    """Dictionaries of the patch study."""

    binary = "binary"
    fashion_mnist = "fashion-mnist"


class SolverName(str, Enum):  # noqa: UP042 (StrEnum would change str() of a member)
    """Solvers of the patch sampler."""

    sde = "sde"
    euler = "euler"
    heun = "heun"


class PaddingName(str, Enum):  # noqa: UP042 (StrEnum would change str() of a member)
    """Borders of the network."""

    circular = "circular"
    zeros = "zeros"


class PrecisionName(str, Enum):  # noqa: UP042 (StrEnum would change str() of a member)
    """Precision of the convolutions."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class DenoiserSolverName(str, Enum):  # noqa: UP042 (StrEnum would change str() of a member)
    """Solvers for denoisers."""

    dpmpp_2m = "dpmpp-2m"
    heun = "heun"
    euler = "euler"
    sde = "sde"


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
@with_config_file
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
    with resumable(out):
        ds = config.run(out, resume=resume, progress=True)
    print(f"\n{summary(ds)}\n\ndataset, figures and this table: {out}")


@study.command("fashion-mnist")
@with_config_file
def _study_fashion_mnist(
    out: Annotated[Path, typer.Option(help="Folder to make for the run; an existing one is refused.")],
    net: Annotated[
        list[str] | None,
        typer.Option(help="A shipped network or a net.safetensors; several make a run in a folder each, compared."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Trajectories, reverse and forward each.")] = 512,
    levels: Annotated[int, typer.Option(help="Noise levels: steps of the solver, all recorded.")] = 49,
    high: Annotated[float, typer.Option(help="Highest noise level.")] = 80.0,
    low: Annotated[float, typer.Option(help="Lowest noise level.")] = 0.02,
    solver: Annotated[DenoiserSolverName, typer.Option(help="Of the reverse process.")] = DenoiserSolverName.dpmpp_2m,
    gain_samples: Annotated[int, typer.Option(help="States whose gains are measured, each way.")] = 64,
    gain_every: Annotated[int, typer.Option(help="Gains at every so many levels.")] = 2,
    probes: Annotated[int, typer.Option(help="Tangents of random phases for each of these states: all shells.")] = 1,
    waves: Annotated[int | None, typer.Option(help="Instead, so many wavevectors of each shell.")] = None,
    seed: Annotated[int, typer.Option(help="Of the trajectories.")] = 0,
    device: Annotated[str, typer.Option(help="Where to sample and to measure, as torch names it.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
) -> None:
    """Follow trained networks from noise to image: spectra, lengths, gains beside the Gaussian bound, critical levels.

    Without --net: every network that ships with fastcrit, compared.
    """
    from fastcrit.diffusion import SHIPPED
    from fastcrit.studies.fashion_mnist import FashionMnistStudy, run_all

    studies = {
        name: FashionMnistStudy(
            net=name, samples=samples, levels=levels, high=high, low=low, solver=solver.value,
            gain_samples=gain_samples, gain_every=gain_every, probes=probes, waves=waves, seed=seed,
        )
        for name in net or SHIPPED
    }  # fmt: skip
    with resumable(out):
        print(run_all(studies, out, resume=resume, device=device, progress=True))
    print(f"\ndatasets, figures and these tables: {out}")


@study.command("guidance")
@with_config_file
def _study_guidance(
    run: Annotated[
        Path,
        # torchrun takes --run for one of its own.
        typer.Option("--run", "--of", help="Finished study of a network (fastcrit study fashion-mnist or imagenet)."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make for the run; an existing one is refused.")],
    edm2: Annotated[Path | None, typer.Option(help="Of a study of --edm2: the same pickle.")] = None,
    guide: Annotated[Path | None, typer.Option(help="Pickle of the network that guidance leads away from.")] = None,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Pickles run code: say that you may.")] = False,
    diffusers: Annotated[Path | None, typer.Option(help="Of a study of --diffusers: the same folder.")] = None,
    judge: Annotated[
        Path | None, typer.Option(help="Of a large model: image classifier that transformers' save_pretrained wrote.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples an arm, on the same seeds and labels.")] = 1000,
    steps: Annotated[int, typer.Option(help="Steps of the solver, even in log s.")] = 40,
    high: Annotated[float, typer.Option(help="Highest noise level.")] = 80.0,
    low: Annotated[float, typer.Option(help="Lowest noise level before 0.")] = 0.02,
    guided_steps: Annotated[int, typer.Option(help="Steps that a pulse guides.")] = 4,
    weight: Annotated[float, typer.Option(help="Guidance weight of pulses, constant guidance and interval.")] = 4.0,
    interval: Annotated[tuple[float, float], typer.Option(help="Levels of the guidance interval.")] = (0.28, 2.9),
    centres: Annotated[int, typer.Option(help="Pulses of the sweep.")] = 13,
    random_centres: Annotated[int, typer.Option(help="Pulses at random levels.")] = 16,
    solver: Annotated[SolverName, typer.Option(help="Of the reverse process.")] = SolverName.euler,
    decision_samples: Annotated[int, typer.Option(help="Images whose class is followed without guidance.")] = 500,
    classes: Annotated[int | None, typer.Option(help="Sample j has label j mod this; default: as the study.")] = None,
    chunk: Annotated[int, typer.Option(help="Samples that are made and saved together.")] = 100,
    seed: Annotated[int, typer.Option(help="Of samples and random levels.")] = 0,
    threads: Annotated[int, typer.Option(help="Of torch on a CPU, for each rank; 0: as torch has it.")] = 0,
    device: Annotated[str, typer.Option(help="As torch names it; cuda: of each rank its own.")] = "cpu",
    chunks: Annotated[
        str | None, typer.Option(help="Folder or URL (s3://.., gs://..) that all ranks see; default: RUN/chunks.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
) -> None:
    """Guide at the critical levels of a study, at random levels, always and never, and compare what it gives and costs.

    Every arm has the same seeds, labels and number of network evaluations. Runs on any number of processes, as study
    imagenet does.
    """
    from fastcrit.studies.guidance import GuidanceStudy
    from fastcrit.studies.guidance.verdict import summary

    edm2_path, guide_path, folder, judge_path = (
        None if path is None else str(path) for path in (edm2, guide, diffusers, judge)
    )
    config = GuidanceStudy(
        str(run), edm2=edm2_path, diffusers=folder, guide=guide_path, trust_pickle=trust_pickle, judge=judge_path,
        samples=samples, steps=steps, high=high, low=low, guided_steps=guided_steps, weight=weight,
        interval=interval, centres=centres, random_centres=random_centres, solver=solver.value,
        decision_samples=decision_samples, classes=classes, threads=threads, chunk=chunk, seed=seed,
    )  # fmt: skip
    with resumable(out):
        ds = config.run(out, chunks=chunks, resume=resume, device=device, progress=True)
    if ds is not None:
        print(f"\n{summary(ds)}\n\ndataset, figures and this table: {out}")


@study.command("imagenet")
@with_config_file
def _study_imagenet(
    out: Annotated[Path, typer.Option(help="Folder to make for the run; an existing one is refused.")],
    edm2: Annotated[Path | None, typer.Option(help="Pickle of EDM or EDM2 (its network under 'ema').")] = None,
    guide: Annotated[Path | None, typer.Option(help="Pickle of the network that guidance leads away from.")] = None,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Pickles run code: say that you may.")] = False,
    diffusers: Annotated[
        Path | None, typer.Option(help="Folder with unet/ and scheduler/, as save_pretrained writes it.")
    ] = None,
    null_label: Annotated[int | None, typer.Option(help="With --diffusers: the class for no label.")] = None,
    samples: Annotated[int, typer.Option(help="Trajectories.")] = 50_000,
    chunk: Annotated[int, typer.Option(help="Samples that are recorded and saved together.")] = 256,
    batch: Annotated[int, typer.Option(help="Samples in the network at once: a divisor of --chunk; 0: up to 64.")] = 0,
    levels: Annotated[int, typer.Option(help="Noise levels: steps of the solver, all recorded.")] = 32,
    high: Annotated[float, typer.Option(help="Highest noise level, or the network's.")] = 80.0,
    low: Annotated[float, typer.Option(help="Lowest noise level.")] = 0.02,
    solver: Annotated[DenoiserSolverName, typer.Option(help="Of the reverse process.")] = DenoiserSolverName.heun,
    classes: Annotated[int | None, typer.Option(help="Sample j has label j mod this; default: all. 0: none.")] = None,
    gain_share: Annotated[float, typer.Option(help="Share of the samples whose gains are measured.")] = 0.02,
    gain_every: Annotated[int, typer.Option(help="Gains at every so many levels.")] = 1,
    probes: Annotated[int, typer.Option(help="Tangents of random phases for each of these states: all shells.")] = 1,
    waves: Annotated[int | None, typer.Option(help="Instead, so many wavevectors of each shell.")] = None,
    guidance_weight: Annotated[float | None, typer.Option(help="Guide with this weight.")] = None,
    guidance_center: Annotated[float | None, typer.Option(help="At this noise level; default: everywhere.")] = None,
    guidance_width: Annotated[float, typer.Option(help="Width there, in log s.")] = 1.0,
    data_std: Annotated[
        float | None, typer.Option(help="Of the data; default: the network's, or of the first chunk.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the trajectories.")] = 0,
    threads: Annotated[int, typer.Option(help="Of torch on a CPU, for each rank; others round otherwise.")] = 1,
    device: Annotated[str, typer.Option(help="As torch names it; cuda: of each rank its own.")] = "cpu",
    chunks: Annotated[
        str | None, typer.Option(help="Folder or URL (s3://.., gs://..) that all ranks see; default: RUN/chunks.")
    ] = None,
    save_states: Annotated[bool, typer.Option("--save-states", help="Keep all states in RUN/states.zarr.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
) -> None:
    """Follow a large model from noise to image, on any number of processes: torchrun ... -m fastcrit study imagenet ...

    Ends with status 1 when chunks failed, while all others are saved.
    """
    from fastcrit.studies.imagenet import ImageNetStudy, summary

    edm2_path, guide_path, folder = (None if path is None else str(path) for path in (edm2, guide, diffusers))
    config = ImageNetStudy(
        edm2=edm2_path, guide=guide_path, trust_pickle=trust_pickle, diffusers=folder,
        null_label=null_label, samples=samples, chunk=chunk, batch=batch, levels=levels, high=high, low=low,
        solver=solver.value, classes=classes, gain_share=gain_share, gain_every=gain_every, probes=probes, waves=waves,
        guidance_weight=guidance_weight, guidance_center=guidance_center, guidance_width=guidance_width,
        data_std=data_std, seed=seed, save_states=save_states, threads=threads,
    )  # fmt: skip
    with resumable(out):
        ds = config.run(out, chunks=chunks, resume=resume, device=device, progress=True)
    if ds is not None:
        print(f"\n{summary(ds)}\n\ndataset, figures and this table: {out}")


@app.command("status")
def _status(
    run: Annotated[Path, typer.Argument(help="Folder of a run of study imagenet or guidance, running or not.")],
) -> None:
    """Print how far a run is: chunks, time a sample and what it goes to, what each rank does."""
    from fastcrit.studies.shared.status import status

    print(status(run))


@train.command("fashion-mnist")
def _train_fashion_mnist(
    out: Annotated[Path, typer.Option(help="Folder to make for the run; an existing one is refused.")],
    padding: Annotated[PaddingName, typer.Option(help="Borders: a torus, or zeros outside.")] = PaddingName.circular,
    seed: Annotated[int, typer.Option(help="Of weights, order and noise.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = 4000,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    precision: Annotated[
        PrecisionName, typer.Option(help="Of the convolutions; bfloat16 is faster where the processor has AMX.")
    ] = PrecisionName.float32,
    device: Annotated[str, typer.Option(help="Where to train, as torch names it: cpu, cuda, cuda:1.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
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
