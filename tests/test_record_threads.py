"""What a recorder on the host adds up: the same batches give the same bits, other batches the same to rounding."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import fastcrit as fc

# Batches of odd sizes: one sample, a part of a register, many spans of the core's.
CUTS = (0, 1, 8, 341, 1338)


def recorded(y, cuts, **options):
    """Sums of samples that come in the batches between ``cuts``."""
    rec = fc.Recorder([1.0], shape=y.shape[1:], blocks=5, low_modes=2, **options)
    for begin, end in pairwise(cuts):
        rec.update(0, y[begin:end], denoised=y[begin:end] if options.get("denoised") else None)
    return {name: values.copy() for name, values in rec.state.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 12, 10), (28, 28), (7, 5)])
def test_no_number_of_threads_changes_a_bit(shape, dtype, rng, threads):
    y = rng.standard_normal((CUTS[-1], *shape)).astype(dtype)
    made = []
    for count in (1, 2, 3, 7, 2):
        threads(count)
        made.append(recorded(y, CUTS, binarized=True, denoised=True))
    for other in made[1:]:
        assert set(other) == set(made[0])
        for name, values in made[0].items():
            np.testing.assert_array_equal(other[name], values, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_other_batches_of_the_same_samples_differ_by_rounding_alone(dtype, rng, threads):
    y = rng.standard_normal((CUTS[-1], 3, 12, 10)).astype(dtype)
    threads(3)
    whole = recorded(y, (0, len(y)), binarized=True)
    for cuts in (CUTS, (0, 700, 1338), range(0, 1338 + 1, 223)):
        parts = recorded(y, cuts, binarized=True)
        for name, values in whole.items():
            # A field's results have the same bits in every batch, and n of them, of the size of the largest sum at the
            # most, are added in float64: errors of n eps at the most.
            atol = len(y) * np.finfo(np.float64).eps * np.abs(values).max()
            np.testing.assert_allclose(parts[name], values, rtol=0, atol=atol, err_msg=name)
