"""Schedulers of diffusers: levels, times and guidance weights are those of their own loops."""

from __future__ import annotations

import copy
import types

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit.diffusion import Constant, Interval, Pulse, from_diffusers, sample, scheduler_levels
from fastcrit.diffusion.schedulers import step_level
from tests.networks import SmallConvolutional

diffusers = pytest.importorskip("diffusers")

# Of numpy's, in diffusers' own set_timesteps, which these tests call.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

# Rounding of levels that a scheduler keeps in float32, against ours: a few roundings of 6e-8.
FLOAT32 = 1e-6
STEPS = 10
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
KARRAS = {"use_karras_sigmas": True}
SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SVD = {
    "timestep_type": "continuous",
    "prediction_type": "v_prediction",
    "sigma_min": 0.002,
    "sigma_max": 700.0,
} | KARRAS
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

WITH_SIGMAS = [
    ("DPMSolverMultistepScheduler", {}), ("DPMSolverMultistepScheduler", KARRAS),
    ("DPMSolverMultistepScheduler", COSINE | KARRAS), ("DPMSolverMultistepScheduler", SNR),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}), ("DPMSolverMultistepScheduler", FLOW),
    ("DPMSolverSinglestepScheduler", KARRAS | {"lower_order_final": True}), ("UniPCMultistepScheduler", KARRAS),
    ("UniPCMultistepScheduler", COSINE | KARRAS), ("UniPCMultistepScheduler", FLOW | {"flow_shift": 3.0}),
    ("UniPCMultistepScheduler", FLOW | KARRAS), ("DEISMultistepScheduler", COSINE | KARRAS),
    ("SASolverScheduler", KARRAS), ("EulerDiscreteScheduler", {}), ("EulerDiscreteScheduler", COSINE | KARRAS),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}), ("EulerDiscreteScheduler", SVD),
    ("EulerDiscreteScheduler", SNR), ("EulerDiscreteScheduler", SNR | LATENT),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}), ("EulerAncestralDiscreteScheduler", SNR),
    ("HeunDiscreteScheduler", KARRAS), ("KDPM2DiscreteScheduler", {}), ("KDPM2AncestralDiscreteScheduler", KARRAS),
    ("LMSDiscreteScheduler", KARRAS), ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchHeunDiscreteScheduler", {}), ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.1}),
    ("FlowMatchEulerDiscreteScheduler", {"use_exponential_sigmas": True}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}), ("EulerDiscreteScheduler", LATENT | LEADING),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True}), ("EulerDiscreteScheduler", TRAILING),
    ("EulerAncestralDiscreteScheduler", LEADING), ("DPMSolverMultistepScheduler", TRAILING),
    ("DPMSolverMultistepScheduler", LEADING), ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
    ("DPMSolverSinglestepScheduler", {"lower_order_final": True}), ("UniPCMultistepScheduler", SNR),
    ("UniPCMultistepScheduler", LEADING), ("DEISMultistepScheduler", TRAILING), ("LMSDiscreteScheduler", LEADING),
    ("HeunDiscreteScheduler", TRAILING), ("KDPM2DiscreteScheduler", LEADING), ("EDMEulerScheduler", {}),
    ("EDMEulerScheduler", {"sigma_schedule": "exponential", "prediction_type": "v_prediction"}),
    ("EDMDPMSolverMultistepScheduler", {}), ("EDMDPMSolverMultistepScheduler", {"sigma_min": 0.1}),
]  # fmt: skip
WITH_STEPS = [
    ("DDIMScheduler", {}), ("DDIMScheduler", SNR), ("DDIMScheduler", SNR | LATENT), ("DDPMScheduler", COSINE),
    ("PNDMScheduler", {"skip_prk_steps": True}), ("PNDMScheduler", {}), ("LCMScheduler", {}), ("TCDScheduler", {}),
    ("UnCLIPScheduler", {}), ("DDIMScheduler", LEADING), ("DDPMScheduler", TRAILING),
    ("PNDMScheduler", {"skip_prk_steps": True} | TRAILING), ("PNDMScheduler", {"skip_prk_steps": True} | LEADING),
]  # fmt: skip
ALL = [pytest.param(*case, id="-".join([case[0], *map(str, case[1].values())])) for case in WITH_SIGMAS + WITH_STEPS]


def scheduler_of(name, options):
    return getattr(diffusers, name)(**options)


