from __future__ import annotations

import numpy as np
import pytest

from fastcrit import schedules

EVERY = [
    schedules.OrnsteinUhlenbeck(),
    schedules.EDM(),
    schedules.VP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))),
    schedules.Cosine(),
    schedules.FlowMatching(),
]


@pytest.mark.parametrize("schedule", EVERY, ids=lambda s: type(s).__name__)
class TestEverySchedule:
    def test_t_and_s_are_inverse(self, schedule):
        levels = schedule.levels(50)
        np.testing.assert_allclose(schedule.s(schedule.t(levels)), levels, rtol=1e-9)
        assert np.ndim(schedule.s(schedule.t(float(levels[3])))) == 0

    def test_levels_decrease_and_are_positive(self, schedule):
        levels = schedule.levels(50)
        assert levels.shape == (50,)
        assert (np.diff(levels) < 0).all()
        assert levels[-1] > 0

    def test_too_few_levels(self, schedule):
        with pytest.raises(ValueError, match="n: expected at least 2 levels, got 1"):
            schedule.levels(1)


def test_definitions():
    assert schedules.OrnsteinUhlenbeck().s(np.log(26.0)) == pytest.approx(5.0)
    t = np.linspace(0.1, 0.9, 5)
    np.testing.assert_allclose(schedules.FlowMatching().s(t), t / (1 - t))
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(schedules.VP(abar).s([0, 499, 999]), np.sqrt((1 - abar) / abar)[[0, 499, 999]])
    f = np.cos(np.pi / 2 * (t + 0.008) / 1.008) ** 2 / np.cos(np.pi / 2 * 0.008 / 1.008) ** 2
    np.testing.assert_allclose(schedules.Cosine().s(t), np.sqrt((1 - f) / f))


def test_edm_grid_is_equation_5_of_karras():
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(schedules.EDM().levels(18), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.log_levels(5, high=1.0, low=2.0), "high, low: expected high > low > 0, got 1.0 and 2.0"),
        (lambda: schedules.log_levels(5, high=1.0, low=0.0), "high, low: expected high > low > 0"),
        (lambda: schedules.log_levels(3, high=np.inf, low=1.0), "high, low: expected high > low > 0, got inf"),
        (lambda: schedules.FlowMatching().levels(3, t_max=1.0), "t_max: expected at most"),
        (lambda: schedules.Cosine().levels(3, t_max=2.0), "t_max: expected at most"),
        (lambda: schedules.OrnsteinUhlenbeck().levels(3, t_max=2000.0), "t_max: expected at most 700"),
        (lambda: schedules.EDM(rho=0.0), "rho: expected a positive number, got 0.0"),
        (lambda: schedules.VP([0.9]), "alphas_cumprod: expected a sequence of at least 2 values"),
        (lambda: schedules.VP([0.9, 0.95]), "alphas_cumprod: expected values inside"),
        (lambda: schedules.VP([0.9, 0.0]), "alphas_cumprod: expected values inside"),
        (lambda: schedules.Cosine().levels(5, t_max=0.1, t_min=0.2), "t_max, t_min: expected t_max > t_min > 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
