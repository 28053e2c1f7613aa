"""Sampling of denoisers: against diffusers' and EDM's own samplers, k-diffusion's formula, and exact Gaussian data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc
from tests.networks import Edm2Contract, KDiffusionVDenoiser, SmallConvolutional, random_unet, smalldiffusion_unet
from tests.oracles.edm import edm_sampler

diffusers = pytest.importorskip("diffusers")

LEVELS = fc.schedules.log_levels(12, high=20, low=0.05)


@pytest.fixture(scope="module")
def gaussian():
    return fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=(12, 16))


class TestAgainstOthers:
    @pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
    def test_euler_over_a_ddim_schedulers_timesteps_is_ddim(self, kind):
        sched = diffusers.DDIMScheduler(prediction_type=kind, clip_sample=False, set_alpha_to_one=True)
        sched.set_timesteps(25)
        unet = random_unet()
        x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        ours = x
        with torch.no_grad():
            for t in sched.timesteps:
                x = sched.step(unet(x, t).sample, t, x, eta=0.0).prev_sample
        s = fc.diffusion.scheduler_levels(sched, 25)
        initial = ours * float(np.sqrt(1 + s[0] ** 2))
        D = fc.diffusion.from_diffusers(unet, sched)
        y = fc.diffusion.sample(D, n_samples=3, levels=s, solver="euler", initial=initial)
        assert float((y - x).norm() / x.norm()) < 1e-4

    def test_heun_is_edms_sampler(self):
        net = Edm2Contract(channels=2, side=6).eval()
        latents = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
        labels = torch.eye(5)[:4]
        with torch.no_grad():
            expected = edm_sampler(lambda x, t, c: net(x, t, c, force_fp32=True), latents, class_labels=labels)
        levels = np.append(fc.schedules.EDM().levels(18), 0.0)
        y = fc.diffusion.sample(
            fc.diffusion.from_edm(net), [0, 1, 2, 3], 4, levels, "heun", initial=latents.double() * 80.0,
            dtype=torch.float64,
        )  # fmt: skip
        # The network computes in float32; from there on both are float64.
        assert float((y - expected).norm() / expected.norm()) < 1e-5

    def test_dpmpp_2m_is_second_order(self, gaussian):
        D = fc.diffusion.from_gaussian(gaussian)
        z = torch.randn(2, 1, 12, 16, dtype=torch.float64) * 20
        P = torch.from_numpy(gaussian.spectrum)

        def exact():  # the ODE of Gaussian data: each mode scales with sqrt(P + s^2)
            ratio = ((P + 0.05**2) / (P + 20.0**2)).sqrt()
            return torch.fft.ifft2(torch.fft.fft2(z) * ratio).real

        errors = {}
        for solver in ("euler", "heun", "dpmpp-2m"):
            errors[solver] = [
                float((
                    fc.diffusion.sample(
                        D, n_samples=2, levels=fc.schedules.log_levels(n, high=20, low=0.05), solver=solver, initial=z,
                        dtype=torch.float64,
                    ) - exact()
                ).norm())
                for n in (41, 81)
            ]  # fmt: skip
        # Half the step: half the error of a first-order method, a quarter of a second-order one's (to 25 %).
        assert errors["euler"][0] / errors["euler"][1] == pytest.approx(2, rel=0.25)
        for solver in ("heun", "dpmpp-2m"):
            assert errors[solver][0] / errors[solver][1] == pytest.approx(4, rel=0.25)

    def test_dpmpp_2m_is_k_diffusions_formula(self):
        net = SmallConvolutional().eval().double()
        D = fc.diffusion.from_epsilon(net)
        z = torch.randn(2, 1, 6, 6, dtype=torch.float64) * 20
        sigmas = torch.from_numpy(np.append(LEVELS, 0.0))
        with torch.no_grad():
            x, old = z, None
            for i in range(len(sigmas) - 1):
                denoised = D(x, float(sigmas[i]))
                t, t_next = -sigmas[i].log(), -sigmas[i + 1].log()
                h = t_next - t
                if old is None or sigmas[i + 1] == 0:
                    x = (sigmas[i + 1] / sigmas[i]) * x - (-h).expm1() * denoised
                else:
                    r = (t + sigmas[i - 1].log()) / h
                    d = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * old
                    x = (sigmas[i + 1] / sigmas[i]) * x - (-h).expm1() * d
                old = denoised
        y = fc.diffusion.sample(
            D, n_samples=2, levels=sigmas.numpy(), solver="dpmpp-2m", initial=z, dtype=torch.float64
        )
        torch.testing.assert_close(y, x, rtol=1e-10, atol=1e-12)


class TestGaussianData:
    @pytest.mark.parametrize("solver", ["heun", "sde", "dpmpp-2m"])
    def test_structure_factor_is_that_of_the_data_plus_noise(self, gaussian, solver):
        D = fc.diffusion.from_gaussian(gaussian)
        levels = fc.schedules.log_levels(60, high=60, low=0.3)
        rec = fc.Recorder([*levels[::20], levels[-1]], shape=(12, 16))
        fc.diffusion.sample(D, n_samples=400, levels=levels, solver=solver, seed=3, recorder=rec)
        S = rec.dataset().S
        shell = np.searchsorted(gaussian.lattice.shell_starts, np.arange(len(gaussian.lattice.orbit_k)), "right") - 1
        P = np.array([
            np.average(gaussian._half.T.ravel()[modes], weights=gaussian.lattice.half_weights[modes])
            for k in range(len(S.k))
            for modes in [shell[gaussian.lattice.orbit_of_mode] == k]
        ])  # fmt: skip
        for s in S.level.values:
            error = (S.sel(level=s).values / (P + s**2) - 1) / np.sqrt(2 / (400 * rec.grid.shell_modes[: len(S.k)]))
            # 4.5 standard errors in any of 4 levels x 7 shells, and 2 % for the steps of the solver.
            assert np.abs(error).max() < 4.5 + 0.02 * np.sqrt(400 * rec.grid.shell_modes[: len(S.k)].max() / 2)


class TestRuns:
    @pytest.mark.parametrize("solver", ["euler", "heun", "sde", "dpmpp-2m"])
    def test_sample_j_depends_on_seed_and_j_alone(self, solver):
        D = fc.diffusion.from_epsilon(SmallConvolutional().eval(), shape=(1, 6, 6))
        whole = fc.diffusion.sample(D, n_samples=7, levels=LEVELS, solver=solver, seed=5)
        split = [
            fc.diffusion.sample(D, n_samples=n, levels=LEVELS, solver=solver, seed=5, first_sample=first, batch_size=2)
            for first, n in ((0, 3), (3, 4))
        ]
        # Convolutions of another batch size round otherwise; 12 steps do not make that grow.
        torch.testing.assert_close(torch.cat(split), whole, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(whole, fc.diffusion.sample(D, n_samples=7, levels=LEVELS, solver=solver, seed=6))

    def test_a_run_that_goes_on_has_noise_of_its_own(self):
        """White data of variance 1: any run to s = 0.01 ends at 1, also in two legs with one seed."""
        D = fc.diffusion.from_denoiser(lambda x, s: x / (1 + s[:, None, None, None] ** 2), shape=(1, 32, 32))
        high, low = (fc.schedules.log_levels(n, high=a, low=b) for n, a, b in ((30, 50, 1.0), (60, 1.0, 0.01)))
        run = {"n_samples": 50, "solver": "sde", "seed": 3}
        halfway = fc.diffusion.sample(D, levels=high, **run)
        y = fc.diffusion.sample(D, levels=low, initial=halfway, **run)
        whole = fc.diffusion.sample(D, levels=[*high, *low[1:]], **run)
        # 51,200 numbers: 0.6 %; the rest is for the ancestral steps' own bias, which both have.
        assert float(y.var()) == pytest.approx(float(whole.var()), rel=0.03)

    @pytest.mark.parametrize("solver", ["euler", "heun", "sde", "dpmpp-2m"])
    def test_observers_see_every_level_with_its_denoised_state(self, solver):
        D = fc.diffusion.from_epsilon(SmallConvolutional().eval(), shape=(1, 6, 6))
        seen = []
        levels = np.append(LEVELS, 0.0)

        def observe(i, s, y, denoised):
            expected = D(y, s) if s > 0 else y
            torch.testing.assert_close(denoised, expected)
            seen.append((i, s, len(y)))

        y = fc.diffusion.sample(
            D, n_samples=5, levels=levels, solver=solver, batch_size=3,
            observers=[observe, lambda i, s, y, D: seen.append((i, s, y))],
        )  # fmt: skip
        assert [entry[:2] for entry in seen[::2]] == 2 * list(enumerate(levels.tolist()))
        torch.testing.assert_close(seen[2 * len(levels) - 1][2], y[:3])

    def test_recorder_sees_the_states_at_its_levels_first_and_last(self):
        D = fc.diffusion.from_epsilon(SmallConvolutional().eval(), shape=(1, 6, 6))
        kept = {}
        recs = [fc.Recorder(LEVELS[[0, 5, -1]], shape=shape) for shape in ((6, 6), (1, 6, 6))]
        fc.diffusion.sample(
            D, n_samples=9, levels=LEVELS, recorder=recs[0], batch_size=4, first_sample=2,
            observers=[recs[1], lambda i, s, y, D: kept.setdefault(i, []).append(y[:, 0].clone())],
        )  # fmt: skip
        expected = fc.Recorder(LEVELS[[0, 5, -1]], shape=(6, 6))
        for i, step in enumerate((0, 5, 11)):
            expected.update(i, torch.cat(kept[step]), sample=2)
        for rec in recs:
            assert rec.state["count"].tolist() == expected.state["count"].tolist()
            np.testing.assert_allclose(np.squeeze(rec.state["power"]), np.squeeze(expected.state["power"]), rtol=1e-9)

    def test_nothing_waits_for_the_device_between_levels(self, monkeypatch):
        """What would: looking at a tensor's values from Python."""
        looks = []
        for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__"):
            own = getattr(torch.Tensor, name)
            monkeypatch.setattr(torch.Tensor, name, lambda *a, _own=own, _name=name: (looks.append(_name), _own(*a))[1])
        D = fc.diffusion.from_edm(
            fc.diffusion.Net(fc.diffusion.NetConfig(shape=(1, 8, 8), width=4, multipliers=(1, 2))).eval(),
            unlabelled=True,
        )
        counts = []
        for solver in ("euler", "heun", "sde", "dpmpp-2m"):
            fc.diffusion.sample(
                D, [1, 2, 3], 3, LEVELS, solver, observers=[lambda i, s, y, D: counts.append(len(looks))]
            )
            assert len(set(counts)) == 1
            counts.clear()

    def test_labels_reach_the_network(self):
        D = fc.diffusion.from_denoiser(
            lambda x, s, labels: labels[:, None, None, None].to(x) * torch.ones_like(x), classes=9, shape=(1, 4, 4)
        )
        y = fc.diffusion.sample(D, [3, 1, 4, 1, 5], 5, np.append(LEVELS, 0.0), batch_size=2)
        assert y[:, 0, 0, 0].tolist() == [3, 1, 4, 1, 5]
        assert fc.diffusion.sample(D, 7, 2, np.append(LEVELS, 0.0)).unique().tolist() == [7]

    def test_autocast_runs_the_network_in_half_and_keeps_the_states(self):
        seen = []

        class Watched(SmallConvolutional):
            def forward(self, x, t, labels=None):
                out = super().forward(x, t)
                seen.append(out.dtype)
                return out

        D = fc.diffusion.from_epsilon(Watched().eval(), shape=(1, 6, 6))
        y = fc.diffusion.sample(D, n_samples=2, levels=LEVELS, autocast=torch.bfloat16)
        assert y.dtype == torch.float32
        assert set(seen) == {torch.bfloat16}

    def test_progress_is_shown_on_a_terminal_only(self, capsys):
        D = fc.diffusion.from_epsilon(SmallConvolutional().eval(), shape=(1, 6, 6))
        fc.diffusion.sample(D, n_samples=2, levels=LEVELS, progress=True)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("client", ["diffusers", "smalldiffusion", "k-diffusion", "edm2"])
