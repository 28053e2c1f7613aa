"""The way of taking derivatives that ``method="auto"`` chooses: one that is cut off in some modes is found out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit._kernels.lattice import lattice
from fastcrit._response.method_choice import probe_tangents

SHAPE = (8, 8)


def states(channels=1, dtype=torch.float32, shape=SHAPE, seed=5):
    return torch.randn(2, channels, *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def gains(D, y, shells, s=1.0, **options):
    return fc.mode_response(D, y, s, shells, **options)


def column(values):
    return torch.tensor(values)[:, None, None, None]


def mean(y, *axes):
    return y.mean(axes, keepdim=True)


# y -> D with a derivative that does not say what D does, the shells where it is wrong, and the channels they take.
# Every D is linear, so that differences with any step are right.
CUT = {
    "the mean, detached": (lambda y: 0.5 * (y - mean(y, 1, 2, 3).detach()), [0], 1),
    "the mean as a float": (lambda y: 0.5 * torch.stack([x - float(x.mean()) for x in y]), [0], 1),
    "the mean through numpy": (
        lambda y: 0.5 * (y - torch.from_numpy(np.mean(y.detach().numpy(), axis=(1, 2, 3), keepdims=True))), [0], 1
    ),
    "row means": (lambda y: 0.5 * (y - mean(y, 3).detach()), [0, 1, 3], 1),
    "column means": (lambda y: 0.5 * (y - mean(y, 2).detach()), [0, 1, 3], 1),
    "channel means": (lambda y: 0.5 * (y - mean(y, 1).detach()), [0, 1, 3], 3),
    "a difference of channels": (
        lambda y: 0.5 * y - 0.25 * (y[:, :1] - y[:, 1:2]).detach() * torch.tensor([1, -1, 0])[:, None, None], [0, 2], 3
    ),
    "each channel's own mean": (lambda y: 0.5 * (y - mean(y, 2, 3).detach()), [0], 3),
    "a coarser image": (
        lambda y: 0.5 * (y - torch.kron(torch.nn.functional.avg_pool2d(y, 2), torch.ones(2, 2)).detach()), [0, 1], 1
    ),
}  # fmt: skip


class TestCutDerivatives:
    @pytest.mark.parametrize("name", CUT)
    def test_is_found_out_in_the_shells_that_it_is_wrong_in(self, name):
        f, shells, channels = CUT[name]
        D = fc.diffusion.from_denoiser(lambda y, s: f(y))
        # Differences of fourth order: some eps^(4/5).
        for dtype, tolerance, some in (
            (torch.float32, 1e-4, shells), (torch.float64, 1e-9, shells), (torch.float32, 1e-4, sorted({*shells, 2, 4}))
        ):  # fmt: skip
            y = states(channels, dtype)[:1]
            g = gains(D, y, some, waves=2)
            expected = gains(D, y, some, waves=2, method="central", step=1e-2).gain_matrix
            assert g.method == "central"
            np.testing.assert_allclose(g.gain_matrix, expected, atol=tolerance)

    def test_the_constant_has_no_gain_where_its_mean_is_subtracted(self):
        for cut in (lambda y: y.mean((1, 2, 3), keepdim=True).detach(), lambda y: column([float(x.mean()) for x in y])):
            D = fc.diffusion.from_denoiser(lambda y, s, cut=cut: 0.5 * (y - cut(y)))
            for probe in ("waves", "random_phase"):
                g = gains(D, states()[:1], [0], probe=probe)
                # Differences of fourth order in float32: some eps^(4/5) = 3e-6.
                assert abs(g.gain[0]) < 1e-4

    def test_shells_that_it_is_right_in_keep_their_derivative(self):
        """Detached modes of shell 3 do not make shells 0 and 1 wrong."""

        def f(y, s):
            modes = torch.fft.rfft2(y)
            cut = torch.zeros_like(modes)
            cut[..., 3, 0] = modes[..., 3, 0]
            cut[..., -3, 0] = modes[..., -3, 0]
            return 0.5 * (y - torch.fft.irfft2(cut, s=y.shape[-2:]).detach())

        D, y = fc.diffusion.from_denoiser(f), states(dtype=torch.float64)
        assert gains(D, y, [0, 1]).method == "jvp"
        g = gains(D, y, [0, 3])
        assert g.method == "central"
        assert g.gain[0] == pytest.approx(0.5, abs=1e-9)
        assert g.gain[1] < 0.5 - 1 / 20  # one mode and its opposite of some 16

    def test_a_norm_that_is_detached_is_found_out_where_the_state_is_the_mode(self):
        """y over its own norm does not grow along y; on noise no single mode is y, and the derivative is right."""
        D = fc.diffusion.from_denoiser(lambda y, s: y / y.square().mean((1, 2, 3), keepdim=True).sqrt().detach())
        constant = torch.full((1, 1, *SHAPE), 2.0, dtype=torch.float64)
        g = gains(D, constant, [0])
        assert g.method == "central"
        assert g.gain[0] == pytest.approx(0.0, abs=1e-8)
        wave = torch.cos(2 * torch.pi * torch.arange(8, dtype=torch.float64) / 8 + 0.3).expand(1, 1, *SHAPE)
        assert gains(D, wave, [1]).method == "central"
        assert gains(D, states(dtype=torch.float64), [0, 1]).method == "jvp"

    def test_a_gain_of_zero_is_no_reason_to_refuse_a_derivative(self):
        """Differences of nothing are rounding, which the derivative need not agree with."""
        for dtype in (torch.float32, torch.float64):
            for f, shells in (
                (lambda y, s: 0.5 * (y - mean(y, 1, 2, 3)), [0]),
                (lambda y, s: 0.5 * mean(y, 1, 2, 3).expand_as(y), [3]),
                (lambda y, s: 0.0 * y + 1.0, [0, 1]),
            ):
                g = gains(fc.diffusion.from_denoiser(f), states(dtype=dtype), shells)
                assert g.method == "jvp"
                assert np.abs(g.gain).max() < 1e-6


class TestRounding:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        ("f", "expected"),
        [
            (lambda y: 0.5 * (127 * y).round() / 127, 0.5),
            (lambda y: 0.5 * (127 * y).to(torch.int32).to(y.dtype) / 127, 0.5),
            (lambda y: 0.5 * y + 0.25 * (127 * y).round() / 127, 0.75),
        ],
        ids=["of the state", "to integers", "of a part"],
    )
    def test_finer_than_the_noise_has_the_slope_of_steps_longer_than_it(self, f, expected, dtype):
        """At s = 1 a step of norm 1 moves a pixel by 1/16, eight times a step of the rounding: 6 % of one wave's."""
        y = torch.randn(1, 1, 16, 16, dtype=dtype, generator=torch.Generator().manual_seed(5))
        g = gains(fc.diffusion.from_denoiser(lambda y, s: f(y)), y, [0])
        assert g.method == "central"
        assert g.gain[0] == pytest.approx(expected, abs=0.06)

    @pytest.mark.parametrize("s", [0.02, 0.4])
    def test_exact_denoisers_are_not_taken_for_it(self, s, rng):
        """Sharp and flat posteriors, at their data, between them and off them, are measured by derivatives."""
        mixture = fc.theory.GaussianMixture(rng.normal(size=(4, 1, *SHAPE)), std=0.05)
        exact, patch = fc.diffusion.from_mixture(mixture), fc.patch.Dictionary.binary(3, 6, seed=1)
        for D, x in (
            (exact, mixture.means[0]),
            (exact, mixture.means[:2].mean(axis=0)),
            (fc.diffusion.from_patch(patch), np.ones((1, *SHAPE))),
            (fc.diffusion.from_patch(patch), rng.choice([-1, 1], (1, *SHAPE))),
        ):
            y = torch.from_numpy(x + s * rng.normal(size=(1, *SHAPE)))[None]
            for dtype in (torch.float32, torch.float64):
                assert gains(D, y.to(dtype), [0, 1, 2], s, waves=1).method == "jvp"


