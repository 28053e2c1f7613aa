"""Random phases against waves, as a Markdown table: python -m benches.probes [--draws 16] [--states 32].

What the gains of shells 1 to 5 cost on a shipped network, for the same standard error: the time of one wave in each of
six shells (11 tangents) over that of the constant wave and one or four random phases (2 or 5), times the ratio of their
variances over draws, the states being the same. They run in turn in one process, on one thread.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import fastcrit as fc
from benches.pairing import duration
from benches.report import digits, table

NETWORK = "zeros-0"
LEVELS = (8.0, 3.0, 1.0)
SHELLS = range(6)
PROBES = (1, 4)
WAYS: tuple[dict[str, Any], ...] = ({"waves": 1}, *({"probe": "random_phase", "probes": n} for n in PROBES))


def forward_states(n: int, s: float) -> torch.Tensor:
    """Images with noise."""
    pixels = fc.data.fashion_mnist().pixels()
    images = pixels[np.random.default_rng(0).permutation(len(pixels))[:n], None]
    noise = np.random.default_rng(1).standard_normal(images.shape)
    return torch.from_numpy(images + s * noise.astype(np.float32))


def compare(
    D: fc.diffusion.Denoiser, y: torch.Tensor, s: float, draws: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds (draws, ways) a state, and variances (ways, shells) of a state's gain over draws."""
    seconds = np.empty((draws, len(WAYS)))
    gains = np.empty((len(WAYS), draws, len(y), len(SHELLS)))
    for draw in range(-1, draws):  # one of each to warm up
        for way, options in enumerate(WAYS):
            begin = time.perf_counter()
            response = fc.mode_response(D, y, s, SHELLS, method="jvp", seed=draw + 1, **options)
            if draw >= 0:
                seconds[draw, way] = (time.perf_counter() - begin) / len(y)
                gains[way, draw] = response.samples
    return seconds, gains.var(axis=1, ddof=1).mean(axis=1)


def lines(s: float, seconds: NDArray[np.float64], variances: NDArray[np.float64]) -> list[list[str]]:
    """Rows of the table; of each shell: ratio of standard errors, ratio of costs."""
    rows = []
    for way, probes in enumerate(PROBES, 1):
        low, ratio, high = np.percentile(seconds[:, 0] / seconds[:, way], [25, 50, 75])
        noise = variances[0, 1:] / variances[way, 1:]
        costs = [f"{digits(n**-0.5)}, **{digits(ratio * n)}**" for n in noise]
        waves, phases = np.median(seconds[:, [0, way]], axis=0)
        times = f"{digits(ratio)} [{digits(low)}, {digits(high)}]"
        rows.append([f"{s:g}", str(probes), duration(waves), duration(phases), times, *costs])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--states", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    D = fc.diffusion.pretrained(NETWORK)
    rows = []
    for s in LEVELS:
        rows += lines(s, *compare(D, forward_states(args.states, s), s, args.draws))
    print(f"{NETWORK}, {args.states} forward states, {args.draws} draws; torch {torch.__version__}, one thread.")
    print("Under each shell: standard error of random phases over that of waves, **cost of waves over theirs**.\n")
    header = ["s", "probes", "waves, a state", "random phases", "ratio", *(f"shell {k}" for k in SHELLS[1:])]
    print(table(header, rows))


if __name__ == "__main__":
    main()
