"""Several channels: what goes together in them is recorded, and the gain is that of the softest mixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc

H, W = 12, 15
LEVELS = fc.schedules.log_levels(17, high=20.0, low=0.1)


def spectra(C, kind):
    """P_ab(k) (C, C, H, W) of Gaussian data: one Ornstein-Zernike field times a matrix, or unlike channels."""
    k2 = sum(np.meshgrid(*[4 * np.sin(np.pi * np.fft.fftfreq(n)) ** 2 for n in (H, W)], indexing="ij"))
    P = 1 / (1 / 9 + k2)
    if kind == "unlike":
        return np.stack([np.stack([P if a == b == 0 else 0.3 * (a == b) + 0 * P for b in range(C)]) for a in range(C)])
    return (kind + (1 - kind) * np.eye(C))[:, :, None, None] * P


def model(P):
    """The exact denoiser of such data, which is linear, and a sampler of them."""
    P = torch.from_numpy(P)
    byk = P.permute(2, 3, 0, 1)
    root = torch.linalg.eigh(byk)
    root = root.eigenvectors * root.eigenvalues.clamp_min(0).sqrt()[..., None, :]

    def filtered(y, M):
        return torch.fft.ifft2(torch.einsum("hwab,nbhw->nahw", M.to(torch.complex128), torch.fft.fft2(y.double()))).real

    def denoise(y, s):
        s2 = s.double().reshape(-1)[0] ** 2
        return filtered(y, byk @ torch.linalg.inv(byk + s2 * torch.eye(len(P), dtype=torch.float64))).to(y.dtype)

    def data(n, seed):
        z = torch.randn(n, len(P), H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return filtered(z, root)

    return fc.diffusion.from_denoiser(denoise, shape=(len(P), H, W)), data


def trajectories(C, kind, solver, n=64, probe="random_phase"):
    P = spectra(C, kind)
    D, data = model(P)
    std = float(np.einsum("aahw->", P) / (C * H * W)) ** 0.5
    rec = fc.Recorder(LEVELS, D.shape, data_std=std, gain_shells=range(5), low_modes=4)

    def gains(i, s, y, denoised):
        g = fc.mode_response(D, y[:8], s, rec.gain_shells, probe=probe, seed=i, method="jvp")
        rec.update_gain(i, g.matrix_samples)

    noise = torch.randn(n, C, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    start = data(n, 1) + LEVELS[0] * noise
    options = {"solver": solver, "initial": start, "dtype": torch.float64, "observers": [gains], "seed": 3}
    fc.diffusion.sample(D, n_samples=n, levels=LEVELS, recorder=rec, **options)
    return P, rec.dataset()


def over_shells(values, shells, grid):
    """(shells, ...) averages over a shell's modes of values (..., H, W)."""
    half = np.moveaxis(values[..., : W // 2 + 1], -1, -2).reshape(*values.shape[:-2], -1)
    return np.stack(
        [np.average(half[..., m], axis=-1, weights=grid.half_weights[m])
         for m in (grid.shell_of_mode == k for k in shells)]
    )  # fmt: skip


class TestGaussianData:
    @pytest.mark.parametrize("solver", ["euler", "sde"])
    @pytest.mark.parametrize("kind", [0.0, 0.9, 0.99, 1.0, "unlike"])
    def test_gains_are_the_bound_and_there_is_no_transition(self, kind, solver):
        P, ds = trajectories(3, kind, solver)
        grid = fc.Recorder([1.0], shape=(H, W)).grid
        for i, s in enumerate(LEVELS):
            bound = np.moveaxis(
                fc.modes.gaussian_bound(np.moveaxis(P, (0, 1), (2, 3)), s, channels=True), (2, 3), (0, 1)
            )
            bound = over_shells(bound, range(5), grid)
            np.testing.assert_allclose(ds.gain_matrix[i], bound, atol=1e-6)
            deficit = fc.modes.response_deficit(ds.gain_matrix[i].values, bound, channels=True)
            np.testing.assert_allclose(deficit, 0, atol=1e-6)
            # The gain is that of the softest mixture, not the mean of the channels.
            np.testing.assert_allclose(ds.gain_on_trajectories[i], np.linalg.eigvalsh(bound)[:, -1], atol=1e-6)
        cp = fc.critical_point(ds)
        assert cp.found == {}, cp

    @pytest.mark.parametrize("kind", [0.9, "unlike"])
    def test_cross_spectra_are_those_of_the_data_and_the_noise(self, kind):
        n = 4000
        P, data = spectra(2, kind), model(spectra(2, kind))[1]
        rec = fc.Recorder([1.5], shape=(2, H, W), low_modes=5)
        rng = np.random.default_rng(0)
        offset = 50 + np.arange(W)  # a mean field is no fluctuation
        rec.update(0, data(n, 5).numpy() + 1.5 * rng.standard_normal((n, 2, H, W)) + offset)
        ds = rec.dataset()
        shells = ds.cross_shell.values
        expected = over_shells(P + 1.5**2 * np.eye(2)[:, :, None, None], shells, rec.grid)
        # Entries of a mean over n samples, of a single mode at worst: 4.5 errors, sqrt(P_aa P_bb + P_ab^2)/sqrt(n).
        error = np.sqrt(np.einsum("saa,sbb->sab", expected, expected) + expected**2) / np.sqrt(n)
        assert (np.abs(ds.cross_spectrum[0] - expected) < 4.5 * error).all()
        ratio = ds.cross_spectrum_stderr[0].values[0] / error[0]  # k = 0 is one mode
        assert (np.abs(ratio - 1) < 0.5).all()  # 32 blocks: 13 %
        np.testing.assert_allclose(
            np.einsum("scc->cs", ds.cross_spectrum[0].values), ds.S[0].values[:, : len(shells)], rtol=1e-6
        )

    def test_errors_are_those_of_leaving_blocks_out(self, rng):
        y = rng.standard_normal((9, 2, H, W)) + 0.5 * rng.standard_normal((9, 1, H, W)) + 3
        rec = fc.Recorder([1.0], shape=(2, H, W), blocks=9, low_modes=3)
        rec.update(0, y)
        values = []
        for b in range(9):
            left = fc.Recorder([1.0], shape=(2, H, W), blocks=9, low_modes=3)
            left.update(0, np.delete(y, b, axis=0))
            values.append(left.dataset().cross_spectrum.values[0])
        expected = np.sqrt(8 / 9 * ((np.array(values) - np.mean(values, axis=0)) ** 2).sum(axis=0))
        np.testing.assert_allclose(rec.dataset().cross_spectrum_stderr[0], expected, rtol=1e-9)

    def test_grey_images_cross_where_their_brightness_does(self):
        """Three channels of one field: P = 3 x 9 along (1, 1, 1), and Gaussian data's zero stands beside it."""
        P, ds = trajectories(3, 1.0, "sde", n=256)
        found = fc.critical_point(ds)["instability"]
        exact = np.sqrt(3 * P[0, 0, 0, 0] - 2 * ds.attrs["data_std"] ** 2)
        # Levels 39 % apart; the interval is that of the interpolation.
        assert found.low <= exact <= found.high
        # P_0 is a mean of 256 squares: 4.5 of its standard errors.
        power = found.gaussian**2 + 2 * ds.attrs["data_std"] ** 2
        assert power == pytest.approx(3 * P[0, 0, 0, 0], rel=4.5 * np.sqrt(2 / 256))
        vector = ds.gain_eigenvector.sel(shell=0)[8]
        np.testing.assert_allclose(vector, 3**-0.5, atol=1e-6)


class TestRecorder:
    def test_one_recorder_takes_one_kind_of_gain(self, rng):
        rec = fc.Recorder([2.0, 1.0], shape=(2, 8, 8), gain_shells=range(3))
        with pytest.raises(
            ValueError, match=r"gain: expected shape \(batch, 3\) or \(batch, 3, 2, 2\), got \(5, 2, 2\)"
        ):
            rec.update_gain(0, np.zeros((5, 2, 2)))
        rec.update_gain(0, rng.uniform(size=(5, 3)))
        with pytest.raises(ValueError, match="gain: this recorder has gains that are numbers, got shape"):
            rec.update_gain(0, np.zeros((5, 3, 2, 2)))
        other = fc.Recorder([2.0, 1.0], shape=(2, 8, 8), gain_shells=range(3))
        other.update_gain(0, rng.uniform(size=(5, 3, 2, 2)))
        with pytest.raises(ValueError, match="merge: recorders differ in their gains: numbers in one, matrices"):
            rec.merge(other)
        one = fc.Recorder([2.0], shape=(8, 8), gain_shells=range(3))
        one.update_gain(0, np.full((5, 3, 1, 1), 0.5))  # of one channel a matrix is a number
        assert (one.sums()["gain"].sum(axis=1) == 2.5).all()

    def test_matrices_are_averaged_and_survive_files(self, rng, tmp_path):
        rec = fc.Recorder([2.0, 1.0], shape=(3, 8, 8), gain_shells=range(3), blocks=10)
        G = rng.uniform(0, 0.3, (2, 40, 3, 3, 3))
        for i in range(2):
            rec.update(i, rng.standard_normal((40, 3, 8, 8)))
            rec.update_gain(i, G[i, :15])
            rec.update_gain(i, G[i, 15:])
        rec.save(tmp_path / "rec")
        ds = fc.Recorder.load(tmp_path / "rec").dataset()
        mean = G.mean(axis=1)
        np.testing.assert_allclose(ds.gain_matrix, mean, rtol=1e-12)
        np.testing.assert_allclose(ds.diagonal_gain, np.einsum("lkcc->lk", mean) / 3, rtol=1e-12)
        u = ds.gain_eigenvector.values
        np.testing.assert_allclose(ds.gain_on_trajectories, np.einsum("lka,lkab,lkb->lk", u, mean, u), rtol=1e-12)
        # Errors of a mean of 40 numbers along u, from ten blocks of four.
        along = np.einsum("lka,lnkab,lkb->lnk", u, G, u).reshape(2, 4, 10, 3).mean(axis=1)
        np.testing.assert_allclose(ds.gain_on_trajectories_stderr, along.std(axis=1, ddof=1) / 10**0.5, rtol=1e-9)
