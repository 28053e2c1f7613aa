"""Every class of the table: D and sampling are those of the class's own pipeline, or of its loop where that is code of
the model's own repository; and a row with a wrong time or sign is seen to be wrong."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit.diffusion import network_classes
from fastcrit.diffusion.network_classes import TABLE
from tests.networks import random_unet, remote_edm2, remote_flow

diffusers = pytest.importorskip("diffusers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),  # numpy's, in diffusers' set_timesteps
    pytest.mark.filterwarnings("ignore:.*no posterior mean:fastcrit.errors.ConventionWarning"),
    pytest.mark.filterwarnings("ignore:.*follows it:fastcrit.errors.ConventionWarning"),  # networks are random
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),  # torch's, of mish in UNet1DModel
    pytest.mark.filterwarnings("ignore:.*does not accept.*|.*incorrect type.*|.*config attributes.*"),
]

PROMPTS, TOKENS = 2, 5
# What pipelines do not need for their loops.
PARTS = ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
DITS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "sample_size": 8, "in_channels": 2}
CROSS = {
    "sample_size": 8, "in_channels": 2, "out_channels": 2, "block_out_channels": (8, 8), "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 4,
}  # fmt: skip
XL = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 30
}  # fmt: skip
MASK = {"encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}


@dataclass(frozen=True)
class Case:
    """A tiny network of a class, and how it is run by others.

    ``run(net, scheduler, x, label, row, steps)`` is the pipeline's loop from ``x``, for one prompt or class.
    ``float32``: what of it computes in float32 whatever its weights are, so that derivatives agree to that alone.
    ``says_shape``: its config does.
    """

    build: Callable[[], Any]
    scheduler: Callable[[], Any]
    run: Callable[..., Any]
    conditioning: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (2, 8, 8)
    float32: str | None = None
    loop: bool = True
    says_shape: bool = True
    classes: int = 0


def text(width, **more):
    generator = torch.Generator().manual_seed(3)
    given = {"encoder_hidden_states": torch.randn(PROMPTS, TOKENS, width, generator=generator)}
    return given | {
        name: torch.randn(PROMPTS, size, generator=generator) if isinstance(size, int) else size
        for name, size in more.items()
    }


def euler():
    return diffusers.EulerDiscreteScheduler(**LATENT)


def flow():
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def of_unet(net, scheduler, x, label, row, steps):
    """The one pipeline of UNet2DModel that scales its input and takes classes."""
    pipe = diffusers.ConsistencyModelPipeline(net, scheduler)
    pipe.set_progress_bar_config(disable=True)
    scheduler.set_timesteps(steps)
    pipe(1, class_labels=label, num_inference_steps=steps, latents=x, output_type="pt")


def of_pipeline(name, part="transformer", **options):
    def run(net, scheduler, x, label, row, steps):
        cls = getattr(diffusers, name)
        takes = inspect.signature(cls.__init__).parameters
        given = {key: None for key in takes if key.startswith(PARTS)} | {part: net, "scheduler": scheduler}
        if name == "StableDiffusionPipeline":
            given["requires_safety_checker"] = False
        pipe = cls(**given)
        pipe.set_progress_bar_config(disable=True)
        height, width = (n * pipe.vae_scale_factor for n in x.shape[2:])
        if name == "FluxPipeline":
            x = pipe._pack_latents(x, 1, *x.shape[1:])
        names = {
            "encoder_hidden_states": "prompt_embeds", "encoder_attention_mask": "prompt_attention_mask",
            "pooled_projections": "pooled_prompt_embeds", "text_embeds": "pooled_prompt_embeds",
        }  # fmt: skip
        embeds = {names[key]: value for key, value in row.items() if key in names}
        more = dict(options)
        if "guidance" in row:
            more["guidance_scale"] = float(row["guidance"])
        pipe(**embeds, height=height, width=width, latents=x, num_inference_steps=steps, output_type="latent", **more)

    return run


def of_dit(net, scheduler, x, label, row, steps):
    decoder = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=2)
    pipe = diffusers.DiTPipeline(net, decoder, scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe([label], guidance_scale=1.0, num_inference_steps=steps, output_type="pt")


def of_sit(net, scheduler, x, label, row, steps):
    """The loop of SiTPipeline and of LightningDiTPipeline, in the repositories of their weights."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        time = torch.full((len(x),), 1.0 - float(t) / scheduler.config.num_train_timesteps)
        out = net(hidden_states=x, timestep=time, class_labels=torch.tensor([label]), return_dict=True).sample
        x = scheduler.step(-out, t, x).prev_sample