def told_times(scheduler):
    """A network that notes its times, its denoiser, and the notes."""
    seen = []

    def net(x, t):
        seen.append(float(t[0]))
        return 0 * x

    return from_diffusers(net, scheduler, shape=(1, 2, 2)), seen


class TestLevels:
    @pytest.mark.filterwarnings("ignore::fastcrit.errors.ConventionWarning")
    @pytest.mark.parametrize(("name", "options"), ALL)
    def test_go_straight_into_sample(self, name, options):
        scheduler = scheduler_of(name, options)
        before = copy.deepcopy(vars(scheduler))
        levels = scheduler_levels(scheduler, STEPS)
        assert np.isfinite(levels).all()
        assert (np.diff(levels) < 0).all()
        assert vars(scheduler).keys() == before.keys()  # left as it was
        assert str(scheduler.timesteps) == str(before["timesteps"])
        D, _ = told_times(scheduler)
        assert torch.isfinite(sample(D, n_samples=1, levels=levels, solver="euler")).all()

    @pytest.mark.parametrize(("name", "options"), WITH_SIGMAS)
    def test_are_the_sigmas_of_the_loop_each_once(self, name, options):
        scheduler = scheduler_of(name, options)
        scheduler.set_timesteps(STEPS)
        sigmas = scheduler.sigmas.double().numpy()
        if options.get("invert_sigmas"):
            sigmas = 1 - sigmas
        if name.startswith("FlowMatch") or options.get("use_flow_sigmas"):
            # The first is t = 1, or 1 - 1e-6 of UniPC: no level of a process that has begun.
            sigmas = sigmas[sigmas < 0.99999]
            sigmas = sigmas / (1 - sigmas)
            levels = scheduler_levels(scheduler)
            assert len(levels) >= len(np.unique(sigmas))
            levels = levels[len(levels) - len(np.unique(sigmas)) :]
        else:
            levels = scheduler_levels(scheduler)
        np.testing.assert_allclose(levels, np.unique(sigmas)[::-1], rtol=FLOAT32)

    def test_of_karras_spacing_on_a_cosine_table(self):
        """What stood there was the table's level 641.66 four times."""
        scheduler = diffusers.DPMSolverMultistepScheduler(**COSINE, **KARRAS)
        found = scheduler_levels(scheduler, 20)[:4]
        np.testing.assert_allclose(found, [20291.303, 14547.569, 10257.850, 7101.486], rtol=FLOAT32)

    @pytest.mark.parametrize(("name", "options"), WITH_STEPS)
    def test_of_schedulers_without_sigmas_are_those_of_their_steps(self, name, options):
        scheduler = scheduler_of(name, options)
        scheduler.set_timesteps(STEPS)
        abar = scheduler.alphas_cumprod.double().numpy()
        table = np.sqrt((1 - abar) / np.maximum(abar, 1e-300))
        top = table[abar > 0].max()  # in place of zero terminal SNR
        steps = np.unique(scheduler.timesteps.numpy())[::-1]
        np.testing.assert_allclose(scheduler_levels(scheduler, STEPS), [*np.minimum(table[steps], top), 0], rtol=1e-12)

    def test_of_flow_matching_begin_at_the_highest_finite_level(self):
        for shift in (1.0, 3.0):
            levels = scheduler_levels(diffusers.FlowMatchEulerDiscreteScheduler(shift=shift), STEPS)
            assert levels[0] == pytest.approx(999 * shift)
            assert levels[-1] == 0
            assert len(levels) == STEPS + 1
        every = scheduler_levels(diffusers.FlowMatchEulerDiscreteScheduler(), 1000)
        assert every[:2] == pytest.approx([999, 499], rel=1e-4)  # t = 1 has no place above 0.999
        assert len(every) == 1000

    def test_as_the_scheduler_was_told(self):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        with pytest.raises(
            ValueError, match=r"cannot take 10 steps by set_timesteps\(10\) \(.*mu.*call its set_timestep"
        ):
            scheduler_levels(scheduler, STEPS)
        with pytest.raises(ValueError, match=r"by mu from base_shift 0\.5 to max_shift 1\.15.*steps\(10, mu=\.\."):
            scheduler_levels(scheduler, STEPS)
        with pytest.raises(ValueError, match="n: FlowMatchEulerDiscreteScheduler was not told a number of steps"):
            scheduler_levels(scheduler)
        scheduler.set_timesteps(STEPS, mu=0.7)
        t = scheduler.sigmas.double().numpy()[1:]
        np.testing.assert_allclose(scheduler_levels(scheduler)[1:], t / (1 - t), rtol=FLOAT32)

    def test_of_dynamic_shifting_begin_above_its_first_finite_one(self):
        """The fixed shift of its config, which dynamic shifting takes the place of, moved the first level alone."""
        for shift in (1.0, 3.0):
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=shift)
            scheduler.set_timesteps(STEPS, mu=0.7)
            assert scheduler_levels(scheduler)[0] == 999

    @pytest.mark.parametrize("n", [2, STEPS])
    def test_of_a_shift_to_a_terminal_are_those_of_the_loop(self, n):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1, shift=2.0)
        levels = scheduler_levels(scheduler, n)
        assert levels[-2:] == pytest.approx([1 / 9, 0])
        scheduler.set_timesteps(n)
        t = scheduler.sigmas.double().numpy()[1:]
        np.testing.assert_allclose(levels[1:], t / (1 - t), rtol=FLOAT32)

    @pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
    def test_that_are_no_numbers_are_refused(self):
        with pytest.raises(ValueError, match=r"levels that are no numbers, .*a single step, which it stretches by 0/0"):
            scheduler_levels(diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1), 1)

    def test_of_times_that_are_not_those_of_the_sigmas_are_refused(self):
        """Those are shifted, and times of one's own are not."""
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(timesteps=[900.0, 500.0, 100.0])
        with pytest.raises(ValueError, match=r"passes t = 500 at sigma = 0\.75; tell it sigmas"):
            scheduler_levels(scheduler)
        scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.1])
        np.testing.assert_allclose(scheduler_levels(scheduler), [27, 3, 1 / 3, 0], rtol=1e-5)

    def test_of_every_scheduler_of_diffusers_fall_or_are_refused(self):
        known = 0
        for name in sorted(n for n in dir(diffusers) if n.endswith("Scheduler")):
            try:
                scheduler = getattr(diffusers, name)()
            except (TypeError, ImportError):  # of other things than noise, or with a library that is not there
                continue
            try:
                levels = scheduler_levels(scheduler, STEPS)
            except (TypeError, ValueError) as error:
                assert name in str(error) or "prediction_type" in str(error)  # noqa: PT017 (either is right)
                continue
            known += 1
            assert np.isfinite(levels).all()
            assert (np.diff(levels) < 0).all()
            assert len(levels) >= STEPS
        assert known >= 25

    def test_of_time_steps_of_ones_own(self):
        """DDPM then forgets the number of its steps."""
        scheduler = diffusers.DDPMScheduler()
        scheduler.set_timesteps(timesteps=[900, 500, 100])
        table = scheduler.alphas_cumprod.double().numpy()[[900, 500, 100]]
        np.testing.assert_allclose(scheduler_levels(scheduler), [*np.sqrt((1 - table) / table), 0], rtol=FLOAT32)

    @pytest.mark.parametrize("error", [KeyError(None), AttributeError("stages")])
    def test_that_a_scheduler_cannot_make_are_an_error_that_names_it(self, error):
        class Staged(diffusers.DDIMScheduler):
            def set_timesteps(self, *args, **options):
                raise error

        with pytest.raises(ValueError, match=r"scheduler: Staged cannot take 10 steps by set_timesteps\(10\)"):
            scheduler_levels(Staged(), STEPS)

    def test_of_edms_schedulers(self):
        levels = scheduler_levels(diffusers.EDMEulerScheduler(), STEPS)
        np.testing.assert_allclose(levels, [*fc.schedules.EDM().levels(STEPS), 0], rtol=FLOAT32)

    @pytest.mark.parametrize(
        "options",
        [{}, {"sigma_schedule": "exponential"}, {"prediction_type": "v_prediction"}, {"sigma_min": 0.1, "rho": 5.0}],
    )
    @pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
    def test_and_times_of_edms_schedulers_are_those_of_their_loops(self, name, options):
        scheduler = scheduler_of(name, options)
        scheduler.set_timesteps(STEPS)
        levels = scheduler_levels(scheduler)
        np.testing.assert_allclose(levels, scheduler.sigmas.double().numpy(), rtol=FLOAT32)
        D, seen = told_times(scheduler)
        for s in levels[:-1]:
            D(torch.zeros(1, 1, 2, 2), s)
        np.testing.assert_allclose(seen, scheduler.timesteps.numpy(), atol=1e-5)

    @pytest.mark.filterwarnings("ignore:.*no posterior mean:fastcrit.errors.ConventionWarning")
    @pytest.mark.parametrize("n", [1, 2, 40])
    def test_and_times_of_consistency_models_are_those_of_their_loop(self, n):
        """The lowest is the end: there D is the state itself."""
        scheduler = diffusers.CMStochasticIterativeScheduler()
        scheduler.set_timesteps(n)
        levels = scheduler_levels(scheduler)
        np.testing.assert_allclose(levels, np.unique(scheduler.sigmas.double().numpy())[::-1], rtol=FLOAT32)
        D, seen = told_times(scheduler)
        for s in levels[:-1]:
            D(torch.zeros(1, 1, 2, 2), s)
        np.testing.assert_allclose(seen, scheduler.timesteps[: len(seen)].numpy(), rtol=1e-5)
        y = torch.randn(1, 1, 2, 2)
        torch.testing.assert_close(D(y, scheduler.config.sigma_min), y)

    @pytest.mark.parametrize(
        ("scheduler", "error", "message"),
        [
            (
                diffusers.DDIMInverseScheduler(),
                ValueError,
                "runs from the data to the noise; pass the one that samples",
            ),
            (diffusers.ScoreSdeVeScheduler(), TypeError, "how ScoreSdeVeScheduler spells noise"),
            (diffusers.FlowMapEulerDiscreteScheduler(), TypeError, "how FlowMapEulerDiscreteScheduler spells noise"),
            (
                diffusers.DPMSolverMultistepScheduler(**FLOW, **KARRAS),
                ValueError,
                "sigmas up to 157.407, and those of f",
            ),
            (diffusers.IPNDMScheduler(), TypeError, "IPNDMScheduler has no table of alpha-bar"),
            ("ddim", TypeError, "expected a scheduler of diffusers, got str"),
        ],
    )
    def test_that_are_not_known_are_refused(self, scheduler, error, message):
        with pytest.raises(error, match=message):
            scheduler_levels(scheduler, STEPS)

    def test_of_no_steps_are_refused(self):
        with pytest.raises(ValueError, match="n: expected an integer of at least 1"):
            scheduler_levels(diffusers.DDIMScheduler(), 0)


