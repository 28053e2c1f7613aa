"""Masks are not lost: one array, lists of them, at every public edge; a mask that hides nothing is taken."""

from __future__ import annotations

import warnings
from collections import deque

import numpy as np
import pytest
import torch
import xarray as xr

import fastcrit as fc
from fastcrit._edge.arrays import to_array, to_real
from fastcrit.diffusion import Interval, Judge

FIELDS = np.ma.masked_greater(np.random.default_rng(0).standard_normal((6, 8, 8)), 1.0)
HIDDEN = np.ma.masked_array([3.0, 2.0, 1.0, 0.5], [0, 1, 0, 0])
CLASSES = np.ma.masked_array([0, 1, 0, 1], [0, 0, 1, 0])
SHOWN = np.ones((4, 2, 3, 3))
MODEL = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=8)
PAIR = fc.patch.Dictionary.binary(size=3, random=0)
MIXTURE = fc.theory.GaussianMixture(np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 8, 8)), std=0.5)
GAINS = np.ma.masked_greater(0.5 * np.ones((4, 2)), 0.4)
MATRICES = np.ma.masked_greater(np.ones((4, 2, 2)), 0.5)
VP = fc.schedules.VP([0.9, 0.5, 0.1])


def recorder(**options):
    return fc.Recorder([2.0, 1.0], (8, 8), **options)


