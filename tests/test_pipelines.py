"""Pipelines of diffusers: D is what their own loops compute, images are what they decode, prompts are classes."""

from __future__ import annotations

import functools
import math
import re

import pytest
import torch

import fastcrit as fc
from fastcrit.diffusion import from_pipeline, guided
from tests import text_pipelines
from tests.networks import PLAIN, random_unet
from tests.text_pipelines import NEGATIVE, PROMPTS

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

TEXT = (
    "stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "pixart_sigma", "pixart_alpha", "flux",
    "aura_flow", "sana", "lumina_2",
)  # fmt: skip
WEIGHT = 3.0
# Of a pipeline's call, and states' sides, where it has other defaults than what its small network was made for.
CALLS = {
    "pixart_sigma": {"use_resolution_binning": False}, "pixart_alpha": {"use_resolution_binning": False},
    "flux": {"height": 16, "width": 16}, "aura_flow": {"height": 16, "width": 16},
    "sana": {"height": 32, "width": 32, "use_resolution_binning": False},
    "lumina_2": {"cfg_normalization": False},  # which gives what is guided the norm of what is not
}  # fmt: skip
SHAPES = {"flux": (4, 8, 8), "sana": (4, 16, 16)}
# FLUX's loop has no guidance without a negative prompt.
CASES = [(name, negative) for name in TEXT for negative in (NEGATIVE, "") if (name, negative) != ("flux", "")]


# Diffusers gives numpy tensors, which know no copy=False.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def pipelines():
    made = {}

    def of(name):
        if name not in made:
            made[name] = getattr(text_pipelines, name)()
            made[name].set_progress_bar_config(disable=True)
        return made[name]

    return of


@pytest.fixture(scope="module")
def denoisers(pipelines):
    made = {}

    def of(name, negative=NEGATIVE):
        if (name, negative) not in made:
            made[name, negative] = from_pipeline(pipelines(name), PROMPTS, negative, shape=SHAPES.get(name))
        return made[name, negative]

    return of


def run(pipe, name, monkeypatch, **more):
    """What the pipeline returns, and of each step of its loop what the guided network said, time and state."""
    steps, step = [], pipe.scheduler.step

    @functools.wraps(step)  # its signature says whether it takes a generator
    def told(output, t, sample, *args, **kwargs):
        steps.append((output.clone(), float(t), sample.clone()))
        return step(output, t, sample, *args, **kwargs)

    weight = "true_cfg_scale" if name == "flux" else "guidance_scale"
    given = {"num_inference_steps": 4, weight: WEIGHT, **CALLS.get(name, {}), **more}
    with monkeypatch.context() as patch:
        patch.setattr(pipe.scheduler, "step", told)
        return pipe(PROMPTS[1], generator=torch.Generator().manual_seed(3), **given).images, steps


def denoised(pipe, name, output, t, x):
    """State y, noise level and denoised image, by the definitions of the pipeline's scheduler."""
    if name == "flux":
        output, x = (pipe._unpack_latents(v, 16, 16, pipe.vae_scale_factor) for v in (output, x))
    if "FlowMatch" in type(pipe.scheduler).__name__:
        sigma = t / 1000
        return x / (1 - sigma), sigma / (1 - sigma), x - sigma * output
    alpha_bar = float(pipe.scheduler.alphas_cumprod[round(t)].double())
    s = ((1 - alpha_bar) / alpha_bar) ** 0.5
    y = x if type(pipe.scheduler).__name__.startswith("Euler") else x / alpha_bar**0.5
    return y, s, y - s * output