def test_real_clients_go_through_sample_recorder_and_mode_response(client, tmp_path):
    if client == "diffusers":
        random_unet().save_pretrained(tmp_path / "unet")
        diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
        unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False)
        D = fc.diffusion.from_diffusers(unet, diffusers.DDPMScheduler.from_pretrained(tmp_path / "scheduler"))
        labels = None
    elif client == "smalldiffusion":
        net = smalldiffusion_unet(in_dim=16, in_ch=1, out_ch=1, ch=32, ch_mult=(1, 1), attn_resolutions=(8,))
        # It takes sigma as a scalar or as a column; eps at x = x0 + sigma eps.
        D = fc.diffusion.from_epsilon(lambda x, sigma: net(x, sigma[:, None, None, None]), shape=(1, 16, 16))
        labels = None
    elif client == "k-diffusion":
        D = fc.diffusion.from_denoiser(KDiffusionVDenoiser(SmallConvolutional()).eval(), shape=(1, 16, 16))
        labels = None
    else:
        torch.save(Edm2Contract(channels=1, side=16), tmp_path / "net.pt")
        D = fc.diffusion.from_edm(torch.load(tmp_path / "net.pt", weights_only=False).eval())
        labels = 2
    levels = fc.schedules.log_levels(6, high=20, low=0.1)
    rec = fc.Recorder(levels, shape=(16, 16), gain_shells=range(3))
    methods = set()

    def gains(i, s, y, denoised):
        response = fc.mode_response(D, y, s, shells=rec.gain_shells, labels=labels, waves=2)
        rec.update_gain(i, response.samples)
        methods.add(response.method)

    y = fc.diffusion.sample(D, labels, 4, levels, recorder=rec, observers=[gains])
    ds = rec.dataset()
    assert torch.isfinite(y).all()
    assert np.isfinite(ds.gain_on_trajectories).all()
    assert ds.n_samples.values.tolist() == [4] * 6
    assert methods == {"jvp"}


