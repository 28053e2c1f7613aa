"""The patch laboratory: a patch model sampled with the recorder attached, its critical level beside theory's."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit import schedules
from fastcrit._version import __version__
from fastcrit.critical import gaussian_rates
from fastcrit.errors import NoTransitionError
from fastcrit.observe import Recorder
from fastcrit.studies import result
from fastcrit.studies.finish import finish, need_what_finishes
from fastcrit.studies.patch.plan import PatchPlan
from fastcrit.studies.patch.words import summary
from fastcrit.studies.recording import finished_or_begun, record, resumed
from fastcrit.studies.strip import STRIP_SAMPLES, Strip
from fastcrit.theory import PatchTheory

Floats = NDArray[np.float64]

_SHELLS = range(6)
# A whole number of rounds through the blocks' samples, and small enough that little is lost.
_CHUNK = 32
# Whose drift is measured, whatever solver made the trajectories, and so predicted.
_PROCESS = "sde"


@dataclass(frozen=True)
class PatchStudy(PatchPlan):
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
    high, low : float
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

    def run(
        self, out: str | os.PathLike[str] | None = None, *, resume: bool = False, progress: bool = False
    ) -> xr.Dataset:
        """Sample, measure, compare with theory; with ``out``, write RUN/dataset.zarr, figures and summary.txt.

        Samples are run in chunks. After each, the recorder is saved in RUN, from where ``resume=True`` goes on; the
        result has the same bits as that of a run that was never stopped. Where no run is, ``resume=True`` begins one;
        of a finished one it returns the dataset.

        Raises
        ------
        FileExistsError
            ``out`` exists and ``resume`` is False, or holds something that is no run.
        ValueError
            ``resume`` with another configuration than the run's (the message says what differs).
        FileFormatError
            The saved state is damaged.
        """
        # Everything that can be refused or be missing is looked at before the folder is made and the time is spent.
        if out is not None:
            need_what_finishes()
        theory = PatchTheory(self.model, self.lattice)
        recorder = self._recorder()
        saved = None if out is None else Path(out) / "recorder.safetensors"
        if saved is not None:
            done = finished_or_begun(saved.parent, self._config, [saved], resume=resume)
            if done is not None:
                return done
        recorder = resumed(recorder, saved)
        self._sample(recorder, saved, progress)
        ds = self._dataset(recorder, theory)
        if saved is not None:
            finish(ds, saved.parent, summary(ds), [saved])
        return ds

    @property
    def _config(self) -> dict[str, Any]:
        """What the result follows from."""
        return {"study": "patch", **asdict(self)}

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

        def make(first: int, n: int) -> None:
            sample(
                self.model, self.lattice, n, self.grid, self.solver, self.seed, recorder,
                first_sample=first, progress=progress,
            )  # fmt: skip

        record(recorder, saved, self.samples, make, chunk=_CHUNK, about="samples", of="samples", progress=progress)

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
        ds.attrs |= {"fastcrit": __version__, "config": json.dumps(self._config)}
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