class TestTimes:
    @pytest.mark.parametrize(("name", "options"), ALL)
    def test_are_those_that_the_loop_passes(self, name, options):
        """Schedulers round times to integers, or cut them off: one step at most. Begin of a flow: t = 0.999 for 1."""
        scheduler = scheduler_of(name, options)
        scheduler.set_timesteps(STEPS)
        D, seen = told_times(scheduler)
        for i, t in enumerate(scheduler.timesteps.tolist()):
            level = step_level(scheduler, i)
            if level == 0:  # KDPM2's ancestral one has 0 between its last levels
                continue
            D(torch.zeros(1, 1, 2, 2), level)
            assert abs(seen[-1] - t) <= 1.0 + 1e-3

    @pytest.mark.parametrize(("options", "own"), [(SVD, 1e-5), ({}, 1e-3), (SNR, 1e-3), (SNR | LATENT, 1e-3)])
    def test_of_euler_are_its_own(self, options, own):
        """To the rounding of times in float32; times of the continuous one are log(sigma)/4."""
        scheduler = diffusers.EulerDiscreteScheduler(**options)
        scheduler.set_timesteps(STEPS)
        D, seen = told_times(scheduler)
        for s in scheduler.sigmas[:-1].double().tolist():
            D(torch.zeros(1, 1, 2, 2), s)
        np.testing.assert_allclose(seen, scheduler.timesteps.numpy(), atol=own)

    @pytest.mark.parametrize("options", [SVD, SNR, SNR | LATENT, {"prediction_type": "sample"}, COSINE])
    def test_and_so_is_the_denoised_image(self, options):
        scheduler = diffusers.EulerDiscreteScheduler(**options)
        scheduler.set_timesteps(STEPS)
        inner = SmallConvolutional().eval()

        def net(x, t):
            return inner(x, t + 2)  # which knows no negative times

        D = from_diffusers(net, scheduler)
        generator = torch.Generator().manual_seed(0)
        for t, s in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
            y = s * torch.randn(2, 1, 8, 8, generator=generator)
            with torch.no_grad():
                out = net(scheduler.scale_model_input(y, t), t.expand(2))
                expected = scheduler.step(out, t, y).pred_original_sample
                # Both round in float32: D and s eps are of the size of s.
                torch.testing.assert_close(D(y, s), expected, rtol=1e-4, atol=1e-5 * max(1.0, s))

    def test_of_a_network_whose_embedding_is_learned_are_steps(self):
        table = torch.nn.Embedding(1000, 1).eval()

        def net(x, t):
            return x * table(t)[:, :, None, None]

        net.config = {"time_embedding_type": "learned"}  # as UNet2DModel says it
        scheduler = diffusers.DDIMScheduler()
        D = from_diffusers(net, scheduler)
        vp = fc.schedules.VP(scheduler.alphas_cumprod.double().numpy())
        y = torch.randn(2, 1, 4, 4)
        s = float(vp.s(400.4))
        x = float(vp.alpha(s)) * y
        expected = y - s * net(x, torch.tensor([400, 400]))
        torch.testing.assert_close(D(y, s), expected)
        torch.testing.assert_close(D(y, torch.tensor([s, s])), expected)
        with pytest.raises(TypeError, match=r"takes integers alone; wrap it: .*t\.round\(\)\.long\(\)"):
            from_diffusers(lambda x, t: net(x, t), scheduler)(y, s)

    def test_of_a_respaced_table_are_mapped(self):
        """250 of a network's 1000 steps: without a map the time is wrong by a factor of 4."""
        abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        whole = fc.schedules.VP(abar)
        steps = np.arange(3, 1000, 4)
        respaced = fc.schedules.VP(abar[steps], time_map=steps)
        seen = []
        D = fc.diffusion.from_epsilon(lambda x, t: seen.append(float(t[0])) or 0 * x, respaced)
        D(torch.zeros(1, 1, 2, 2), float(whole.s(503)))
        assert seen == pytest.approx([503], abs=1e-3)
        np.testing.assert_allclose(respaced.s(steps), whole.s(steps), rtol=1e-12)
        np.testing.assert_allclose(respaced.levels(3), whole.s([999, 501, 3]), rtol=1e-4)
        np.testing.assert_array_equal(respaced.times, steps)
        betas = 1 - abar[steps] / np.append(1, abar[steps][:-1])
        scheduler = diffusers.DDPMScheduler(num_train_timesteps=250, trained_betas=betas)
        D = from_diffusers(lambda x, t: seen.append(float(t[0])) or 0 * x, scheduler, time_map=steps)
        D(torch.zeros(1, 1, 2, 2), float(whole.s(503)))
        # The scheduler's table is a float32 product of 250 factors: 1e-5 of s, and ten times as many steps.
        assert seen[-1] == pytest.approx(503, abs=1e-2)
        for bad in (steps[:-1], steps[::-1], np.full(250, np.nan)):
            with pytest.raises(ValueError, match="time_map: expected 250 strictly rising times"):
                fc.schedules.VP(abar[steps], time_map=bad)
            with pytest.raises(ValueError, match="time_map: expected 250 strictly rising times"):
                from_diffusers(lambda x, t: x, scheduler, time_map=bad)
        with pytest.raises(ValueError, match="time_map: FlowMatchEulerDiscreteScheduler has no table"):
            from_diffusers(lambda x, t: x, diffusers.FlowMatchEulerDiscreteScheduler(), time_map=steps)


