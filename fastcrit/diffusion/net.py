"""A small class-conditional denoiser: convolutional U-Net without attention, EDM preconditioning.

Its normalisation is per pixel (over channels), never over the image, so what a pixel depends on is what the
convolutions reach: locality and equivariance are the subject. With circular padding it commutes with shifts by
2^(number of poolings) sites; with a single scale, by any.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastcrit._edge.arrays import check_choice, check_integer, check_positive

PADDINGS = ("circular", "zeros")


@dataclass(frozen=True)
class NetConfig:
    """What a `Net` is made of.

    Parameters
    ----------
    shape : (C, H, W)
        Of one image; H and W divisible by 2^(len(multipliers) - 1).
    classes : int
        Labels are one-hot vectors of this length, zero for no label; 0 makes an unconditional net.
    data_std : float
        Standard deviation of the data (EDM's sigma_data).
    width, multipliers, blocks : int, sequence of int, int
        Channels of the finest scale; their multiples at each scale, coarsest last; residual blocks at each scale.
    padding : "circular" or "zeros"
    """

    shape: tuple[int, int, int] = (1, 28, 28)
    classes: int = 10
    data_std: float = 0.7
    width: int = 16
    multipliers: tuple[int, ...] = (1, 3, 6)
    blocks: int = 1
    padding: str = "circular"

    def __post_init__(self) -> None:
        for name in ("shape", "multipliers"):
            if isinstance(getattr(self, name), str) or not isinstance(getattr(self, name), Sequence):
                raise TypeError(f"{name}: expected a sequence of integers, got {getattr(self, name)!r}")
            object.__setattr__(self, name, tuple(operator.index(n) for n in getattr(self, name)))
        for name, lowest in (("width", 2), ("blocks", 1), ("classes", 0)):
            object.__setattr__(self, name, check_integer(getattr(self, name), name, lowest))
        check_choice(self.padding, PADDINGS, "padding")
        object.__setattr__(self, "data_std", check_positive(self.data_std, "data_std"))
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers: expected positive integers, one for each scale, got {self.multipliers}")
        coarse = 2 ** (len(self.multipliers) - 1)
        if len(self.shape) != 3 or min(self.shape) < 1 or any(n % coarse for n in self.shape[1:]):
            raise ValueError(f"shape: expected (C, H, W) with sides divisible by {coarse}, got {self.shape}")

    @property
    def shift(self) -> int | None:
        """Shifts by multiples of this commute with the net; None: it knows where its borders are."""
        return 2 ** (len(self.multipliers) - 1) if self.padding == "circular" else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


class Net(nn.Module):
    r"""Denoiser with the contract of EDM's networks: ``net(x, sigma, class_labels)`` returns :math:`D(x; \sigma)`.

    .. math:: D = c_{skip} x + c_{out} F(c_{in} x, \tfrac14 \log\sigma, \text{labels})

    with :math:`c_{skip} = d^2/(\sigma^2 + d^2)`, :math:`c_{out} = \sigma d/\sqrt{\sigma^2 + d^2}`,
    :math:`c_{in} = 1/\sqrt{\sigma^2 + d^2}` and d the data's standard deviation (Karras et al. 2206.00364, table 1).

    Parameters
    ----------
    config : NetConfig

    Examples
    --------
    >>> import torch
    >>> from fastcrit.diffusion.net import Net, NetConfig
    >>> net = Net(NetConfig(shape=(1, 8, 8), width=4, multipliers=(1, 2), blocks=1))
    >>> net(torch.zeros(2, 1, 8, 8), torch.tensor([1.0, 2.0])).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.img_channels = config.shape[0]
        H, W = config.shape[1:]
        self.img_resolution = H if H == W else (H, W)
        self.label_dim = config.classes
        self.F = _UNet(config)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Denoised images (batch, C, H, W) at noise levels ``sigma`` (batch,) or (); no labels: none for any image."""
        d = self.config.data_std
        s = sigma.to(x.dtype).reshape(-1, 1, 1, 1)
        total = s * s + d * d
        F = self.F(x / total.sqrt(), s.flatten().log() / 4, class_labels)
        D: Tensor = x * (d * d / total) + F * (s * d / total.sqrt())
        return D


class _UNet(nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        width, channels, padding = config.width, config.shape[0], config.padding
        self.classes = config.classes
        embedded = 4 * width
        self.noise = _FourierFeatures(embedded)
        self.embed = nn.Sequential(nn.Linear(embedded, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        self.label = nn.Linear(config.classes, embedded, bias=False) if config.classes else None
        self.enter = _conv(channels, width, padding)

        here, skips = width, [width]
        self.down = nn.ModuleList()
        for multiple in config.multipliers:
            scale = nn.ModuleList()
            for _ in range(config.blocks):
                scale.append(_Block(here, multiple * width, embedded, padding))
                here = multiple * width
                skips.append(here)
            self.down.append(scale)
        self.middle = _Block(here, here, embedded, padding)
        self.up = nn.ModuleList()
        for multiple in reversed(config.multipliers):
            scale = nn.ModuleList()
            for _ in range(config.blocks):
                scale.append(_Block(here + skips.pop(), multiple * width, embedded, padding))
                here = multiple * width
            self.up.append(scale)
        here += skips.pop()
        self.gate = nn.Linear(embedded, 2 * here)
        self.leave = _conv(here, channels, padding)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        e = self.noise(noise)
        if self.label is not None and labels is not None:
            e = e + self.label(labels.to(e.dtype)) * self.classes**0.5
        e = functional.silu(self.embed(e))
        x = self.enter(x)
        skips = [x]
        for i, scale in enumerate(self.down):
            if i:
                x = functional.avg_pool2d(x, 2)
            for block in cast("nn.ModuleList", scale):
                x = block(x, e)
                skips.append(x)
        x = self.middle(x, e)
        for i, scale in enumerate(self.up):
            if i:
                x = functional.interpolate(x, scale_factor=2, mode="nearest")
            for block in cast("nn.ModuleList", scale):
                x = block(torch.cat([x, skips.pop()], dim=1), e)
        # How much of the image itself is let through depends on the noise level: next to nothing at high noise.
        scale, shift = self.gate(e)[..., None, None].chunk(2, dim=1)
        x = _pixel_norm(torch.cat([x, skips.pop()], dim=1)) * (1 + scale) + shift
        out: Tensor = self.leave(functional.silu(x))
        return out


class _Block(nn.Module):
    """Residual block; the embedding scales and shifts every channel between its convolutions."""

    def __init__(self, before: int, after: int, embedded: int, padding: str) -> None:
        super().__init__()
        self.first = _conv(before, after, padding)
        self.modulate = nn.Linear(embedded, 2 * after)
        self.second = _conv(after, after, padding)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.first(functional.silu(_pixel_norm(x)))
        scale, shift = self.modulate(e)[..., None, None].chunk(2, dim=1)
        h = self.second(functional.silu(h * (1 + scale) + shift))
        out: Tensor = (self.skip(x) + h) * 0.5**0.5
        return out


class _FourierFeatures(nn.Module):
    """cos and sin of log sigma / 4 at frequencies from 1 to 16, smooth enough to interpolate between levels."""

    frequencies: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.from_numpy(np.geomspace(1.0, 16.0, size // 2)).float())

    def forward(self, x: Tensor) -> Tensor:
        angle = x[:, None] * self.frequencies.to(x.dtype)
        return torch.cat([angle.cos(), angle.sin()], dim=1) * 2**0.5


def _conv(before: int, after: int, padding: str) -> nn.Conv2d:
    mode: Literal["circular", "zeros"] = "circular" if padding == "circular" else "zeros"
    return nn.Conv2d(before, after, 3, padding=1, padding_mode=mode)


def _pixel_norm(x: Tensor) -> Tensor:
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-4).rsqrt()