class TestTextPipelines:
    @pytest.mark.parametrize(("name", "negative"), CASES)
    def test_denoised_images_are_those_of_the_loop(self, pipelines, denoisers, monkeypatch, name, negative):
        pipe = pipelines(name)
        # Without a negative prompt: as its call has it, which for SDXL are zeros.
        _, steps = run(
            pipe, name, monkeypatch, output_type="latent", **({"negative_prompt": negative} if negative else {})
        )
        D = denoisers(name, negative)
        D = guided(D, None, fc.diffusion.Constant(WEIGHT))
        compared = 0
        for output, t, x in steps:
            if t >= 999.5:  # pure noise, which no level belongs to
                continue
            y, s, expected = denoised(pipe, name, output, t, x)
            found = D(y.float(), s, [1])
            torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-5 * float(expected.abs().max()))
            compared += 1
        assert compared >= 3

    @pytest.mark.parametrize("name", TEXT)
    def test_decode_is_its_own(self, pipelines, denoisers, monkeypatch, name):
        pipe, D = pipelines(name), denoisers(name)
        latents, _ = run(pipe, name, monkeypatch, output_type="latent")
        expected, _ = run(pipe, name, monkeypatch, output_type="pt")
        if name == "flux":
            latents = pipe._unpack_latents(latents, 16, 16, pipe.vae_scale_factor)
        with torch.no_grad():
            images = D.decode(latents)
        assert D.card["pixels_per_site"] == images.shape[-1] // latents.shape[-1] == 2
        torch.testing.assert_close((images / 2 + 0.5).clamp(0, 1), expected.float(), rtol=0, atol=2e-6)

    @pytest.mark.parametrize("name", TEXT)
    def test_a_prompt_is_a_class_and_no_label_the_negative_one(self, denoisers, name):
        D = denoisers(name)
        assert (D.classes, D.null_label, D.unlabelled) == (4, 3, True)
        about = D.card["prompts"]
        assert (about["text"], about["negative"]) == (PROMPTS, NEGATIVE)
        assert re.fullmatch("[0-9a-f]{64}", about["sha256"])
        y = torch.randn(4, *D.shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(D(y, 1.5, [3, 3, 3, 3]), D(y, 1.5), rtol=0, atol=0)
        same = D(y[:1].expand(4, -1, -1, -1), 1.5, [0, 1, 2, 3])
        assert all(not torch.equal(same[i], same[j]) for i in range(4) for j in range(i))

    def test_other_prompts_and_another_negative_one_have_another_checksum(self, pipelines, denoisers):
        pipe = pipelines("stable_diffusion")
        sums = {
            from_pipeline(pipe, prompts, negative).card["prompts"]["sha256"]
            for prompts, negative in (
                (PROMPTS, NEGATIVE),
                (PROMPTS[::-1], NEGATIVE),
                (PROMPTS, ""),
                (PROMPTS, NEGATIVE),
            )
        }
        assert len(sums) == 3

    def test_the_pipeline_is_not_kept(self):
        import gc
        import weakref

        pipe = text_pipelines.stable_diffusion()
        D = from_pipeline(pipe, PROMPTS)
        encoder, net = weakref.ref(pipe.text_encoder), weakref.ref(pipe.unet)
        del pipe
        gc.collect()
        assert encoder() is None
        assert net() is not None
        assert D.decode(torch.zeros(1, 4, 8, 8)).shape == (1, 3, 16, 16)

    def test_sizes_that_sdxl_is_told_are_those_of_its_images(self, pipelines):
        """Of other states, others; D without them would be the same."""
        pipe = pipelines("stable_diffusion_xl")
        small, large = from_pipeline(pipe, PROMPTS), from_pipeline(pipe, PROMPTS, shape=(4, 16, 16))
        assert small.card["prompts"]["sha256"] != large.card["prompts"]["sha256"]

    def test_in_half_precision(self):
        pipe = text_pipelines.stable_diffusion().to(torch.bfloat16)
        D = from_pipeline(pipe, PROMPTS, NEGATIVE)
        assert D.dtype == torch.bfloat16
        y = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        exact = from_pipeline(text_pipelines.stable_diffusion(), PROMPTS, NEGATIVE)
        # bfloat16 has 8 bits; D at this level is of order 1, and a dozen layers round.
        torch.testing.assert_close(D(y, 0.5, [0, 1]), exact(y, 0.5, [0, 1]), rtol=0, atol=0.1)
        assert D.decode(y).dtype == torch.float32

    def test_a_decoder_that_overflows_in_half_precision_is_widened_for_its_time(self):
        pipe = text_pipelines.stable_diffusion()
        wide = from_pipeline(pipe, PROMPTS).decode(torch.ones(1, 4, 8, 8))
        pipe.vae.register_to_config(force_upcast=True)
        pipe.vae.half()
        D = from_pipeline(pipe, PROMPTS)
        torch.testing.assert_close(D.decode(torch.ones(1, 4, 8, 8)), wide, rtol=0, atol=0.02)  # rounded weights
        assert pipe.vae.dtype == torch.float16


class TestPulse:
    """In whole pipelines, whose loops go on with the weight that the callback has set."""

    @staticmethod
    def weights(pipe, pulse, monkeypatch, steps=12):
        """Of each step its level, its weight, by what the network returned and the scheduler was given, and its x."""
        part = "unet" if hasattr(pipe, "unet") else "transformer"
        network, step, seen, answers = getattr(pipe, part), pipe.scheduler.step, [], []

        @functools.wraps(step)
        def told(output, t, sample, *args, **kwargs):
            (without,), (labelled,) = answers[-1].chunk(2)
            change = (labelled - without).double().flatten()
            weight = float((output[0] - without).double().flatten() @ change / (change @ change))
            if "FlowMatch" in type(pipe.scheduler).__name__:
                level = float(t) / (1000 - float(t)) if t < 1000 else float("inf")
            else:
                alpha_bar = float(pipe.scheduler.alphas_cumprod[round(float(t))].double())
                level = ((1 - alpha_bar) / alpha_bar) ** 0.5
            seen.append((level, weight, sample.clone()))
            return step(output, t, sample, *args, **kwargs)

        handle = network.register_forward_hook(lambda net, given, out: answers.append(out[0].clone()))
        try:
            with monkeypatch.context() as patch:
                patch.setattr(pipe.scheduler, "step", told)
                images = pipe(
                    PROMPTS[1], negative_prompt=NEGATIVE, num_inference_steps=steps, guidance_scale=1.001,
                    generator=torch.Generator().manual_seed(3), output_type="latent",
                    callback_on_step_end=fc.diffusion.to_diffusers_callback(pulse, pipe.scheduler),
                ).images  # fmt: skip
        finally:
            handle.remove()
        return images, seen

    @staticmethod
    def assert_guided_in_the_pulse_alone(seen, pulse):
        inside = [abs(math.log(s / pulse.center)) <= pulse.width / 2 for s, *_ in seen]
        assert 0 < sum(inside) < len(inside)
        expected = [pulse.weight if each else 1.0 for each in inside]
        # The first step has what the pipeline was begun with; weights are quotients of differences in float32.
        assert [w for _, w, _ in seen] == pytest.approx([1.001, *expected[1:]], abs=2e-3)

    @pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3"])
    def test_guides_the_steps_inside_it_and_no_others(self, pipelines, monkeypatch, name):
        pulse = fc.diffusion.Pulse(center=2.0, width=1.5, weight=4.0)
        _, seen = self.weights(pipelines(name), pulse, monkeypatch)
        self.assert_guided_in_the_pulse_alone(seen, pulse)

    # It is random, and does not know what noise is.
    @pytest.mark.filterwarnings("ignore:.*at the noise level:fastcrit.errors.ConventionWarning")
    def test_that_was_found_in_a_pipeline_does_there_what_it_does_in_its_samples(self, pipelines, monkeypatch):
        pipe = pipelines("stable_diffusion_3")
        D = from_pipeline(pipe, PROMPTS, NEGATIVE)
        found = fc.diffusion.find_pulse(
            D, 1, samples=8, levels=9, gain_every=1, high=20.0, low=0.2, solver="euler", width=1.5
        )
        assert found.low < found.pulse.center < found.high
        images, seen = self.weights(pipe, found.pulse, monkeypatch)
        self.assert_guided_in_the_pulse_alone(seen, found.pulse)
        levels, (s, _, x) = [s for s, *_ in seen[1:]], seen[1]  # the first is t = 1, that of no state y
        expected = fc.diffusion.sample(
            D, 1, 1, [*levels, 0.0], "euler", initial=x * (1 + s), guidance=found.pulse
        )  # fmt: skip
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))

    @pytest.mark.parametrize("name", ["sana", "aura_flow", "flux", "lumina_2"])
    def test_is_refused_by_pipelines_that_keep_their_first_scale(self, pipelines, monkeypatch, name):
        """Their loops call the callback and read a variable of their own."""
        pipe = pipelines(name)
        callback = fc.diffusion.to_diffusers_callback(fc.diffusion.Pulse(2.0, 1.5, 4.0), pipe.scheduler)
        with pytest.raises(TypeError, match=f"pipeline: {type(pipe).__name__} keeps the guidance scale that it began"):
            run(pipe, name, monkeypatch, output_type="latent", callback_on_step_end=callback)


