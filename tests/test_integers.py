"""Arguments that are integers: Python's and numpy's are taken, all else is refused by name, in one way everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit._edge.arrays import SEEDS, check_integer
from fastcrit.diffusion import NetConfig

LEVELS = [5.0, 1.0]
PAIR = fc.patch.Dictionary.binary(3)
D = fc.diffusion.from_denoiser(lambda y, sigma: 0.5 * y, shape=(1, 8, 8))
GAUSSIAN = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=8)
FIELDS = np.random.default_rng(0).standard_normal((4, 8, 8))
UP_TO = r"expected an integer from {} to 2\^64 - 1"
AT_LEAST = "expected an integer of at least {}"
# Name, what calls with a value for it, the text, a value that is taken, values that are not.
ARGUMENTS = [
    ("n_samples", lambda n: fc.diffusion.sample(D, n_samples=n, levels=LEVELS), UP_TO.format(1), 2, (0, 2**64)),
    ("seed", lambda n: fc.diffusion.sample(D, n_samples=1, levels=LEVELS, seed=n), UP_TO.format(0), 2, (-1, 2**64)),
    ("seed", lambda n: fc.patch.sample(PAIR, 8, 1, LEVELS, seed=n), UP_TO.format(0), 2, (-1, 2**64)),
    ("size", lambda n: fc.patch.Dictionary.binary(n), "expected an odd patch side >= 1", 3, (0, 2)),
    ("lattice", lambda n: fc.patch.sample(PAIR, n, 1, LEVELS), r"expected one side or \(height, width\)", 8, (0,)),
    ("n", lambda n: GAUSSIAN.sample_data(n), AT_LEAST.format(1), 2, (0,)),
    ("waves", lambda n: fc.mode_response(D, torch.zeros(1, 1, 8, 8), 1.0, probe="waves", waves=n),
     "expected a positive integer or None for all", 1, (0,)),
    ("blocks", lambda n: fc.structure_factor(FIELDS, blocks=n), AT_LEAST.format(2), 4, (1,)),
    ("ndim", lambda n: fc.structure_factor(FIELDS, ndim=n), "expected 1, 2 or 3", 2, (0, 4)),
    ("classes", lambda n: fc.diffusion.from_denoiser(lambda y, sigma, labels: y, classes=n), AT_LEAST.format(0), 3,
     (-1,)),
    ("width", lambda n: NetConfig(width=n), AT_LEAST.format(2), 4, (1,)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "call", "text", "taken", "refused"), ARGUMENTS)
def test_of_public_functions(name, call, text, taken, refused):
    call(taken)
    call(np.int32(taken))
    for value in (*refused, taken + 0.5, float(taken), True, str(taken)):
        with pytest.raises(ValueError, match=f"^{name}: {text}.*, got {value!r}$"):
            call(value)


@pytest.mark.parametrize("first", [2**64 - 1, np.uint64(2**64 - 1)])
def test_numbers_of_samples_end_at_the_largest(first):
    before = fc.patch.sample(PAIR, 8, 2, LEVELS, first_sample=2**64 - 2)
    np.testing.assert_array_equal(fc.patch.sample(PAIR, 8, 1, LEVELS, first_sample=first), before[1:])
    fc.diffusion.sample(D, n_samples=1, levels=LEVELS, first_sample=int(first))
    for run in (lambda: fc.patch.sample(PAIR, 8, 2, LEVELS, first_sample=first),
                lambda: fc.diffusion.sample(D, n_samples=2, levels=LEVELS, first_sample=first)):  # fmt: skip
        with pytest.raises(ValueError, match=r"^first_sample: expected sample numbers below 2\^64, got "):
            run()


def test_come_back_as_plain_ones():
    assert type(check_integer(np.uint8(3), "n", 1)) is int
    assert check_integer(np.uint64(2**64 - 1), "n", 0, SEEDS) == 2**64 - 1
    assert check_integer(2, "n", 1, 4) == 2
    with pytest.raises(ValueError, match=r"^n: expected an integer from 1 to 3, got 4$"):
        check_integer(4, "n", 1, 4)