def of_line(net, scheduler, x, label, row, steps):
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(net(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample


def of_edm2(net, scheduler, x, label, row, steps):
    """The Euler half of EDM2Pipeline's loop, which asks its scheduler for levels alone; noted as steps by hand."""
    scheduler.set_timesteps(steps)
    for sigma, following in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
        labels = torch.eye(net.config.num_class_embeds)[[label]]
        D = net(sample=x, sigma=sigma.reshape(1), class_labels=labels, force_fp32=True).sample
        moved = x + (following - sigma) * (x - D) / sigma
        scheduler.seen.append((float(sigma), x, D, moved))
        x = moved


def lumina():
    return diffusers.Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=2, hidden_size=24, num_layers=1, num_refiner_layers=1,
        num_attention_heads=1, num_kv_heads=1, multiple_of=8, axes_dim_rope=(8, 8, 8), axes_lens=(16, 16, 16),
        cap_feat_dim=8,
    )  # fmt: skip


RGB = (3, 8, 8)
UNET = {"in_channels": 3, "out_channels": 3, "sample_size": 8}  # as many as the pipeline has
CASES = {
    "UNet2DModel": Case(lambda: random_unet(**UNET), euler, of_unet, shape=RGB),
    "UNet2DModel of classes": Case(
        lambda: random_unet(**UNET, num_class_embeds=3), euler, of_unet, classes=3, shape=RGB
    ),
    "UNet2DModel by v": Case(
        lambda: random_unet(**UNET),
        lambda: diffusers.EulerDiscreteScheduler(**LATENT, prediction_type="v_prediction"), of_unet, shape=RGB,
    ),
    "UNet2DModel of EDM": Case(
        lambda: random_unet(**UNET, num_class_embeds=3), diffusers.EDMEulerScheduler, of_unet, classes=3, shape=RGB
    ),
    "UNet2DModel of EDM by v": Case(
        lambda: random_unet(**UNET), lambda: diffusers.EDMEulerScheduler(prediction_type="v_prediction"), of_unet,
        shape=RGB,
    ),
    "UNet2DModel by EDM's other solver": Case(
        lambda: random_unet(**UNET), diffusers.EDMDPMSolverMultistepScheduler, of_unet, loop=False,
        shape=RGB,
    ),
    "UNet2DModel of consistency": Case(
        lambda: random_unet(**UNET, num_class_embeds=3),
        lambda: diffusers.CMStochasticIterativeScheduler(clip_denoised=False, s_noise=0.0), of_unet, classes=3,
        loop=False, shape=RGB,
    ),
    "UNet1DModel": Case(
        lambda: diffusers.UNet1DModel(
            sample_size=16, in_channels=2, out_channels=2, block_out_channels=(8, 8, 8), layers_per_block=1,
            time_embedding_type="positional", use_timestep_embedding=True, act_fn="mish", norm_num_groups=2,
            down_block_types=("DownResnetBlock1D", "DownResnetBlock1D", "DownResnetBlock1D"),
            up_block_types=("UpResnetBlock1D", "UpResnetBlock1D"), mid_block_type="MidResTemporalBlock1D",
            out_block_type="OutConv1DBlock",
        ),
        euler, of_line, shape=(2, 16),
    ),
    "UNet2DConditionModel": Case(
        lambda: diffusers.UNet2DConditionModel(**CROSS), euler,
        of_pipeline("StableDiffusionPipeline", "unet", guidance_scale=1.0), text(8),
    ),
    "UNet2DConditionModel of SDXL": Case(
        lambda: diffusers.UNet2DConditionModel(**CROSS, **XL), euler,
        of_pipeline("StableDiffusionXLPipeline", "unet", guidance_scale=1.0),
        text(8, text_embeds=6, time_ids=torch.tensor([[64.0, 64, 0, 0, 64, 64]] * PROMPTS)),
    ),
    "DiTTransformer2DModel": Case(
        lambda: diffusers.DiTTransformer2DModel(**DITS, out_channels=4, num_embeds_ada_norm=3, norm_num_groups=2),
        lambda: diffusers.DDIMScheduler(clip_sample=False), of_dit, classes=4,
    ),
    "PixArtTransformer2DModel": Case(
        lambda: diffusers.PixArtTransformer2DModel(
            **DITS, out_channels=4, caption_channels=8, cross_attention_dim=16, use_additional_conditions=False
        ),
        euler,
        of_pipeline("PixArtAlphaPipeline", guidance_scale=1.0, negative_prompt=None, use_resolution_binning=False),
        text(8, **MASK),
    ),
    "PixArtTransformer2DModel of 1024 pixels": Case(
        lambda: diffusers.PixArtTransformer2DModel(
            **(DITS | {"attention_head_dim": 12, "sample_size": 128}), out_channels=4, caption_channels=8,
            cross_attention_dim=24,
        ),
        euler,
        of_pipeline("PixArtAlphaPipeline", guidance_scale=1.0, negative_prompt=None, use_resolution_binning=False),
        text(8, **MASK, resolution=torch.tensor([[64, 64]] * PROMPTS), aspect_ratio=torch.ones(PROMPTS, 1)),
        says_shape=False,
    ),
    "SD3Transformer2DModel": Case(
        lambda: diffusers.SD3Transformer2DModel(
            **DITS, out_channels=2, joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=6,
            pos_embed_max_size=8,
        ),
        flow, of_pipeline("StableDiffusion3Pipeline", guidance_scale=1.0), text(8, pooled_projections=6),
    ),
    "SanaTransformer2DModel": Case(
        lambda: diffusers.SanaTransformer2DModel(
            **DITS, out_channels=2, num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
            caption_channels=8, timestep_scale=0.02,
        ),
        flow,
        of_pipeline("SanaPipeline", guidance_scale=1.0, negative_prompt=None, use_resolution_binning=False),
        text(8, **MASK), float32="linear attention",
    ),
    "FluxTransformer2DModel": Case(
        lambda: diffusers.FluxTransformer2DModel(
            in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=8, pooled_projection_dim=6, axes_dims_rope=(2, 2, 4), guidance_embeds=True,
        ),
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), of_pipeline("FluxPipeline"),
        text(8, pooled_projections=6, guidance=torch.tensor([3.5, 2.0])), says_shape=False,
    ),
    "AuraFlowTransformer2DModel": Case(
        lambda: diffusers.AuraFlowTransformer2DModel(
            sample_size=8, patch_size=2, in_channels=2, out_channels=2, num_mmdit_layers=1, num_single_dit_layers=1,
            attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=16,
            pos_embed_max_size=16,
        ),
        flow,
        of_pipeline("AuraFlowPipeline", guidance_scale=1.0, prompt_attention_mask=torch.ones(1, TOKENS)),
        text(8),
    ),
    "Lumina2Transformer2DModel": Case(
        lumina, flow, of_pipeline("Lumina2Pipeline", guidance_scale=1.0),
        text(8, encoder_attention_mask=MASK["encoder_attention_mask"].bool()),
    ),
    "SiTTransformer2DModel": Case(
        lambda: remote_flow("SiTTransformer2DModel")(in_channels=2), flow, of_sit, classes=4
    ),
    "LightningDiTTransformer2DModel": Case(
        lambda: remote_flow("LightningDiTTransformer2DModel")(in_channels=2), flow, of_sit, classes=4
    ),
    "EDM2UNet2DModel": Case(
        lambda: remote_edm2()(in_channels=2, out_channels=2), diffusers.EDMEulerScheduler, of_edm2, classes=5,
        float32="the network",
    ),
}  # fmt: skip