class TestOtherPipelines:
    def test_without_text(self):
        net, scheduler = random_unet(**PLAIN, num_class_embeds=4), diffusers.DDPMScheduler()
        y = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        for pipeline in (diffusers.DDPMPipeline, diffusers.DDIMPipeline):
            D = from_pipeline(pipeline(net, scheduler), null_label=3)
            expected = fc.diffusion.from_diffusers(net, scheduler_of(pipeline, scheduler), null_label=3)
            torch.testing.assert_close(D(y, 1.0, [0, 2]), expected(y, 1.0, [0, 2]), rtol=0, atol=0)
            assert (D.classes, D.null_label, D.card) == (4, 3, {"pixels_per_site": 1})
            assert D.decode is None

    def test_class_conditional_transformer_with_its_decoder(self):
        net = diffusers.DiTTransformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=1, num_attention_heads=2,
            attention_head_dim=8, num_embeds_ada_norm=5,
        ).eval()  # fmt: skip
        pipe = diffusers.DiTPipeline(net, text_pipelines.vae(), diffusers.DDIMScheduler())
        D = from_pipeline(pipe)
        assert (D.classes, D.null_label, D.shape, D.card) == (6, 5, (4, 8, 8), {"pixels_per_site": 2})
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
            torch.testing.assert_close(D.decode(latents), expected, rtol=0, atol=0)
        with pytest.raises(ValueError, match=r"prompts: DiTPipeline reads no text; .*pipe\.get_label_ids"):
            from_pipeline(pipe, PROMPTS)
        with pytest.raises(ValueError, match="prompts: DiTPipeline reads no text"):
            from_pipeline(pipe, negative=NEGATIVE)


