"""The patch laboratory: a patch model sampled with the recorder attached, its critical level beside theory's."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from tqdm.auto import tqdm

from fastcrit import data, schedules, store
from fastcrit._edge.arrays import check_choice, check_integer, check_positive
from fastcrit._edge.extras import need
from fastcrit._estimates.attributes import config_of
from fastcrit._version import __version__
from fastcrit.critical import gaussian_rates
from fastcrit.errors import FileFormatError, NoTransitionError
from fastcrit.observe import Recorder
from fastcrit.patch.dictionary import Dictionary
from fastcrit.studies import result
from fastcrit.studies.strip import STRIP_SAMPLES, Strip
from fastcrit.theory import PatchTheory

Floats = NDArray[np.float64]

DICTIONARIES = ("binary", "fashion-mnist")
_SHELLS = range(6)
# What is said of a theory without a zero: by whether it is valid at every level.
_WITHOUT_ZERO = {True: "no instability at any level", False: "no level: it stops being valid before the drift turns"}
# Whose drift is measured, whatever solver made the trajectories, and so predicted.
_PROCESS = "sde"


@dataclass(frozen=True)
class PatchStudy:
    """Configuration of a patch study; everything in the result follows from it.

    Parameters
    ----------
    dictionary : "binary" or "fashion-mnist"
        The +-1 pair with random binary patterns, or patches of the 2000 Fashion-MNIST images that ship with fastcrit
        (pixels in [-1, 1] less the mean of all patterns, so that y = 0 is the homogeneous state of no information).
    patterns : int, optional
        Random binary patterns beside the pair (default 8), or image patches (default 512).
    size, lattice : int
        Sides of a patch and of the periodic lattice.
    samples : int
    levels : int
        Recorded noise levels, even in log s from ``high`` to ``low``.
    substeps : int
        Solver steps between two recorded levels.
    solver : "sde", "euler" or "heun"
    seed : int
        Of the trajectories.
    dictionary_seed : int
        Of the dictionary's random choice: another one is another model. (See `Dictionary.binary` on which random
        patterns make domains.)
    blocks : int
        Jackknife blocks.

    Examples
    --------
    >>> from fastcrit.studies import PatchStudy
    >>> study = PatchStudy(patterns=0, lattice=16, samples=16, levels=12)
    >>> ds = study.run()
    >>> round(ds.attrs["theory_critical_level"], 6)
    5.0
    """

    dictionary: str = "binary"
    patterns: int | None = None
    size: int = 5
    lattice: int = 80
    samples: int = 64
    levels: int = 48
    high: float = 50.0
    low: float = 0.05
    substeps: int = 4
    solver: str = "sde"
    seed: int = 0
    dictionary_seed: int = 0
    blocks: int = 32

    def __post_init__(self) -> None:
        check_choice(self.dictionary, DICTIONARIES, "dictionary")
        fewest_patterns = {} if self.patterns is None else {"patterns": 0 if self.dictionary == "binary" else 1}
        # Five levels: the fewest that an interior extremum can be told from.
        lowest_values = {
            "size": 1,
            "lattice": 2,
            "blocks": 2,
            "samples": 3,
            "levels": 5,
            "substeps": 1,
            "seed": 0,
            "dictionary_seed": 0,
            **fewest_patterns,
        }
        for name, lowest in lowest_values.items():
            value = check_integer(getattr(self, name), name, lowest)
            if value >= 2**64:
                raise ValueError(f"{name}: expected an integer below 2^64, got {value!r}")
            object.__setattr__(self, name, value)
        check_choice(self.solver, ("sde", "euler", "heun"), "solver")
        for name in ("high", "low"):
            if not 1e-12 <= check_positive(getattr(self, name), name) <= 1e12:
                raise ValueError(f"{name}: expected a noise level from 1e-12 to 1e12, got {getattr(self, name)!r}")
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def grid(self) -> Floats:
        """All noise levels of the solver; every ``substeps``-th is recorded."""
        return schedules.log_levels((self.levels - 1) * self.substeps + 1, high=self.high, low=self.low)

    @cached_property
    def model(self) -> Dictionary:
        """The dictionary that is sampled."""
        if self.dictionary == "binary":
            return Dictionary.binary(
                self.size, 8 if self.patterns is None else self.patterns, seed=self.dictionary_seed
            )
        count = 512 if self.patterns is None else self.patterns
        cut = Dictionary.from_images(data.fashion_mnist().pixels(), self.size, count, seed=self.dictionary_seed)
        return Dictionary(cut.patterns - cut.patterns.mean(), cut.prior)

    def run(
        self, out: str | os.PathLike[str] | None = None, *, resume: bool = False, progress: bool = False
    ) -> xr.Dataset:
        """Sample, measure, compare with theory; with ``out``, write RUN/dataset.zarr, figures and summary.txt.

        Samples are run in chunks. After each, the recorder is saved in RUN, from where ``resume=True`` goes on; the
        result has the same bits as that of a run that was never stopped.

        Raises
        ------
        FileExistsError
            ``out`` exists and ``resume`` is False, or holds a finished run.
        FileNotFoundError, ValueError
            ``resume`` without a run to resume, or one with another configuration (the message says what differs).
        FileFormatError
            The saved state is damaged.
        """
        # Everything that can be refused or be missing is looked at before the folder is made and the time is spent.
        if out is not None:
            need("zarr", "a study that writes its result")
            need("matplotlib", "a study that writes its figures")
        theory = PatchTheory(self.model, self.lattice)
        recorder = self._recorder()
        config = {"study": "patch", **asdict(self)}
        folder = None if out is None else store.begin_run(out, config, finished="dataset.zarr", resume=resume)
        saved = None if folder is None else folder / "recorder.safetensors"
        if saved is not None and saved.exists():
            loaded = Recorder.load(saved)
            if loaded.config() != recorder.config():
                raise FileFormatError(f"{saved}: the recorder of another run")
            recorder = loaded
        self._sample(recorder, saved, progress)
        ds = self._dataset(recorder, theory)
        if folder is not None:
            from fastcrit import plot

            plot.save_figures(ds, folder)
            (folder / "summary.txt").write_text(summary(ds) + "\n")
            store.save_dataset(ds, folder / "dataset.zarr")
            (folder / "recorder.safetensors").unlink()
        return ds

    def _recorder(self) -> Recorder:
        return Recorder(
            self.grid[:: self.substeps],
            shape=(self.lattice, self.lattice),
            blocks=self.blocks,
            data_std=self.model.variance**0.5 or 1.0,  # one pattern has no scale of its own
            gain_shells=[k for k in _SHELLS if k <= self.lattice // 2],
        )

    def _sample(self, recorder: Recorder, saved: Path | None, progress: bool) -> None:
        from fastcrit.patch import sample  # brings numba

        # A chunk is a whole number of rounds through the blocks' samples, and small enough that little is lost.
        chunk = 32
        done = int(recorder.state["count"][-1].sum())
        for first in tqdm(
            range(done, self.samples, chunk), "samples", disable=None if progress else True, unit=f"{chunk} samples"
        ):
            n = min(chunk, self.samples - first)
            sample(
                self.model, self.lattice, n, self.grid, self.solver, self.seed, recorder,
                first_sample=first, progress=progress,
            )  # fmt: skip
            if saved is not None:
                recorder.save(saved)

    def _dataset(self, recorder: Recorder, theory: PatchTheory) -> xr.Dataset:
        ds = recorder.dataset()
        level, shell = ds["level"].values, recorder.gain_shells
        k = np.stack([ds["shell_k"].values, np.zeros(len(shell))], axis=1)  # along an axis
        ds["gain_at_symmetric_point"] = (
            ("level", "shell"),
            np.array([theory.gain(k, float(s)).real for s in level]),
            {"long_name": "theory: Re g_k at y = 0, k along an axis"},
        )
        ds["xi_eq_theory"] = (
            "level",
            np.array([theory.xi_eq(float(s)) for s in level]),
            {"long_name": "theory: equilibrium correlation length at y = 0", "units": "length"},
        )
        ds = ds.merge(self._predicted(theory, level, k)).merge(self._strip())
        ds["drift_rate_gaussian"] = gaussian_rates(ds)
        ds.attrs |= {"title": self._title(), "dictionary_mean": self.model.mean}
        ds.attrs |= {"fastcrit": __version__, "config": json.dumps({"study": "patch", **asdict(self)})}
        ds.attrs |= _predictions(theory, self.solver)
        ds.attrs |= result.find_critical(ds, self.seed)
        return ds

    def _predicted(self, theory: PatchTheory, level: Floats, k: Floats) -> xr.Dataset:
        """The drift's rates at y = 0, and along trajectories as the self-consistent theory has them."""
        at_zero = np.array([theory.drift_rate(k, float(s)) for s in level])
        dims = ("level", "shell")
        made: dict[str, Any] = {
            "drift_rate_at_symmetric_point": (dims, at_zero, {"long_name": "theory: drift rate at y = 0"})
        }
        closed = theory.trajectories(level, solver=self.solver, process=_PROCESS)
        for name in ("gain", "drift_rate"):
            values = closed[name].sel(shell=list(range(len(k)))).values
            made[f"{name}_theory"] = (dims, values, {"long_name": f"self-consistent theory: {closed[name].long_name}"})
        made["S_theory"] = (("level", "k"), closed["S"].values, {"long_name": "self-consistent theory: S of the state"})
        made["xi_drift_theory"] = ("level", closed["xi_drift"].values, dict(closed["xi_drift"].attrs))
        made["theory_valid"] = ("level", closed["valid"].values, {"long_name": "where the theory calls itself valid"})
        return xr.Dataset(made)

    def _title(self) -> str:
        n, count = self.size, len(self.model)
        if self.dictionary == "fashion-mnist":
            return f"{count} patches of Fashion-MNIST, {n} x {n}"
        return f"the pair +1, -1 of {n} x {n}" + (f" and {count - 2} random binary patterns" if count > 2 else "")

    def _strip(self) -> xr.Dataset:
        """Sample the first few trajectories again and keep them at a few levels: they depend on the seed alone."""
        from fastcrit.patch import sample

        kept = Strip(self.grid, self.substeps)
        n = min(STRIP_SAMPLES, self.samples)
        sample(self.model, self.lattice, n, self.grid, self.solver, self.seed, observers=[kept])
        return kept.dataset()


