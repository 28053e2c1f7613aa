"""How often `critical_point` is wrong: false alarms in Gaussian data, and intervals against a run of 20 times as long.

python -m benches.coverage alarms [RUNS]     six spectra x 1, 3, 4 channels x exact or float32 gains
python -m benches.coverage intervals [SEEDS]  the pair of patches and a mixture of two classes
"""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from tempfile import TemporaryDirectory

import numpy as np
import torch

import fastcrit as fc

SIDE, SAMPLES = 16, 128
LEVELS = fc.schedules.log_levels(20, high=30.0, low=0.1)
K2 = sum(np.meshgrid(*[4 * np.sin(np.pi * np.fft.fftfreq(SIDE)) ** 2] * 2, indexing="ij"))
SPECTRA = {
    "Ornstein-Zernike, xi = 2": 4 / (0.25 + K2),
    "Ornstein-Zernike, xi = 8": 4 / (1 / 64 + K2),
    "weak": 0.5 / (1 + K2),
    "power law": 1 / (0.05 + K2) ** 1.5,
    "ring": 5 * np.exp(-((np.sqrt(K2) - 1) ** 2) / 0.1) + 0.1,
    "white": np.ones_like(K2),
}
# Of channels: one field and 10 % of each channel's own, a matrix whose largest value is nearly the number of channels.
CORRELATION = 0.9


def gaussian_run(spectrum: str, channels: int, single: bool, seed: int) -> list[str]:
    """Exact trajectories of Gaussian data, y(s) = sqrt(P + s^2) z by mode and mixture; the signatures found."""
    rng = np.random.default_rng([seed, channels, list(SPECTRA).index(spectrum)])
    P = SPECTRA[spectrum]
    values, vectors = np.linalg.eigh(CORRELATION + (1 - CORRELATION) * np.eye(channels))
    power = values[:, None, None] * P
    std = float(np.sqrt(power.mean()))
    rec = fc.Recorder(LEVELS, (channels, SIDE, SIDE), data_std=std, gain_shells=range(4))
    grid, mode = rec.grid, np.fft.fft2(rng.standard_normal((SAMPLES, channels, SIDE, SIDE)))
    half = P[..., : SIDE // 2 + 1].T.reshape(-1)
    for i, s in enumerate(LEVELS):
        y = np.fft.ifft2(np.sqrt(power + s**2) * mode).real
        denoised = np.fft.ifft2(power / np.sqrt(power + s**2) * mode).real
        y, denoised = (np.einsum("ab,nbyx->nayx", vectors, field) for field in (y, denoised))
        rec.update(i, y, denoised=denoised)
        share = [values[:, None] * half[grid.shell_of_mode == k] for k in rec.gain_shells]
        weight = [grid.half_weights[grid.shell_of_mode == k] for k in rec.gain_shells]
        gain = np.array([np.average(p / (p + s**2), axis=1, weights=w) for p, w in zip(share, weight, strict=True)])
        matrix = np.broadcast_to((vectors * gain[:, None]) @ vectors.T, (SAMPLES, 4, channels, channels))
        if single:
            matrix = (matrix * (1 + 6e-8 * rng.standard_normal(matrix.shape))).astype(np.float32)
        rec.update_gain(i, matrix if channels > 1 else matrix[..., 0, 0])
    return list(fc.critical_point(rec.dataset()).found)


def pair_run(samples: int, seed: int) -> fc.critical.CriticalPoint:
    """Domains of patches of 3 x 3."""
    with TemporaryDirectory() as folder:
        study = fc.studies.PatchStudy(patterns=0, size=3, lattice=32, samples=samples, levels=24, high=20.0, seed=seed)
        return fc.critical_point(study.run(folder))


def mixture_run(samples: int, seed: int) -> fc.critical.CriticalPoint:
    """Two classes that differ by a uniform field."""
    torch.set_num_threads(1)
    means = np.stack([np.ones((1, 8, 8)), -np.ones((1, 8, 8))])
    D = fc.diffusion.from_mixture(fc.theory.GaussianMixture(means=means, std=0.5))
    levels = fc.schedules.log_levels(24, high=40.0, low=0.2)
    rec = fc.Recorder(levels, D.shape, data_std=0.5, gain_shells=range(4))

    def gains(i, s, y, denoised):
        rec.update_gain(i, fc.mode_response(D, y, s, rec.gain_shells, waves=1, method="jvp").samples)

    fc.diffusion.sample(D, n_samples=samples, levels=levels, solver="sde", seed=seed, recorder=rec, observers=[gains])
    return fc.critical_point(rec.dataset())


RUNS = {"pair": (pair_run, 64), "mixture": (mixture_run, 128)}


def alarms(runs: int) -> None:
    """A line a case, and the share of runs in which any signature was found."""
    cases = list(product(SPECTRA, (1, 3, 4), (False, True)))
    total: Counter[str] = Counter()
    wrong = 0
    with ProcessPoolExecutor() as pool:
        for case in cases:
            found = list(pool.map(gaussian_run, *zip(*[(*case, seed) for seed in range(runs)], strict=True)))
            bad = sum(bool(names) for names in found)
            wrong += bad
            total.update(name for names in found for name in names)
            print(f"{case[0]}, {case[1]} channels, {'float32' if case[2] else 'exact'}: {bad} of {runs}", flush=True)
    print(f"{wrong} of {runs * len(cases)} runs; by signature: {dict(total)}")


def intervals(seeds: int) -> None:
    """Of each signature: how many runs found it, and how many of their intervals hold the long run's level."""
    with ProcessPoolExecutor() as pool:
        for name, (run, samples) in RUNS.items():
            long = pool.submit(run, 20 * samples, 10_000)
            short = list(pool.map(run, [samples] * seeds, range(seeds)))
            for signature, truth in long.result().signatures.items():
                found = [cp[signature] for cp in short if cp[signature].found]
                if truth.found:
                    held = sum(one.low <= truth.level <= one.high for one in found)
                    print(
                        f"{name}, {signature} at {truth.level:.4f}: {held} of {len(found)} of {seeds} hold it",
                        flush=True,
                    )
                else:
                    print(f"{name}, {signature}: {truth.reason}; found in {len(found)} of {seeds}", flush=True)


if __name__ == "__main__":
    what, number = {"alarms": (alarms, 200), "intervals": (intervals, 40)}[sys.argv[1]]
    what(int(sys.argv[2]) if len(sys.argv) > 2 else number)
