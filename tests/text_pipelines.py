"""Small text pipelines of diffusers with random weights: tokenizers of the alphabet, text encoders of one layer."""

from __future__ import annotations

import functools
import json
import string
import tempfile
from pathlib import Path

import torch

PROMPTS = ["a red cat", "a blue dog", "the green boat"]
NEGATIVE = "blurry"


@functools.cache
def _folder():
    return Path(tempfile.mkdtemp())


def clip_tokenizer():
    """Of CLIP, without merges: a token a letter, 16 at most."""
    from transformers import CLIPTokenizer

    folder = _folder() / "clip"
    if not folder.exists():
        folder.mkdir()
        letters = [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase)]
        vocabulary = {token: i for i, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        settings = {
            "model_max_length": 16, "unk_token": "<|endoftext|>", "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer",
        }  # fmt: skip
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def t5_tokenizer():
    """Of T5: a token a letter."""
    import tokenizers
    from transformers import T5TokenizerFast

    folder = _folder() / "t5"
    if not folder.exists():
        folder.mkdir()
        special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
        pieces = [*special, ("▁", -1.0), *((c, -2.0) for c in string.ascii_lowercase)]
        made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        made.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
        made.save(str(folder / "tokenizer.json"))
        settings = {
            "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0, "model_max_length": 24,
            "tokenizer_class": "T5TokenizerFast",
        }  # fmt: skip
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return T5TokenizerFast.from_pretrained(folder, local_files_only=True)


def clip_encoder(width=16, projection=None):
    """Of CLIP; with a projection, the class that has one."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=54, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=projection or width, bos_token_id=52, eos_token_id=53,
    )  # fmt: skip
    return (CLIPTextModel if projection is None else CLIPTextModelWithProjection)(config).eval()


def t5_encoder(width=32):
    """Of T5."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=30, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.1)
    return T5EncoderModel(config).eval()


def gemma_tokenizer():
    """Of Gemma: a token a letter."""
    import tokenizers
    from transformers import GemmaTokenizerFast

    letters = {t: i for i, t in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "▁", *string.ascii_lowercase])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return GemmaTokenizerFast(tokenizer_object=made)


def gemma_encoder():
    """Of Gemma 2."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=31, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    return Gemma2Model(config).eval()


def vae(channels=4, **config):
    """A decoder with 2 image pixels to a site."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=channels, layers_per_block=1, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **config,
    ).eval()  # fmt: skip


def conditional_unet(width=16, **config):
    """Of Stable Diffusion, on 4 x 8 x 8 sites."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width, attention_head_dim=4, **config,
    ).eval()  # fmt: skip


def _seeded(make):
    @functools.wraps(make)
    def seeded(*args, **kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make(*args, **kwargs)

    return seeded


@_seeded
def stable_diffusion():
    """StableDiffusionPipeline: U-Net, CLIP, epsilon."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae(scaling_factor=0.5), text_encoder=clip_encoder(), tokenizer=clip_tokenizer(), unet=conditional_unet(),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@_seeded
def stable_diffusion_xl():
    """StableDiffusionXLPipeline: U-Net with sizes, two CLIPs."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    unet = conditional_unet(
        32, addition_embed_type="text_time", addition_time_embed_dim=4, transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=6 * 4 + 16, use_linear_projection=True,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.25, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0]),
        text_encoder=clip_encoder(16), text_encoder_2=clip_encoder(16, projection=16), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), unet=unet, scheduler=EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip


@_seeded
def stable_diffusion_3():
    """StableDiffusion3Pipeline: transformer, two CLIPs and T5, flow matching."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    net = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, out_channels=4,
        pos_embed_max_size=8,
    ).eval()  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=net, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=1.5, shift_factor=0.06), text_encoder=clip_encoder(16, projection=16),
        tokenizer=clip_tokenizer(), text_encoder_2=clip_encoder(16, projection=16), tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


@_seeded
def pixart_sigma(cls="PixArtSigmaPipeline", **config):
    """PixArt: transformer with masks, T5, a learned variance."""
    import diffusers

    net = diffusers.PixArtTransformer2DModel(
        **{"sample_size": 8, "patch_size": 2, "use_additional_conditions": False} | config, in_channels=4,
        out_channels=8, num_layers=1, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        caption_channels=32,
    ).eval()  # fmt: skip
    return getattr(diffusers, cls)(
        tokenizer=t5_tokenizer(), text_encoder=t5_encoder(), vae=vae(), transformer=net,
        scheduler=diffusers.DDPMScheduler(),
    )  # fmt: skip


def pixart_alpha():
    """Of the size at which networks are told resolution and aspect ratio; in large patches."""
    return pixart_sigma("PixArtAlphaPipeline", sample_size=128, patch_size=16, use_additional_conditions=True)


@_seeded
def flux(guidance=True):
    """FLUX: packed tokens, CLIP's pooled text and T5's."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    net = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=guidance,
    ).eval()  # fmt: skip
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae(scaling_factor=0.4, shift_factor=0.1),
        text_encoder=clip_encoder(), tokenizer=clip_tokenizer(), text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(), transformer=net,
    )  # fmt: skip


@_seeded
def aura_flow():
    """AuraFlow: transformer, T5 of many languages, flow matching."""
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    net = AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, out_channels=4, pos_embed_max_size=16,
    ).eval()  # fmt: skip
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=30, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).eval()
    return AuraFlowPipeline(
        tokenizer=t5_tokenizer(), text_encoder=encoder, vae=vae(), transformer=net,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


@_seeded
def sana():
    """Sana: linear attention, Gemma, a decoder of its own."""
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel

    net = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=8,
        sample_size=8, patch_size=1,
    ).eval()  # fmt: skip
    decoder = AutoencoderDC(
        latent_channels=4, attention_head_dim=4, encoder_block_types=("ResBlock",) * 2, scaling_factor=0.41,
        decoder_block_types=("ResBlock",) * 2, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()), upsample_block_type="interpolate", downsample_block_type="stride_conv",
        decoder_norm_types="rms_norm", decoder_act_fns="silu",
    ).eval()  # fmt: skip
    return SanaPipeline(
        tokenizer=gemma_tokenizer(), text_encoder=gemma_encoder(), vae=decoder, transformer=net,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


@_seeded
def lumina_2():
    """Lumina Image 2.0: times from the noise on, x0 - noise, Gemma behind a system prompt."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    net = Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1,
        num_attention_heads=1, num_kv_heads=1, multiple_of=8, axes_dim_rope=(8, 8, 8), axes_lens=(300, 16, 16),
        cap_feat_dim=8,
    ).eval()  # fmt: skip
    return Lumina2Pipeline(
        transformer=net, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae(scaling_factor=0.4, shift_factor=0.1),
        text_encoder=gemma_encoder(), tokenizer=gemma_tokenizer(),
    )  # fmt: skip
