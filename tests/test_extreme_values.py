"""Hostile numbers end in a result or in our own error; numpy warns of nothing on the way (warnings are errors here)."""

from __future__ import annotations

import numpy as np
import pytest

import fastcrit as fc
from fastcrit import alignment, modes, schedules, theory

BASE = np.random.default_rng(0).standard_normal((6, 8, 8))


def with_value(value, at=(2, 3, 3)):
    y = BASE.copy()
    y[at] = value
    return y


def inf_less_inf(same_sample):
    y = with_value(np.inf)
    y[(2 if same_sample else 4), 3, (4 if same_sample else 3)] = -np.inf
    return y


HOSTILE = {
    "NaN": with_value(np.nan),
    "inf": with_value(np.inf),
    "inf - inf in a sample": inf_less_inf(True),
    "inf - inf over samples": inf_less_inf(False),
    "all inf": np.full((6, 8, 8), np.inf),
    "1e100": with_value(1e100),
    "all 1e100": BASE * 1e100,
    "1e200": with_value(1e200),
    "all 1e200": BASE * 1e200,
    "1e308": with_value(1e308),
    "signs of 1e308": np.sign(BASE) * 1e308,
    "1e-300": BASE * 1e-300,
    "zeros": np.zeros((6, 8, 8)),
    "one sample": BASE[:1],
    "two samples": BASE[:2],
    "2 x 2": BASE[:, :2, :2],  # shells without modes, no lag but the first
    "1 x 1": BASE[:, :1, :1],
}
PAIR = fc.patch.Dictionary.binary(size=3, random=0)
MODEL = theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=8)
MIXTURE = theory.GaussianMixture(np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 8, 8)), std=0.5)


def flat(y):
    return y.reshape(len(y), -1)


CALLS = {
    **{
        f"power_spectrum {o}": (lambda y, o=o: fc.power_spectrum(y, **o))
        for o in ({}, {"detrend": "constant"}, {"detrend": "linear"}, {"window": "hann"})
    },
    **{
        f"{name} {center}": (lambda y, f=f, center=center: f(y, center=center))
        for center in ("ensemble", "sample", "none")
        for name, f in {
            "structure_factor": fc.structure_factor,
            "autocorrelation": lambda y, center: fc.autocorrelation(y, center=center, normalize=True),
            "autocorrelation of pairs inside": lambda y, center: fc.autocorrelation(y, center=center, periodic=False),
        }.items()
    },
    **{
        f"{m} periodic={p}": (lambda y, m=m, p=p: fc.correlation_length(y, method=m, periodic=p).interval())
        for m in fc.METHODS
        for p in (True, False)
    },
    "own mean": lambda y: fc.correlation_length(y, center="sample"),
    "free background": lambda y: fc.correlation_length(y, background="free"),
    "speciation_level": theory.speciation_level,
    "GaussianTheory": lambda y: theory.GaussianTheory(np.abs(y[0])),
    "GaussianTheory.denoise": lambda y: MODEL.denoise(y, 1.0),
    "pitchfork": lambda y: theory.pitchfork(64).denoise(y, 1e-200),
    "GaussianMixture": lambda y: theory.GaussianMixture(y[:, None], 0.5),
    "posterior": lambda y: MIXTURE.posterior(y[:, None], 1.0),
    "Dictionary": lambda y: fc.patch.Dictionary(y[:, :3, :3]),
    "Dictionary prior": lambda y: fc.patch.Dictionary(np.ones((len(y), 3, 3)), prior=y[:, 0, 0]),
    "patch.denoise": lambda y: fc.patch.denoise(PAIR, y, 1.0),
    "class_alignment": lambda y: str(alignment.class_alignment(flat(y), np.zeros(len(y), int))),
    "paired": lambda y: alignment.paired(y[:, 0, 0], 0.5 * y[:, 0, -1], n_bootstrap=100),
    "pairwise_distance": lambda y: alignment.pairwise_distance(flat(y), np.zeros(len(y), int)),
    "dispersion_length": lambda y: modes.dispersion_length(np.arange(float(y.shape[-1])), y),
    "dispersion stderr": lambda y: modes.dispersion_length(np.arange(float(y.shape[-1])), 0.5 * np.ones(y.shape), y),
    "drift_rate": lambda y: modes.drift_rate(y, 1e-300),
    "drift_rate s": lambda y: modes.drift_rate(0.5, np.abs(y)),
    "gaussian_bound": lambda y: modes.gaussian_bound(np.abs(y), 0.0),
    "gaussian_bound s": lambda y: modes.gaussian_bound(1.0, y),
    "gaussian_bound channels": lambda y: modes.gaussian_bound(y, 1.0, channels=True),
    "response_deficit": lambda y: modes.response_deficit(y, np.zeros(y.shape)),
    "response_deficit bound": lambda y: modes.response_deficit(0.5, y),
    "response_deficit channels": lambda y: modes.response_deficit(y, y, channels=True),
    "levels": lambda y: fc.Recorder(y[:, 0, 0], (8, 8)),
    "VP": lambda y: schedules.VP(y[:, 0, 0]),
    **{
        f"{type(s).__name__}.{what}": (lambda y, s=s, what=what: getattr(s, what)(y))
        for s in (
            schedules.OrnsteinUhlenbeck(), schedules.EDM(), schedules.VP([0.9, 0.5, 0.1]), schedules.Cosine(),
            schedules.FlowMatching(),
        )
        for what in ("s", "t")
    },
    "Pulse": lambda y: fc.diffusion.Pulse(2.0, 0.5, 4.0, shape="gaussian")(y),
}  # fmt: skip
OURS = (ValueError, TypeError, OverflowError)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.filterwarnings("error")
def test_a_result_or_an_error_that_names_the_argument(call):
    messages = []
    for y in HOSTILE.values():
        for x in (y, np.abs(y)):
            try:
                CALLS[call](x)
            except OURS as error:
                messages.append(str(error))
    assert [m for m in messages if not m.split(":")[0].replace(", ", "").isidentifier()] == []