class TestProbe:
    @pytest.mark.parametrize("shape", [(8, 8), (7, 9), (6, 9), (1, 8), (5, 1)])
    @pytest.mark.parametrize("channels", [1, 3, 16])
    def test_both_fields_together_have_every_mode_of_the_shells_and_no_other(self, shape, channels):
        grid = lattice(shape)
        every = range(len(grid.shell_k))
        for shells in ([0], [*every][1::2] or [0], [*every]):
            modes = np.fft.fft2(probe_tangents(shape, channels, shells), norm="ortho")
            power = (np.abs(modes) ** 2).sum(axis=0)  # of the two: cos^2 + sin^2, or twice 1
            number = np.fft.rfft2(np.zeros(shape)).shape
            inside = np.isin(grid.shell_of_mode, shells).reshape(number[::-1]).T
            half = power[:, :, : number[1]]
            assert (half[:, inside] > 0.99).all()
            assert np.abs(half[:, ~inside]).max(initial=0) < 1e-20

    @pytest.mark.parametrize("channels", [2, 3, 4, 16])
    def test_neither_sum_nor_differences_of_channels_cancel(self, channels):
        """Of a detached combination u of channels at least an eighth shows: the tolerance is a tenth of the gain."""
        modes = np.fft.fft2(probe_tangents((8, 8), channels, [0, 1, 2]), norm="ortho")
        combinations = [np.full(channels, channels**-0.5), *np.eye(channels)]
        # (Of 16 channels in two fields, some two are alike.)
        some = range(1, channels if channels <= 4 else 4)
        combinations += [(np.eye(channels)[0] - np.eye(channels)[c]) / 2**0.5 for c in some]
        inside = np.isin(lattice((8, 8)).shell_of_mode, [0, 1, 2]).reshape(5, 8).T
        for u in combinations:
            seen = (np.abs(np.einsum("c,tcyx->tyx", u, modes)) ** 2).sum(axis=0)[:, :5]
            assert seen[inside].min() > 1 / 8**2

    @pytest.mark.parametrize(("dtype", "evaluations"), [(torch.float32, 26), (torch.float64, 30)])
    def test_costs_the_same_few_evaluations_for_any_number_of_shells(self, dtype, evaluations):
        """Two at each step of the scan and 6 of the second field, for any number of shells."""
        calls = []

        def f(y, s):
            calls.append(len(y))
            return torch.tanh(y)

        D, y = fc.diffusion.from_denoiser(f), states(dtype=dtype)[:1]
        for shells in ([0], [0, 1, 2, 3, 4]):
            counted = []
            for method, step in (("central", 1e-3), ("central", None), ("auto", None)):
                calls.clear()
                g = fc.mode_response(D, y, 1.0, shells, method=method, step=step)
                counted.append(sum(calls))
            fixed, scanned, chosen = counted
            assert scanned - fixed == evaluations - 6
            # jvp runs the network once, whatever the tangents: one of the probe, one of the measurement, one survey,
            # and two states beside each other.
            assert chosen == evaluations + 5
            assert g.method == "jvp"
