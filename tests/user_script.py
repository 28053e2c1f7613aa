"""What a user writes, under mypy --strict: the types of the installed package reach them. See make test-wheel."""

from __future__ import annotations

import numpy as np
import xarray as xr

import fastcrit as fc
from fastcrit.errors import NoTransitionError


def measure(seed: int) -> xr.Dataset:
    dictionary = fc.patch.Dictionary.binary(size=3, random=0)
    levels = fc.schedules.log_levels(16, high=20.0, low=0.1)
    recorder = fc.Recorder(levels, shape=(16, 16), gain_shells=range(3))
    fc.patch.sample(dictionary, lattice=16, n_samples=8, levels=levels, seed=seed, recorder=recorder)
    return recorder.dataset()


def critical_level(size: int) -> float | None:
    theory = fc.theory.PatchTheory(fc.patch.Dictionary.binary(size=size, random=0), lattice=16)
    try:
        return theory.critical_level()
    except NoTransitionError:
        return None


if __name__ == "__main__":
    fields = np.random.default_rng(0).normal(size=(100, 16, 16))
    length: fc.CorrelationLength = fc.correlation_length(fields, method="efold")
    spectrum: fc.RadialSpectrum = fc.power_spectrum(fields)
    print(length.flags, spectrum.k, critical_level(3), fc.critical_point(measure(0)))