class TestErrors:
    def test_messages_name_the_argument(self):
        D = fc.diffusion.from_epsilon(SmallConvolutional().eval(), shape=(1, 6, 6))
        any_shape = fc.diffusion.from_epsilon(SmallConvolutional().eval())
        rec = fc.Recorder([20.0, 1.0], shape=(6, 6))
        run = fc.diffusion.sample
        for call, error, message in (
            (lambda: run(SmallConvolutional(), levels=LEVELS), TypeError, "D: expected a Denoiser, got SmallConv"),
            (lambda: run(D), ValueError, "levels: expected decreasing noise levels"),
            (lambda: run(D, levels=[1, 2]), ValueError, "levels: expected strictly decreasing"),
            (lambda: run(D, levels=LEVELS, solver="rk45"), ValueError, "solver: expected one of"),
            (lambda: run(D, levels=LEVELS, n_samples=0), ValueError, "n_samples: expected an integer from 1"),
            (lambda: run(D, levels=LEVELS, seed=-1), ValueError, "seed: expected an integer from 0"),
            (lambda: run(D, levels=LEVELS, dtype=torch.float16), ValueError, "dtype: expected torch.float32 or"),
            (lambda: run(any_shape, levels=LEVELS), ValueError, "shape: .* takes any shape; say which"),
            (
                lambda: run(D, levels=LEVELS, shape=(1, 8, 8)),
                ValueError,
                r"shape: .* takes states of shape \(1, 6, 6\)",
            ),
            (
                lambda: run(D, levels=LEVELS, initial=torch.zeros(2, 1, 6, 6)),
                ValueError,
                "initial: expected .* 64 states",
            ),
            (lambda: run(D, levels=LEVELS, recorder=rec), ValueError, "recorder: its level 1 is not among"),
            (
                lambda: run(D, levels=LEVELS, recorder=fc.Recorder([20.0], shape=(8, 8))),
                ValueError,
                "recorder: made for",
            ),
            (lambda: run(D, levels=LEVELS, observers=[3]), TypeError, "observers: expected a Recorder or a callable"),
            (lambda: run(D, 3, levels=LEVELS), ValueError, "labels: .* takes no labels"),
        ):
            with pytest.raises(error, match=message):
                call()

    def test_a_state_that_diverges_is_named(self):
        D = fc.diffusion.from_denoiser(lambda x, s: torch.where(x.mean() > 1e9, x, x) / 0.0, shape=(1, 4, 4))
        with pytest.raises(FloatingPointError, match="sample 8 became NaN or infinite"):
            fc.diffusion.sample(D, n_samples=2, levels=LEVELS, first_sample=8)
