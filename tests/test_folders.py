"""Folders of diffusers: which weights are read, what is said of the others, and what the decoder tells."""

from __future__ import annotations

import json

import pytest
import torch

import fastcrit as fc
from fastcrit.diffusion import load_diffusers
from tests.networks import PLAIN, random_unet

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def net():
    return random_unet(**PLAIN)


@pytest.fixture
def folder(tmp_path, net):
    """Without the network's weights."""
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text(net.to_json_string())
    return tmp_path


class TestWeights:
    def test_of_a_variant_alone_are_read_in_float32(self, folder, net):
        half = random_unet(**PLAIN).half()
        half.save_pretrained(folder / "unet", variant="fp16")
        assert [p.name for p in folder.glob("unet/*.safetensors")] == ["diffusion_pytorch_model.fp16.safetensors"]
        D = load_diffusers(folder)
        assert D.dtype == torch.float32
        y = torch.randn(1, 1, 8, 8)
        expected = fc.diffusion.from_diffusers(half.float().eval(), diffusers.DDPMScheduler())
        torch.testing.assert_close(D(y, 1.0), expected(y, 1.0))
        (folder / "unet/diffusion_pytorch_model.ema.safetensors").write_bytes(b"")
        with pytest.raises(fc.FileFormatError, match="unet: weights of the variants ema, fp16; leave one"):
            load_diffusers(folder)
        net.save_pretrained(folder / "unet")  # those without a variant come first
        torch.testing.assert_close(
            load_diffusers(folder)(y, 1.0), fc.diffusion.from_diffusers(net, diffusers.DDPMScheduler())(y, 1.0)
        )

    def test_in_shards_are_read(self, folder, net):
        net.save_pretrained(folder / "unet", max_shard_size="40KB")
        assert len(list(folder.glob("unet/*.safetensors"))) > 1
        load_diffusers(folder)

    def test_that_are_pickles_are_named_with_the_way_to_convert_them(self, folder, net):
        net.save_pretrained(folder / "unet", safe_serialization=False)
        with pytest.raises(fc.FileFormatError, match=r"diffusion_pytorch_model\.bin, a pickle, which can run code"):
            load_diffusers(folder)
        with pytest.raises(
            fc.FileFormatError, match=r"diffusers\.UNet2DModel\.from_pretrained\(folder, use_safetensors=F"
        ):
            load_diffusers(folder)
        # What the message says.
        diffusers.UNet2DModel.from_pretrained(
            folder / "unet", use_safetensors=False, low_cpu_mem_usage=False
        ).save_pretrained(folder / "unet")
        load_diffusers(folder)

    def test_that_are_not_there_or_damaged_are_said_to_be(self, folder):
        with pytest.raises(
            fc.FileFormatError, match=r"unet: damaged, or not a UNet2DModel .no diffusion_pytorch_model"
        ):
            load_diffusers(folder)
        (folder / "unet/model.safetensors").write_bytes(b"")
        with pytest.raises(
            fc.FileFormatError, match=r"no diffusion_pytorch_model\.safetensors, only model\.safetensors"
        ):
            load_diffusers(folder)
        (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
        with pytest.raises(fc.FileFormatError, match="unet: damaged, or not a UNet2DModel"):
            load_diffusers(folder)


class TestOtherNetworks:
    def test_that_need_prompts_say_which(self, folder):
        tiny = diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4,), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), norm_num_groups=2,
            cross_attention_dim=3, attention_head_dim=2,
        )  # fmt: skip
        tiny.save_pretrained(folder / "unet")
        with pytest.raises(ValueError, match=r"conditioning: UNet2DConditionModel needs encoder_hidden_states \(P, to"):
            load_diffusers(folder)
        given = {"encoder_hidden_states": torch.randn(2, 5, 3)}
        D = load_diffusers(folder, conditioning=given, null={"encoder_hidden_states": torch.zeros(1, 5, 3)})
        assert (D.classes, D.null_label, D.unlabelled, D.card["pixels_per_site"]) == (3, 2, True, 1)
        assert len(D.card["conditioning_sha256"]) == len(D.card["sha256"]) == 64
        other = load_diffusers(folder, conditioning={"encoder_hidden_states": torch.zeros(2, 5, 3)})
        assert other.card["sha256"] == D.card["sha256"]
        assert other.card["conditioning_sha256"] != D.card["conditioning_sha256"]

    @pytest.mark.parametrize("name", ["DiTTransformer2DModel", "Transformer2DModel"])
    def test_in_transformer_are_read(self, folder, name):
        dit = diffusers.DiTTransformer2DModel(
            num_attention_heads=1, attention_head_dim=4, in_channels=1, num_layers=1, sample_size=8,
            norm_num_groups=1, num_embeds_ada_norm=3,
        )  # fmt: skip
        (folder / "unet/config.json").unlink()
        dit.save_pretrained(folder / "transformer")
        config = json.loads((folder / "transformer/config.json").read_text())
        # What older folders call it.
        (folder / "transformer/config.json").write_text(json.dumps(config | {"_class_name": name}))
        D = load_diffusers(folder)
        assert (D.shape, D.classes, D.null_label, D.card["pixels_per_site"]) == ((1, 8, 8), 4, 3, None)
        y = torch.randn(1, 1, 8, 8)
        expected = fc.diffusion.from_diffusers(dit.eval(), diffusers.DDPMScheduler())
        torch.testing.assert_close(D(y, 1.0, 2), expected(y, 1.0, 2))
        torch.testing.assert_close(D(y, 1.0), expected(y, 1.0, 3))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("UNet3DConditionModel", r"unet: holds a UNet3DConditionModel, which is none of those that .*call=\.\."),
            ("EDM2UNet2DModel", "unet: holds a EDM2UNet2DModel, which is code that came with it; load it yourself"),
        ],
    )
    def test_are_named_by_their_class(self, folder, name, message):
        config = json.loads((folder / "unet/config.json").read_text())
        (folder / "unet/config.json").write_text(json.dumps(config | {"_class_name": name}))
        with pytest.raises(fc.FileFormatError, match=message):
            load_diffusers(folder)

    def test_in_other_parts_of_a_pipeline_are_named(self, folder):
        (folder / "unet").rename(folder / "prior")
        (folder / "prior/config.json").write_text('{"_class_name": "PriorTransformer"}')
        with pytest.raises(FileNotFoundError, match="prior/ holds a PriorTransformer, and a network is read from unet"):
            load_diffusers(folder)

    @pytest.mark.parametrize("content", ["{", "[1]"])
    def test_damaged_configurations_are_named(self, folder, content):
        (folder / "unet/config.json").write_text(content)
        with pytest.raises(fc.FileFormatError, match=r"unet/config\.json: damaged"):
            load_diffusers(folder)


