"""The figures of physics.md that no study draws: ``python docs/figures.py`` writes them into docs/figures."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

import fastcrit as fc

mpl.use("Agg")
from matplotlib import pyplot as plt

FOLDER = Path(__file__).parent / "figures"
# Okabe and Ito's palette.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00")


def lengths() -> None:
    """Gaussian fields of four correlation lengths above their structure factors and the fits."""
    figure = plt.figure(figsize=(8.4, 5.2), layout="constrained")
    rows = figure.subfigures(2, 1, height_ratios=[1, 1.5])
    panels = rows[0].subplots(1, 4)
    axes = rows[1].subplots()
    for panel, xi, colour in zip(panels, (1.0, 2.0, 4.0, 8.0), COLOURS, strict=True):
        model = fc.theory.GaussianTheory.ornstein_zernike(xi=xi, lattice=64)
        fields = model.sample_data(400, seed=1)
        S = fc.structure_factor(fields)
        fit = fc.correlation_length(S)
        panel.imshow(fields[0], cmap="gray")
        panel.set(xticks=[], yticks=[])
        panel.set_title(f"ξ = {xi:g}: {fit.value:.3f} ± {fit.stderr:.3f}", fontsize="small")
        axes.plot(S.k, over_shells(model.spectrum)[: len(S.k)], color=colour, label=f"ξ = {xi:g}")
        axes.errorbar(S.k, S.S, S.stderr, fmt=".", markersize=4, color=colour)
    axes.set(xlabel="wavenumber k (rad per site)", ylabel="structure factor S(k)", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(FOLDER / "lengths.png", dpi=110)


def over_shells(spectrum: np.ndarray) -> np.ndarray:
    """Mean of a spectrum over each shell of a square lattice."""
    n = np.fft.fftfreq(len(spectrum)) * len(spectrum)
    shell = np.floor(np.hypot(n[:, None], n) + 0.5).astype(int).ravel()
    return np.asarray(np.bincount(shell, spectrum.ravel()) / np.bincount(shell))


def bifurcation() -> None:
    """Gains of plane waves about y = 0 for the pair of uniform patterns, and where the homogeneous state splits."""
    theory = fc.theory.PatchTheory(fc.patch.Dictionary.binary(size=5, random=0), lattice=80)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
    k = np.linspace(0, np.pi / 2, 200)
    waves = np.stack([k, np.zeros_like(k)], axis=-1)
    for s, colour in zip((10.0, 6.0, 5.0, 4.0), COLOURS, strict=True):
        left.plot(k, theory.gain(waves, s).real, color=colour, label=f"s = {s:g}")
    left.axhline(1.0, color="0.5", linewidth=0.8)
    left.set(xlabel="wavenumber k (rad per site)", ylabel="mode gain g", title="1 is critical: first at k = 0, s = 5")
    left.legend(frameon=False)
    one = fc.theory.pitchfork(25)  # the same bifurcation in one mode: 25 = 5 x 5 sites
    s = np.linspace(1.0, 8.0, 281)
    m = np.array([one.magnetisation(float(x)) for x in s])
    below = s <= one.critical_level()
    right.plot(s, np.where(s >= one.critical_level(), 0.0, np.nan), color=COLOURS[0], label="stable")
    right.plot(s[below], m[below], color=COLOURS[0])
    right.plot(s[below], -m[below], color=COLOURS[0])
    right.plot(s[below], np.zeros(below.sum()), color=COLOURS[3], linestyle="--", label="unstable")
    right.invert_xaxis()
    right.set(xlabel="noise level s (the reverse process goes right)", ylabel="denoised image",
              title="one state becomes two")  # fmt: skip
    right.legend(frameon=False)
    figure.savefig(FOLDER / "bifurcation.png", dpi=110)


if __name__ == "__main__":
    lengths()
    bifurcation()
