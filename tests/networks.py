"""Small networks that follow the contracts of what people train, and nothing but those contracts."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pickle
import sys
import types

import torch


class Edm2Contract(torch.nn.Module):
    """EDM2's Precond: sigma must be a tensor, labels are one-hot floats, compute is half precision unless forced."""

    def __init__(self, channels=3, side=8, classes=5):
        super().__init__()
        self.img_channels, self.img_resolution, self.label_dim = channels, side, classes
        self.use_fp16, self.sigma_data = True, 0.5
        self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1)
        self.embed = torch.nn.Linear(classes, channels) if classes else None
        self.calls = []

    def forward(self, x, sigma, class_labels=None, force_fp32=False, return_logvar=False, **unet_kwargs):
        x = x.to(torch.float32)
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1)  # a float has no .to
        if class_labels is None:
            class_labels = torch.zeros([1, self.label_dim])
        else:
            class_labels = class_labels.to(torch.float32).reshape(-1, self.label_dim)  # class numbers do not fit
        dtype = torch.float16 if self.use_fp16 and not force_fp32 else torch.float32
        self.calls.append(dtype)
        c_skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        c_out = sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()
        c_in = 1 / (self.sigma_data**2 + sigma**2).sqrt()
        h = (c_in * x).to(dtype).to(torch.float32)  # what half precision would lose
        label = 0.0 if self.embed is None else self.embed(class_labels)[..., None, None]
        F = torch.tanh(self.conv(h) + label)
        return c_skip * x + c_out * F.to(dtype).to(torch.float32)


class StabilityVAEEncoder:
    """The name of the encoder in EDM2's pickles of latent models: 8 image pixels to a latent one, decoded to bytes."""

    def decode(self, y):
        pixels = y[:, :3].repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
        return (pixels * 60 + 128).clip(0, 255).to(torch.uint8)


def edm2_pickle(path, encoder=None, seed=0, **options):
    """A file with the structure of NVIDIA's: the network under 'ema', the encoder beside it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Edm2Contract(**options)
    with open(path, "wb") as file:
        pickle.dump({"ema": net, "encoder": encoder, "dataset_kwargs": {}}, file)
    return str(path)


class KDiffusionVDenoiser(torch.nn.Module):
    """k-diffusion's VDenoiser: ``forward(input, sigma, **kwargs)`` with sigma (batch,) returns the denoised image."""

    def __init__(self, inner):
        super().__init__()
        self.inner_model = inner
        self.sigma_data = 1.0

    def forward(self, input, sigma, **kwargs):  # noqa: A002 (its name there)
        column = sigma.reshape(-1, *(1,) * (input.ndim - 1))
        c_skip = self.sigma_data**2 / (column**2 + self.sigma_data**2)
        c_out = -column * self.sigma_data / (column**2 + self.sigma_data**2) ** 0.5
        c_in = 1 / (column**2 + self.sigma_data**2) ** 0.5
        t = sigma.atan() / torch.pi * 2
        return self.inner_model(input * c_in, t, **kwargs) * c_out + input * c_skip


class SmallConvolutional(torch.nn.Module):
    """x and a time (batch,) to something of x's shape; smooth, and different at different times."""

    def __init__(self, channels=1, out=None, width=8, padding_mode="zeros", classes=0):
        super().__init__()
        self.first = torch.nn.Conv2d(channels, width, 3, padding=1, padding_mode=padding_mode)
        self.second = torch.nn.Conv2d(width, out or channels, 3, padding=1, padding_mode=padding_mode)
        self.time = torch.nn.Linear(1, width)
        self.label = torch.nn.Embedding(classes, width) if classes else None

    def forward(self, x, t, labels=None):
        assert t.shape == (len(x),)
        assert t.is_floating_point()
        e = self.time(torch.log1p(t.to(x.dtype))[:, None])
        if self.label is not None:
            e = e + self.label(labels)
        return self.second(torch.tanh(self.first(x) + e[..., None, None]))


def random_unet(**config):
    """A small UNet2DModel of diffusers with random weights, attention included."""
    from diffusers import UNet2DModel

    settings = {
        "sample_size": 16, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4, "attention_head_dim": 4,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(**(settings | config)).eval()


def diffusers_pipeline(folder, **config):
    """The folder of a class-conditional pipeline of diffusers, as its save_pretrained writes it; random weights."""
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(random_unet(**{"num_class_embeds": 4, **config}), DDPMScheduler()).save_pretrained(folder)
    return str(folder)


@functools.cache
def remote_flow(name):
    """A class of remote code as SiT's and LightningDiT's are: times from the noise, x0 - noise, labels by keyword."""
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.models.unets.unet_2d import UNet2DOutput

    class Flow(ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self, input_size=8, in_channels=1, num_classes=3, class_dropout_prob=0.1, learn_sigma=True):
            super().__init__()
            self.net = SmallConvolutional(in_channels, classes=num_classes + (class_dropout_prob > 0))

        def forward(self, hidden_states, timestep, class_labels, force_drop_ids=None, return_dict=True):
            assert ((timestep >= 0) & (timestep <= 1)).all()
            sample = self.net(hidden_states, 20 * timestep, class_labels)
            return UNet2DOutput(sample=sample) if return_dict else (sample,)

    Flow.__name__ = name
    return Flow


@functools.cache
def remote_edm2():
    """A class of remote code as conversions of EDM2 are: one-hot labels that may be left out, and D itself."""
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.models.unets.unet_2d import UNet2DOutput

    class EDM2UNet2DModel(ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self, sample_size=8, in_channels=3, out_channels=3, num_class_embeds=5, sigma_data=0.5):
            super().__init__()
            self.net = Edm2Contract(in_channels, sample_size, num_class_embeds)

        def forward(
            self, sample, sigma, class_labels=None, force_fp32=False, return_logvar=False, return_dict=True
        ):  # fmt: skip
            D = self.net(sample, sigma, class_labels, force_fp32)
            return UNet2DOutput(sample=D) if return_dict else (D, None)

    return EDM2UNet2DModel


# Without attention, on 8 x 8 sites.
PLAIN = {
    "sample_size": 8, "down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D"),
}  # fmt: skip


def image_classifier(folder, classes=6, side=32, **settings):
    """A folder as transformers' save_pretrained and an image processor's write it, with random weights."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8, layer_type="basic")
        config.num_labels = classes
        ResNetForImageClassification(config).eval().save_pretrained(folder)
    given = {"size": {"shortest_edge": side}, "crop_pct": 0.8, "image_mean": [0.5, 0.4, 0.3]}
    ConvNextImageProcessor(**(given | {"image_std": [0.2, 0.3, 0.4]} | settings)).save_pretrained(folder)
    return str(folder)


def smalldiffusion_unet(**config):
    """smalldiffusion's own Unet. Its package imports torchvision, for data that are not needed here: go around that."""
    name = "smalldiffusion"
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
        sys.modules[name] = package
    model = importlib.import_module(f"{name}.model")
    unet = importlib.import_module(f"{name}.model_unet")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model.Scaled(unet.Unet)(**config).eval()