def built(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CASES[name].build().eval()


def wrapped(name, net):
    case = CASES[name]
    given = {"conditioning": case.conditioning} if case.conditioning else {}
    return fc.diffusion.from_diffusers(net, case.scheduler(), **given, **told(name))


def told(name):
    return {} if CASES[name].says_shape else {"shape": CASES[name].shape}


def label_of(name):
    return 1 if CASES[name].conditioning or CASES[name].classes else None


def states(name, count=1, dtype=torch.float32):
    return torch.randn(count, *CASES[name].shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def watched(scheduler):
    """The scheduler, whose steps are noted in ``seen``: level, state y, D, and the next state, unscaled."""
    step, scheduler.seen = scheduler.step, []

    def noted(model_output, timestep, sample, return_dict=True, **more):
        if hasattr(scheduler, "sigmas"):
            if scheduler.step_index is None:
                scheduler._init_step_index(timestep)
            sigma = float(scheduler.sigmas[scheduler.step_index])
        out = step(model_output, timestep, sample, return_dict=True, **more)
        if type(scheduler).__name__.startswith("FlowMatch"):
            level = sigma / (1.0 - sigma) if sigma < 1 else np.inf
            D, y = sample - sigma * model_output, sample / (1.0 - sigma) if sigma < 1 else sample
        elif not hasattr(scheduler, "sigmas"):  # DDIM's x is alpha y
            abar = float(scheduler.alphas_cumprod[timestep])
            level, D, y = ((1 - abar) / abar) ** 0.5, out.pred_original_sample, sample / abar**0.5
        elif hasattr(out, "pred_original_sample") and out.pred_original_sample is not None:
            level, D, y = sigma, out.pred_original_sample, sample
        elif hasattr(scheduler, "precondition_outputs"):
            level, D, y = sigma, scheduler.precondition_outputs(sample, model_output, sigma), sample
        else:  # a consistency network: without noise, its step is what it returns
            level, D, y = sigma, out.prev_sample, sample
        scheduler.seen.append((level, y, D, out.prev_sample))
        return out if return_dict else (out.prev_sample,)

    scheduler.step = noted
    return scheduler


@functools.cache
def own_loop(name, steps=6):
    """Network, levels, and levels, states and images of the class's own loop, for the second prompt or class."""
    net, case, scheduler = built(name), CASES[name], watched(CASES[name].scheduler())
    j = label_of(name)
    row = {key: value[j : j + 1] for key, value in case.conditioning.items()}
    with torch.no_grad():
        case.run(net, scheduler, states(name), j, row, steps)
    assert len(scheduler.seen) == steps

    def unpacked(y):
        if not name.startswith("Flux"):
            return y
        return diffusers.FluxPipeline._unpack_latents(y, *(8 * n for n in case.shape[1:]), 8)

    seen = [(s, *map(unpacked, tensors)) for s, *tensors in scheduler.seen]
    del scheduler.step, scheduler.seen
    return net, fc.diffusion.scheduler_levels(scheduler), seen


def assert_same_images(name, D, seen):
    compared = 0
    for s, y, expected, _ in seen:
        if np.isfinite(s):
            with torch.no_grad():
                found = D(y, s, label_of(name))
            # Both round in float32, where D is the difference of numbers as large as the state.
            size = max(float(y.abs().max()), float(expected.abs().max()))
            assert float((found - expected).abs().max()) <= 1e-5 * size
            compared += 1
    assert compared >= 5


class TestEveryClass:
    @pytest.mark.parametrize("name", CASES)
    def test_has_the_images_of_its_own_loop(self, name, tmp_path):
        """Once it was saved and read."""
        net, _, seen = own_loop(name)
        case, kind = CASES[name], type(net)
        if not kind.__module__.startswith("diffusers."):
            net.save_pretrained(tmp_path)
            D = wrapped(name, kind.from_pretrained(tmp_path, low_cpu_mem_usage=False).eval())
        else:
            net.save_pretrained(tmp_path / ("unet" if name.startswith("UNet") else "transformer"))
            case.scheduler().save_pretrained(tmp_path / "scheduler")
            D = fc.diffusion.load_diffusers(tmp_path, conditioning=case.conditioning or None, **told(name))
        assert D.shape == case.shape
        assert_same_images(name, D, seen)

    @pytest.mark.parametrize("name", [name for name in CASES if CASES[name].loop])
    def test_samples_end_where_its_own_loop_ends(self, name):
        """Of flow matching from the second level on: the first is t = 1, that of no state y."""
        net, levels, seen = own_loop(name)
        first = 0 if np.isfinite(seen[0][0]) else 1
        np.testing.assert_allclose([s for s, *_ in seen[first:]], levels[first:-1], rtol=1e-6)
        found = fc.diffusion.sample(
            wrapped(name, net), label_of(name), 1, levels[first:], "euler", initial=seen[first][1]
        )
        torch.testing.assert_close(found, seen[-1][3], rtol=1e-4, atol=1e-4 * float(seen[-1][3].std()))

    @pytest.mark.parametrize("name", CASES)
    def test_has_gains_by_derivatives_and_by_differences(self, name):
        dtype = torch.float32 if CASES[name].float32 == "the network" else torch.float64
        D, y = wrapped(name, built(name).to(dtype)), states(name, dtype=dtype)
        gains = [
            fc.mode_response(D, y, 1.0, [1], label_of(name), waves=1, method=method).gain
            for method in ("jvp", "central")
        ]
        # Differences of fourth order in float64; of numbers in float32 where something in the network is.
        np.testing.assert_allclose(*gains, atol=1e-6 if CASES[name].float32 is None else 1e-5)

    @pytest.mark.parametrize("name", [name for name in CASES if label_of(name) is not None])
    def test_is_guided_by_a_pulse(self, name):
        case, net = CASES[name], built(name)
        if case.conditioning:
            null = {key: torch.ones_like(value[:1]) for key, value in case.conditioning.items()}
            given = {"conditioning": case.conditioning, "null": null}
        else:
            given = {"null_label": case.classes - 1} if "SiT" not in name and "DiT" not in name else {}
        if name.startswith("EDM2"):
            given = {}
        D = fc.diffusion.from_diffusers(net, case.scheduler(), **given, shape=case.shape)
        weaker = wrapped(name, built(name)) if name.startswith("EDM2") else None
        if weaker is not None:
            with torch.no_grad():
                weaker._network.net.conv.weight.mul_(0.9)
        pulse = fc.diffusion.Pulse(center=2.0, width=1.0, weight=3.0)
        levels = [8.0, 4.0, 2.0, 1.0, 0.0]
        plain = fc.diffusion.sample(D, [0, 1], 2, levels, "euler", seed=1)
        pulsed = fc.diffusion.sample(D, [0, 1], 2, levels, "euler", seed=1, guidance=pulse, unguided=weaker)
        assert torch.isfinite(pulsed).all()
        assert not torch.equal(plain, pulsed)


WRONG = {
    "time": {
        "scheduler": {"time": "fraction"}, "fraction": {"time": "scheduler"}, "scaled": {"time": "scheduler"},
        "reversed": {"time": "fraction"}, "sigma": {"time": "scheduler"},
    },
    "predicts": {
        "scheduler": {"predicts": "denoised"}, "noise - x0": {"predicts": "x0 - noise"},
        "x0 - noise": {"predicts": "noise - x0"},
        "denoised": {"predicts": "scheduler", "time": "scheduler"},  # D, converted a second time
    },
}  # fmt: skip


class TestWrongRows:
    @pytest.mark.parametrize("what", ["time", "predicts"])
    @pytest.mark.parametrize("name", [name for name in CASES if " " not in name])
    def test_are_seen(self, name, what, monkeypatch):
        net, _, seen = own_loop(name)
        row = next(r for r in TABLE if name in r.names)
        monkeypatch.setattr(network_classes, "TABLE", (replace(row, **WRONG[what][getattr(row, what)]),))
        with pytest.raises(AssertionError):
            assert_same_images(name, wrapped(name, net), seen)
        monkeypatch.setattr(network_classes, "TABLE", (row,))
        assert_same_images(name, wrapped(name, net), seen)

    def test_there_is_a_network_for_every_row(self):
        assert {name for row in TABLE for name in row.names} == {name for name in CASES if " " not in name}
        assert {row.time for row in TABLE} == set(network_classes.TIMES)
        assert {row.predicts for row in TABLE} == set(network_classes.PREDICTIONS)