def scheduler_of(pipeline, scheduler):
    """What a pipeline makes of the scheduler it is given."""
    return diffusers.DDIMScheduler.from_config(scheduler.config) if "DDIM" in pipeline.__name__ else scheduler


class TestRefused:
    @pytest.mark.parametrize(
        ("prompts", "error", "message"),
        [
            (None, ValueError, r"prompts: StableDiffusionPipeline is a text model; pass prompts=\[\.\.\]"),
            ([], ValueError, "prompts: expected one at least, got none"),
            ("a cat", TypeError, "prompts: expected a list of texts, got 'a cat'"),
            (["a cat", 3], TypeError, "prompts: expected texts, got 3"),
            (["a cat", " "], ValueError, "got an empty one; no label is what stands for no prompt"),
            (["a cat", "a dog", "a cat"], ValueError, "expected different ones, got 'a cat' as number 0 and 2"),
            (["a very long tale of a cat", "a very long tale of a dog"], ValueError, "are the same to the text"),
        ],
    )  # fmt: skip
    def test_prompts_that_are_no_classes(self, pipelines, prompts, error, message):
        with pytest.raises(error, match=message):
            from_pipeline(pipelines("stable_diffusion"), prompts)

    def test_what_is_no_pipeline_known_here(self, pipelines):
        pipe = pipelines("stable_diffusion")
        other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        with pytest.raises(TypeError, match=r"got StableDiffusionImg2ImgPipeline, which is none .*from_pipe\(pipe\)"):
            from_pipeline(other, PROMPTS)
        assert from_pipeline(diffusers.StableDiffusionPipeline.from_pipe(other), PROMPTS).classes == 4
        with pytest.raises(TypeError, match="pipe: expected a pipeline of diffusers, got Conv2d"):
            from_pipeline(torch.nn.Conv2d(1, 1, 1))

    def test_a_text_encoder_in_training_mode(self):
        pipe = text_pipelines.stable_diffusion_3()
        pipe.text_encoder_3.train()
        with pytest.raises(ValueError, match=r"pipe: text_encoder_3 is in training mode.* call \.eval\(\)"):
            from_pipeline(pipe, PROMPTS)

    def test_another_null_condition(self, pipelines):
        with pytest.raises(ValueError, match="null_label: given with prompts"):
            from_pipeline(pipelines("stable_diffusion"), PROMPTS, null_label=2)
        with pytest.raises(TypeError, match="negative: expected a text, got None"):
            from_pipeline(pipelines("stable_diffusion"), PROMPTS, None)