def _predictions(theory: PatchTheory, solver: str) -> dict[str, Any]:
    # NaN where the theory does not hold, which an attribute of a file cannot be told from a number by: left out.
    unstable = theory.instability_level(solver, process=_PROCESS)
    found = {} if np.isnan(unstable) else {"theory_instability_level": unstable}
    try:
        level = theory.critical_level()
    except NoTransitionError as error:
        return found | {"theory_no_transition": str(error)}
    return found | {
        "theory_critical_level": level,
        "theory_critical_time": float(schedules.OrnsteinUhlenbeck().t(level)),
        "theory_critical_mode": list(theory.critical_mode()),
    }


def summary(ds: xr.Dataset) -> str:
    """The table of a finished study: predicted against measured critical levels."""
    config = config_of(ds)
    lines = [
        f"{ds.attrs['title']}; periodic lattice of {config['lattice']} x {config['lattice']}; "
        f"{int(ds['n_samples'].max())} samples, {config['solver']}, seed {config['seed']}",
        "",
        result.header(),
    ]
    if "theory_instability_level" in ds.attrs:
        lines.append(result.row("theory (trajectories)", ds.attrs["theory_instability_level"], "self-consistent"))
    else:
        lines.append(f"{'theory (trajectories)':{result.NAME}}{_WITHOUT_ZERO[bool(ds['theory_valid'].values.all())]}")
    if "theory_critical_level" in ds.attrs:
        k = ds.attrs["theory_critical_mode"]
        where = "k = 0" if not any(k) else f"k = ({k[0]:.3f}, {k[1]:.3f})"
        lines.append(result.row("theory (symmetric point)", ds.attrs["theory_critical_level"], where))
    else:
        lines.append(f"{'theory (symmetric point)':{result.NAME}}no transition: {ds.attrs['theory_no_transition']}")
    lines += [
        *result.table(ds),
        "",
        "instability: where the largest growth rate of the reverse drift becomes positive on trajectories (weakening:",
        "where it comes nearest), which theory's first line predicts. softening: where the score is least stiff.",
        "growth: where lengths grow fastest, by either clock. Theory's second line: where the gain at y = 0 is 1.",
    ]
    mean = ds.attrs["dictionary_mean"]
    if config["dictionary"] == "binary" and abs(mean) > 1e-9:
        lines.append(
            f"The patterns predict {mean:+.3g} on average: one sign is preferred, and lattices may end uniform."
        )
    if config["dictionary"] == "binary":
        n = config["size"]
        lines += [f"(The pair of uniform patterns alone: s = {n}, time log {1 + n * n} = {np.log1p(n * n):.4f}.)"]
    return "\n".join(lines)