# What takes an array, and an array for it whose mask hides something.
EDGES = {
    "power_spectrum": (fc.power_spectrum, FIELDS),
    "structure_factor": (fc.structure_factor, FIELDS),
    "autocorrelation": (fc.autocorrelation, FIELDS),
    "correlation_length": (fc.correlation_length, FIELDS),
    "correlation_length of crops": (lambda x: fc.correlation_length(x, method="efold", periodic=False), FIELDS),
    "Recorder": (lambda x: fc.Recorder(x, (8, 8)), HIDDEN),
    "Recorder.update": (lambda x: recorder().update(0, x), FIELDS),
    "Recorder.update denoised": (lambda x: recorder().update(0, FIELDS.data, denoised=x), FIELDS),
    "Recorder.update_gain": (lambda x: recorder(gain_shells=(0, 1)).update_gain(0, x), GAINS),
    "Recorder.positions_in": (lambda x: fc.Recorder([3.0], (8, 8)).positions_in(x), HIDDEN),
    "analyze": (fc.analyze, FIELDS),
    "analyze levels": (
        lambda x: fc.analyze(np.ones((4, 2, 8, 8)), dims=("level", "sample", "y", "x"), levels=x),
        HIDDEN,
    ),
    "drift_rate": (lambda x: fc.modes.drift_rate(x, 1.0), GAINS),
    "drift_rate s": (lambda x: fc.modes.drift_rate(0.5, x), HIDDEN),
    "dispersion_length": (lambda x: fc.dispersion_length([0.0, 1.0], x), GAINS),
    "dispersion_length k2": (lambda x: fc.dispersion_length(x, np.ones((3, 4))), HIDDEN),
    "dispersion_length stderr": (lambda x: fc.dispersion_length([0.0, 1.0], GAINS.data, x), GAINS),
    "gaussian_bound": (lambda x: fc.modes.gaussian_bound(x, 1.0), GAINS),
    "gaussian_bound s": (lambda x: fc.modes.gaussian_bound(1.0, x), HIDDEN),
    "gaussian_bound channels": (lambda x: fc.modes.gaussian_bound(x, 1.0, channels=True), MATRICES),
    "response_deficit": (lambda x: fc.modes.response_deficit(x, 1.0), GAINS),
    "response_deficit bound": (lambda x: fc.modes.response_deficit(1.0, x), GAINS),
    "response_deficit channels": (lambda x: fc.modes.response_deficit(x, MATRICES.data, channels=True), MATRICES),
    "GaussianTheory": (fc.theory.GaussianTheory, np.ma.masked_greater(np.ones((8, 8)), 0.5)),
    "GaussianTheory.denoise": (lambda x: MODEL.denoise(x, 1.0), FIELDS),
    "GaussianTheory.gain": (lambda x: MODEL.gain(x, 1.0), np.ma.masked_array([0.0, 0.0], [1, 0])),
    "GaussianTheory.sample": (lambda x: MODEL.sample(x, 2), HIDDEN),
    "GaussianMixture": (lambda x: fc.theory.GaussianMixture(x, 1.0), np.ma.masked_greater(SHOWN, 0.5)),
    "GaussianMixture weights": (lambda x: fc.theory.GaussianMixture(SHOWN, 1.0, x), HIDDEN),
    "GaussianMixture.posterior": (lambda x: MIXTURE.posterior(x, 1.0), FIELDS[:, None]),
    "PatchTheory.gain": (lambda x: fc.theory.PatchTheory(PAIR, 8).gain(x, 1.0), np.ma.masked_array([0.0, 0.0], [1, 0])),
    "PatchTheory.trajectories": (lambda x: fc.theory.PatchTheory(PAIR, 8).trajectories(x), HIDDEN),
    "pitchfork": (lambda x: fc.theory.pitchfork(64).denoise(x, 1.0), FIELDS),
    "pitchfork gain": (fc.theory.pitchfork(64).gain, HIDDEN),
    "speciation_level": (fc.theory.speciation_level, FIELDS),
    "Dictionary": (fc.patch.Dictionary, FIELDS[:, :3, :3]),
    "Dictionary prior": (lambda x: fc.patch.Dictionary(np.ones((4, 3, 3)), prior=x), HIDDEN),
    "Dictionary.from_images": (lambda x: fc.patch.Dictionary.from_images(x, size=3, count=4), FIELDS),
    "patch.sample levels": (lambda x: fc.patch.sample(PAIR, 8, 2, x), HIDDEN),
    "patch.sample initial": (lambda x: fc.patch.sample(PAIR, 8, 6, [2.0, 1.0], initial=x), FIELDS),
    "patch.denoise": (lambda x: fc.patch.denoise(PAIR, x, 1.0), FIELDS),
    "patch.response": (lambda x: fc.patch.response(PAIR, x, 1.0), FIELDS),
    "patch.Response.gain": (
        lambda x: fc.patch.response(PAIR, FIELDS.data, 1.0).gain(x),
        np.ma.masked_array([0.0, 0.0], [1, 0]),
    ),
    "roll": (fc.data.roll, FIELDS),
    "class_alignment": (lambda x: fc.alignment.class_alignment(x, [0, 1, 0, 1]), GAINS),
    "class_alignment labels": (lambda x: fc.alignment.class_alignment(GAINS.data, x), CLASSES),
    "paired": (lambda x: fc.alignment.paired(x, [1.0, 2.0, 3.0, 4.0]), HIDDEN),
    "pairwise_distance": (lambda x: fc.alignment.pairwise_distance(x, [0, 0, 1, 1]), GAINS),
    "pairwise_distance labels": (lambda x: fc.alignment.pairwise_distance(GAINS.data, x), CLASSES),
    "VP": (fc.schedules.VP, np.ma.masked_array([0.9, 0.5, 0.1], [0, 1, 0])),
    "VP.t": (VP.t, HIDDEN),
    "OrnsteinUhlenbeck.s": (fc.schedules.OrnsteinUhlenbeck().s, HIDDEN),
    "EDM.t": (fc.schedules.EDM().t, HIDDEN),
    "Cosine.t": (fc.schedules.Cosine().t, HIDDEN),
    "FlowMatching.t": (fc.schedules.FlowMatching().t, HIDDEN),
    "Weight": (Interval(0.3, 5.0, 2.0), HIDDEN),
    "diffusion.sample levels": (lambda x: fc.diffusion.sample(fc.diffusion.from_gaussian(MODEL), levels=x), HIDDEN),
    "Denoiser s": (
        lambda x: fc.diffusion.from_gaussian(MODEL)(torch.ones(4, 1, 8, 8), x),
        HIDDEN,
    ),
    "Denoiser labels": (lambda x: fc.diffusion.from_mixture(MIXTURE)(torch.ones(4, 1, 8, 8), 1.0, x), CLASSES),
    "class_entropy_rate": (
        lambda x: fc.diffusion.class_entropy_rate(fc.diffusion.from_mixture(MIXTURE), x, [0] * 6, [2.0, 1.0]),
        FIELDS[:, None],
    ),
    "Judge": (Judge(lambda x: (x, x), name="", classes=2, sha256="", device="cpu"), FIELDS[:, None]),
}
# A sequence is no noise level of a denoiser.
NOT_LISTS = {"Denoiser s"}