class TestZeroTerminalSnr:
    @pytest.mark.parametrize("options", [SNR, SNR | LATENT], ids=["default betas", "latent betas"])
    @pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDIMScheduler"])
    def test_is_capped_at_a_finite_level(self, name, options):
        """Default betas put 2^-24 above the entry before it: the level 4096 below 15 406."""
        scheduler = scheduler_of(name, options)
        D = from_diffusers(SmallConvolutional().eval(), scheduler)
        assert 2000 < D.highest < 16000
        assert torch.isfinite(D(D.highest * torch.ones(1, 1, 4, 4), D.highest)).all()
        with pytest.raises(ValueError, match=r"above .*, the highest noise level"):
            D(torch.ones(1, 1, 4, 4), 1.01 * D.highest)


class TestCallback:
    @pytest.mark.parametrize(("name", "options"), ALL)
    def test_has_the_level_at_which_the_network_is_asked(self, name, options):
        """Beside the loop's own x: its standard deviation where data are 0, over that of the signal."""
        scheduler = scheduler_of(name, options)
        pipe, used = types.SimpleNamespace(), []
        callback = fc.diffusion.to_diffusers_callback(Level(), scheduler)  # before the pipeline sets its steps
        scheduler.set_timesteps(STEPS)
        x = torch.ones(1, 1, 2, 2)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # as pipelines do: some steps have the same rounded time
        for i, t in enumerate(scheduler.timesteps):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
            x = scheduler.step(torch.zeros_like(x), t, 0 * x).prev_sample
            callback(pipe, i, t, {})
            used.append(pipe._guidance_scale)
        expected = [step_level(scheduler, i) for i in range(1, len(scheduler.timesteps))]
        np.testing.assert_allclose(used[:-1], np.maximum(expected, 1.000001), rtol=1e-12)

    def test_of_a_pipeline_that_begins_in_the_middle(self):
        for scheduler in (diffusers.DDIMScheduler(), diffusers.EulerDiscreteScheduler()):
            scheduler.set_timesteps(STEPS)
            levels = scheduler_levels(scheduler)
            pipe = types.SimpleNamespace()
            callback = fc.diffusion.to_diffusers_callback(Level(), scheduler)
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(2)
            t = scheduler.timesteps[2]
            scheduler.step(torch.zeros(1, 1, 2, 2), t, torch.zeros(1, 1, 2, 2))
            callback(pipe, 0, t, {})
            assert pipe._guidance_scale == pytest.approx(levels[3])

    def test_of_continuous_time(self):
        """The next level was read as a step of the table: 0.017 for hundreds."""
        scheduler = diffusers.EulerDiscreteScheduler(**SVD)
        scheduler.set_timesteps(STEPS)
        assert step_level(scheduler, 0) == pytest.approx(700)
        assert step_level(scheduler, STEPS) is None

    def test_refuses_what_is_no_weight_or_no_known_scheduler(self):
        with pytest.raises(TypeError, match="weight: expected a Weight"):
            fc.diffusion.to_diffusers_callback(2.0, diffusers.DDIMScheduler())
        with pytest.raises(TypeError, match="ScoreSdeVeScheduler"):
            fc.diffusion.to_diffusers_callback(Constant(2.0), diffusers.ScoreSdeVeScheduler())