@pytest.mark.parametrize("call", [c for c in CALLS if c.startswith(("structure", "power", "auto")) or "periodic" in c])
def test_float32_that_a_cast_made_infinite_is_named(call):
    y = BASE.astype(np.float32)
    y[2, 3, 3] = np.inf
    with pytest.raises(ValueError, match="infinite value in the field at index 2"):
        CALLS[call](y)


@pytest.mark.parametrize("center", ["ensemble", "none"])
def test_errors_of_powers_whose_squares_overflow(center):
    one, other = (fc.structure_factor(BASE * unit, center=center) for unit in (1.0, 2.0**350))  # 1e105
    np.testing.assert_allclose(other.S / 2.0**700, one.S, rtol=1e-12)
    np.testing.assert_allclose(other.stderr / 2.0**700, one.stderr, rtol=1e-6)
    for periodic in (True, False):
        one, other = (fc.autocorrelation(BASE * unit, center=center, periodic=periodic) for unit in (1.0, 2.0**350))
        np.testing.assert_allclose(other.stderr / 2.0**700, one.stderr, rtol=1e-6)


def test_limits_of_the_schedules():
    ou, flow, cosine = schedules.OrnsteinUhlenbeck(), schedules.FlowMatching(), schedules.Cosine()
    assert ou.s(1e4) == np.inf
    assert ou.t(1e200) == pytest.approx(400 * np.log(10), rel=1e-15)
    assert ou.t(np.inf) == np.inf
    assert flow.s(1.0) == np.inf
    assert flow.t([0.0, 1e300, np.inf]).tolist() == [0.0, 1.0, 1.0]
    assert cosine.t(np.inf) == 1.0
    vp = schedules.VP([0.9, 0.5, 0.1])
    assert vp.t([0.0, np.inf]).tolist() == [0.0, 2.0]
    assert all(np.isnan(s.t(np.nan)) for s in (ou, flow, cosine, vp))  # a level that was not found
    for call, message in (
        (lambda: ou.s(-1.0), "t: expected numbers >= 0, got -1.0"),
        (lambda: flow.s(1.5), "t: expected numbers >= 0 and <= 1, got 1.5"),
        (lambda: cosine.s([0.5, 2.0]), "t: expected numbers >= 0 and <= 1, got 2.0"),
        (lambda: vp.t(-2.0), "s: expected numbers >= 0, got -2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_where_there_is_no_power_the_bound_is_0_and_the_deficit_unknown():
    assert modes.gaussian_bound([0.0, 4.0], 0.0).tolist() == [0.0, 1.0]
    assert np.isnan(modes.response_deficit([0.0, 0.5], 0.0)).all()
    assert modes.response_deficit(0.25, 0.5) == 0.5


def test_matrices_of_half_precision_and_near_the_end_of_the_range():
    matrix = np.array([[2.0, 1.0], [1.0, 2.0]])
    expected = modes.gaussian_bound(matrix, 1.0, channels=True)
    np.testing.assert_allclose(modes.gaussian_bound(matrix.astype(np.float16), 1.0, channels=True), expected)
    np.testing.assert_allclose(modes.gaussian_bound(1e307 * matrix, 1.0, channels=True), np.eye(2), atol=1e-12)


def test_scales_at_which_patch_models_leave_the_range_are_refused():
    with pytest.raises(OverflowError, match=r"patterns: values up to 1e\+200 have powers beyond float64"):
        fc.patch.Dictionary(1e200 * np.ones((2, 3, 3)))
    with pytest.raises(OverflowError, match="y: squares of sample 1 exceed the range of float32"):
        fc.patch.denoise(PAIR, np.stack([np.ones((8, 8)), 1e30 * np.ones((8, 8))]).astype(np.float32), 1.0)