@pytest.mark.parametrize("edge", EDGES)
def test_a_mask_is_refused_in_an_array_and_in_lists_of_them(edge):
    call, masked = EDGES[edge]
    assert np.ma.is_masked(masked)
    for x in [masked] if edge in NOT_LISTS else [masked, list(masked), tuple(masked), deque(masked)]:
        with pytest.raises(TypeError, match=r"^\w+: expected an array without a mask, .* call \.filled\(\)"):
            call(x)


def test_a_mask_that_hides_nothing_is_taken():
    plain = np.random.default_rng(1).standard_normal((6, 8, 8))
    shown = np.ma.masked_array(plain, np.zeros(plain.shape, bool))
    for x in (shown, list(shown), np.ma.masked_array(plain)):
        assert type(to_real(x, "x")) is np.ndarray
        np.testing.assert_array_equal(fc.structure_factor(x).S, fc.structure_factor(plain).S)
    assert fc.Recorder(np.ma.masked_array([2.0, 1.0]), (8, 8)).levels.tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    "nest",
    [
        lambda m: [[m, m], [m, m]],
        lambda m: [(m,), [m]],
        lambda m: [m.data, m],
        lambda m: [[3.0, np.ma.masked, 1.0]],
        lambda m: np.ma.masked,
        lambda m: [deque([m])],
    ],
)
def test_however_deep_it_lies(nest):
    with pytest.raises(TypeError, match="x: expected an array without a mask"):
        to_array(nest(HIDDEN), "x")


def test_masks_of_dask_and_of_xarray():
    dask = pytest.importorskip("dask.array")
    lazy = dask.from_array(FIELDS)
    for x in (lazy, [lazy[0], lazy[1]]):
        with pytest.raises(TypeError, match="field: expected an array without a mask"):
            fc.power_spectrum(x)
    # xarray itself makes NaN of a mask where it is told of one.
    for x in (xr.DataArray(FIELDS), xr.DataArray(lazy)):
        with pytest.raises(ValueError, match="field: NaN in the field at index"):
            fc.power_spectrum(x)


def test_tensors_without_a_value_everywhere():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these parts of torch are prototypes
        hidden = torch.masked.masked_tensor(torch.ones(2, 4, 4), torch.eye(4).bool().expand(2, 4, 4))
        shown = torch.masked.masked_tensor(torch.ones(2, 4, 4), torch.ones(2, 4, 4).bool())
        nested = torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(2, 4)])
        sparse = torch.eye(4)[None].to_sparse()
    for x, message in (
        (hidden, "array without a mask"),
        (nested, "dense tensor, got a nested"),
        (sparse, "got a sparse"),
    ):
        with pytest.raises(TypeError, match=f"x: expected an? .*{message}"):
            to_real(x, "x")
    assert to_real(shown, "x").shape == (2, 4, 4)


def test_lists_of_tensors():
    rows = [torch.ones(4, 4, requires_grad=True), torch.ones(4, 4), torch.ones(4, 4).bfloat16().float()]
    assert fc.power_spectrum(rows).power.shape[0] == 3
    assert to_real([torch.ones(2).bfloat16()], "x").dtype == np.float32
    with pytest.raises(ValueError, match="x: expected an array, got a sequence whose items differ in shape"):
        to_array([np.ones(3), np.ones(2)], "x")