class Level(fc.diffusion.Weight):
    """The level itself."""

    def _weight(self, s):
        return s


class TestEdges:
    @pytest.mark.parametrize(("name", "options"), ALL)
    def test_that_are_levels_of_a_table(self, name, options):
        """(low, high] between two levels as decimals or as float32 says: the upper one is in, the lower one is not."""
        scheduler = scheduler_of(name, options)
        scheduler.set_timesteps(STEPS)
        levels = scheduler_levels(scheduler)
        high, low = levels[2], levels[4]
        for edges in ((low, high), (float(f"{low:.7g}"), float(f"{high:.7g}")), np.float32([low, high]).tolist()):
            inside = [1.0, 1.0, 4.0, 4.0, 1.0, 1.0]
            for seen in (levels, levels.astype(np.float32)):
                assert Interval(*edges, 4.0)(seen[:6]).tolist() == inside
                center, width = np.sqrt(edges[0] * edges[1]), np.log(edges[1] / edges[0])
                assert Pulse(center, width, 4.0)(seen[:6]).tolist() == inside

    @pytest.mark.parametrize("edge", [0.28, 5.42, 2.9, 1.61])
    def test_to_a_few_roundings_of_float32_and_no_more(self, edge):
        w = Interval(edge, 10 * edge, 4.0) + Interval(edge / 10, edge, 7.0)
        for s in (edge, float(np.float32(edge)), np.nextafter(np.float32(edge), np.float32(9))):
            assert w(float(s)) == 1 + 7
        assert w(edge * (1 + 1e-5)) == 4 + 1
        assert w(edge * (1 - 1e-5)) == 1 + 7

    def test_of_wide_pulses(self):
        assert Pulse(1.0, 5000.0, 3.0)([1e-30, 1.0, 1e30]).tolist() == [3, 3, 3]
        assert Interval(0.0, 2.0, 3.0)([1e-30, 2.0]).tolist() == [3, 3]