class TestDecoder:
    @pytest.mark.parametrize(
        ("part", "kind", "config", "pixels"),
        [
            ("vae", "AutoencoderKL", {"block_out_channels": [4, 4, 4]}, 4),  # f4
            ("vae", "AutoencoderKL", {"block_out_channels": [4, 4, 4, 4]}, 8),
            ("vqvae", "VQModel", {"block_out_channels": [4, 4, 4]}, 4),
            ("vqvae", "VQModel", {}, 1),  # its default: one resolution
            ("vae", "AutoencoderTiny", {}, 8),
            ("vae", "AutoencoderDC", {}, 32),
            ("vae", "AsymmetricAutoencoderKL", {"down_block_out_channels": [4, 4]}, 2),
            ("vae", "AutoencoderKLCosmos", {"spatial_compression_ratio": 16}, 16),
            ("vae", "AutoencoderRAE", {}, None),
        ],
    )
    def test_says_how_many_pixels_a_site_has(self, folder, net, part, kind, config, pixels):
        net.save_pretrained(folder / "unet")
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps({"_class_name": kind} | config))
        assert load_diffusers(folder).card["pixels_per_site"] == pixels

    def test_of_a_vqvae_is_read(self, folder, net):
        torch.manual_seed(0)
        vqvae = diffusers.VQModel(block_out_channels=(4, 4, 4), down_block_types=("DownEncoderBlock2D",) * 3,
                                  up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=2, latent_channels=1,
                                  num_vq_embeddings=8, scaling_factor=0.5).eval()  # fmt: skip
        net.save_pretrained(folder / "unet")
        vqvae.save_pretrained(folder / "vqvae")
        D = load_diffusers(folder)
        y = torch.randn(1, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(D.decode(y), vqvae.decode(y / 0.5).sample)
        assert D.decode(y).shape == (1, 3, 32, 32)
        assert D.card["pixels_per_site"] == 4

    def test_undoes_the_scale_of_each_channel(self, folder, net):
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKL(block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
                                      up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, latent_channels=1,
                                      scaling_factor=0.5, latents_mean=[0.3], latents_std=[2.0]).eval()  # fmt: skip
        net.save_pretrained(folder / "unet")
        vae.half().save_pretrained(folder / "vae", variant="fp16")
        y = torch.randn(1, 1, 8, 8)
        with torch.no_grad():
            expected = vae.float().decode(y * 2.0 / 0.5 + 0.3).sample  # as Stable Diffusion XL's pipeline does
        torch.testing.assert_close(load_diffusers(folder).decode(y), expected)

    def test_without_a_class_that_decodes_is_refused(self, folder, net):
        net.save_pretrained(folder / "unet")
        (folder / "vae").mkdir()
        with pytest.raises(FileNotFoundError, match=r"vae/config\.json: no such file"):
            load_diffusers(folder)
        (folder / "vae/config.json").write_text('{"_class_name": "UNet2DModel"}')
        with pytest.raises(
            fc.FileFormatError, match="expected the name of a decoder as _class_name, got 'UNet2DModel'"
        ):
            load_diffusers(folder)
