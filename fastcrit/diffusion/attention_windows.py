"""Windows of attention: a transformer of diffusers whose image tokens see no more than those about them."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from fastcrit._edge.arrays import check_integer
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.network import is_compiled
from fastcrit.theory.regions import near_along

__all__ = ["AttentionWindow", "attention_window"]

_INSTEAD = 'take locality_gap(method="resampled"), which asks nothing of the network'


@dataclass(frozen=True)
class AttentionWindow:
    """How far a network with windows sees: they compound over its blocks.

    Attributes
    ----------
    radius : int
        Windows have 2 r + 1 tokens a side.
    blocks : int
        Attentions that follow each other.
    patch : int
        Sites a side of a token.
    grid : tuple of int
        Tokens of the image (rows, columns).
    periodic : bool
        Whether windows go on at the opposite edge.

    Examples
    --------
    >>> import fastcrit as fc
    >>> print(fc.diffusion.AttentionWindow(radius=1, blocks=28, patch=2, grid=(16, 16)))
    windows of 3 x 3 tokens, which reach 28 tokens (57 sites) over 28 blocks: all of 16 x 16 tokens
    """

    radius: int
    blocks: int
    patch: int
    grid: tuple[int, int]
    periodic: bool = False

    @property
    def reach(self) -> int:
        """Tokens each way beyond which nothing can matter: radius times blocks, and not the radius."""
        return self.radius * self.blocks

    @property
    def reach_sites(self) -> int:
        """The same in sites: those of a token at that distance, of its far side."""
        return self.patch * self.reach + self.patch - 1

    @property
    def covers(self) -> bool:
        """Whether one window takes in the whole grid, so that the network is as it was."""
        return self.radius >= self._farthest

    @property
    def _farthest(self) -> int:
        """Distance in tokens of the two that lie farthest apart."""
        return max(side // 2 if self.periodic else side - 1 for side in self.grid)

    def __str__(self) -> str:
        side, (rows, columns) = 2 * self.radius + 1, self.grid
        extent = f": all of {rows} x {columns} tokens" if self.reach >= self._farthest else ""
        return (
            f"windows of {side} x {side} tokens, which reach {self.reach} tokens ({self.reach_sites} sites) over "
            f"{self.blocks} blocks{extent}"
        )


@contextmanager
def attention_window(D: Denoiser, radius: int, *, periodic: bool = False) -> Iterator[AttentionWindow]:
    """Within this context every image token of D's transformer attends to those of a window about it alone.

    Windows compound: over B blocks of radius r a token sees r B tokens each way. Time, class
    and prompt are seen by all.

    Networks are those of diffusers: DiT, PixArt, SD3, Flux, AuraFlow. Where image and text attend together (the last
    three), text sees text alone, lest what is far comes back through it; under a window that covers the whole grid the
    network is as it was.

    Parameters
    ----------
    D : Denoiser
        Of `from_diffusers`, `from_pipeline` or `load_diffusers`, with a shape.
    radius : int
        In tokens of the network, which are squares of its ``patch_size`` sites a side (2 x 2 of Flux).
    periodic : bool
        Whether windows go on at the opposite edge.

    Yields
    ------
    AttentionWindow
        With the reach, and words for it: ``print(window)``.

    Raises
    ------
    TypeError
        No Denoiser, or one of a network without windows: a U-Net, linear attention (Sana), remote code (SiT).
    ValueError
        A radius that is no integer of at least 0; a denoiser without a shape; a network inside `torch.compile`;
        attention that ignores the mask, as its processor or backend is not torch's; tokens that see each other
        otherwise.
    RuntimeError
        The network has windows already.
    FloatingPointError
        D of noise is NaN or infinite.

    Notes
    -----
    The mask goes in where the modules of attention call ``torch.nn.functional.scaled_dot_product_attention``, since
    some processors of diffusers (that of SD3) drop the one they are given. On entry D is evaluated twice, on states
    that share a single token, with windows of that token: each attention has to have taken the mask, and D there must
    not change. Hooks are on the network itself, whoever calls it, and are removed on exit.

    Examples
    --------
    >>> import pytest, torch, fastcrit as fc
    >>> diffusers = pytest.importorskip("diffusers")
    >>> net = diffusers.DiTTransformer2DModel(
    ...     num_attention_heads=2, attention_head_dim=8, in_channels=1, num_layers=2, sample_size=12, patch_size=2,
    ...     num_embeds_ada_norm=3, norm_num_groups=1,
    ... )
    >>> D = fc.diffusion.from_diffusers(net.eval(), diffusers.DDIMScheduler())
    >>> with fc.diffusion.attention_window(D, 1) as window:
    ...     near = D(torch.ones(1, 1, 12, 12), 1.0, 0)
    >>> print(window)
    windows of 3 x 3 tokens, which reach 2 tokens (5 sites) over 2 blocks
    """
    radius = check_integer(radius, "radius", 0)
    with windows_of(D, periodic=periodic) as windows:
        windows.see(radius)
        yield windows.window(radius)


@contextmanager
def windows_of(D: Denoiser, *, periodic: bool) -> Iterator[Windows]:
    """The hooks, once it was seen that they work; windows are as large as ``see`` said last, and at first none."""
    windows = Windows(D, periodic=periodic)
    with windows.hooked():
        windows.check()
        windows.see(None)
        yield windows


@dataclass(frozen=True)
class _Layout:
    """Where a class of networks has its attention among image tokens.

    Attributes
    ----------
    blocks : dict
        By the name of a list of blocks that follow each other, those of its modules of attention in one of them, side
        by side.
    text : str
        Where the tokens of text are in an attention of both: "before", "behind", or "apart" where there are none.
    patch : int or None
        Sites a side of a token; None: its config says so.
    """

    blocks: dict[str, tuple[str, ...]]
    text: str = "apart"
    patch: int | None = None


_LAYOUTS = {
    "DiTTransformer2DModel": _Layout({"transformer_blocks": ("attn1",)}),
    "PixArtTransformer2DModel": _Layout({"transformer_blocks": ("attn1",)}),
    "SD3Transformer2DModel": _Layout({"transformer_blocks": ("attn", "attn2")}, "behind"),
    # Its tokens are packed before it sees them.
    "FluxTransformer2DModel": _Layout(
        {"transformer_blocks": ("attn",), "single_transformer_blocks": ("attn",)}, "before", 2
    ),
    "AuraFlowTransformer2DModel": _Layout(
        {"joint_transformer_blocks": ("attn",), "single_transformer_blocks": ("attn",)}, "before"
    ),
}


class Windows:
    """Hooks that mask the attention of a network, and what they did."""

    def __init__(self, D: Denoiser, *, periodic: bool) -> None:
        if not isinstance(D, Denoiser):
            raise TypeError(f"D: expected a Denoiser, got {type(D).__name__}")
        net = D._network
        owner = next((c.__name__ for c in type(net).__mro__ if c.__module__.startswith("diffusers.")), "")
        layout = _LAYOUTS.get(owner)
        if layout is None:
            raise TypeError(f"D: attention windows are known of {', '.join(_LAYOUTS)}, got {D.name}; {_INSTEAD}")
        if D.shape is None or len(D.shape) != 3:
            raise ValueError(f"D: windows need the shape of a state; tell {D.name}'s adapter, as shape=(C, H, W)")
        if is_compiled(D._given):
            raise ValueError(
                f"D: {D.name} is inside torch.compile, which keeps or drops hooks unseen; give the adapter the network "
                f"that is not compiled, or {_INSTEAD}"
            )
        self._D = D
        self._text = layout.text
        self._patch = layout.patch or int(net.config["patch_size"])
        self._grid = (D.shape[1] // self._patch, D.shape[2] // self._patch)
        self._periodic = periodic
        blocks = {f"{names}.{i}": block for names in layout.blocks for i, block in enumerate(getattr(net, names))}
        self._blocks = len(blocks)
        self._attentions = {
            f"{name}.{attention}": getattr(block, attention)
            for name, block in blocks.items()
            for attention in layout.blocks[name.split(".")[0]]
            if getattr(block, attention, None) is not None
        }
        self._window: AttentionWindow | None = None
        self._masks: dict[tuple[torch.device, int], Tensor] = {}
        # Names of the attentions that took a mask since `see`.
        self._masked: set[str] = set()
        # Of each thread: what to close behind the modules that it is in.
        self._inside = threading.local()

    def window(self, radius: int) -> AttentionWindow:
        """What a radius comes to."""
        return AttentionWindow(radius, self._blocks, self._patch, self._grid, self._periodic)

    def see(self, radius: int | None) -> None:
        """Windows of this radius from now on; None: the network as it is."""
        window = None if radius is None else self.window(radius)
        self._window = None if window is None or window.covers else window
        self._masks.clear()
        self._masked.clear()

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks are on the network's modules of attention."""
        handles = []
        try:
            for name, module in self._attentions.items():
                if any(_ours(hook) for hook in module._forward_pre_hooks.values()):
                    raise RuntimeError(f"D: {self._D.name} has attention windows already; leave their `with` first")
                handles.append(module.register_forward_pre_hook(functools.partial(self._enter, name)))
                # Also where forward fails: the mode must not outlive it.
                handles.append(module.register_forward_hook(self._leave, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def check(self) -> None:
        """ValueError unless D at a token follows from that token alone, under windows of radius 0. Two evaluations."""
        D = self._D
        assert D.shape is not None
        self.see(0)
        if self._window is None:  # a single token
            return
        level = min(1.0, D.highest)
        draw = torch.Generator().manual_seed(0)
        y, far = ((1 + level**2) ** 0.5 * torch.randn(1, *D.shape, generator=draw) for _ in range(2))
        rows, columns = (slice(n // 2 * self._patch, (n // 2 + 1) * self._patch) for n in self._grid)
        far[..., rows, columns] = y[..., rows, columns]
        labels = torch.zeros(1, dtype=torch.int64) if D.classes else None
        with torch.no_grad():
            one, two = (D(x.to(D.device or "cpu"), level, labels)[..., rows, columns] for x in (y, far))
        if not bool(torch.isfinite(one).all() and torch.isfinite(two).all()):
            raise FloatingPointError(f"D: {D.name} of noise is NaN or infinite at s = {level:.6g}")
        deaf = [name for name in self._attentions if name not in self._masked]
        if deaf:
            raise ValueError(
                f"D: {len(deaf)} of {len(self._attentions)} attentions of {D.name} ignore the mask of windows, "
                f"{deaf[0]} with {_processor(self._attentions[deaf[0]])} the first: no image tokens come to torch's "
                "scaled_dot_product_attention there. Set processors or a backend that call it, such as "
                f"AttnProcessor2_0, or model.set_attention_backend('native'), or {_INSTEAD}"
            )
        # Both are the same arithmetic on the same numbers, in half precision, too: a rounding of D's own at the most.
        change = float((one - two).abs().max())
        if change > 4 * torch.finfo(one.dtype).eps * float(y.abs().max()):
            kinds = ", ".join(sorted({_processor(module) for module in self._attentions.values()}))
            raise ValueError(
                f"D: {D.name} at a token changes by {change:.3g} with what is outside of its window: its attention "
                f"({kinds}) ignores the mask, or something else lets tokens see each other; {_INSTEAD}"
            )

    def _enter(self, name: str, module: torch.nn.Module, args: Any) -> None:
        open_ = ExitStack()
        open_.enter_context(_Masking(functools.partial(self._mask, name)))
        self._open().append(open_)

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._open().pop().close()

    def _open(self) -> list[ExitStack]:
        if not hasattr(self._inside, "open"):
            self._inside.open = []
        return self._inside.open  # type: ignore[no-any-return]  # a thread's attribute

    def _mask(self, name: str, size: int, device: torch.device) -> Tensor | None:
        """Whether token i of ``size`` sees token j; None: all of them, or these are not the image's."""
        tokens = math.prod(self._grid)
        if self._window is None or size < tokens or (size > tokens and self._text == "apart"):
            return None
        self._masked.add(name)
        key = (device, size)
        if key not in self._masks:
            self._masks[key] = _mask(self._window, size - tokens, self._text).to(device)
        return self._masks[key]


class _Masking(TorchFunctionMode):
    """Attention among as many queries as keys gets a mask more."""

    _NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")

    def __init__(self, mask_of: Callable[[int, torch.device], Tensor | None]) -> None:
        super().__init__()
        self._mask_of = mask_of

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = dict(zip(self._NAMES, args, strict=False)) | kwargs
        query, size = given["query"], given["query"].shape[-2]
        mask = self._mask_of(size, query.device) if given["key"].shape[-2] == size else None
        own = given.get("attn_mask")
        if mask is not None and own is not None:
            mask = own & mask if own.dtype == torch.bool else own.masked_fill(~mask, -torch.inf)
        if mask is None:
            return func(**given)
        try:
            return func(**(given | {"attn_mask": mask}))
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of backends that are set and take no mask
            raise ValueError(
                f"D: scaled_dot_product_attention takes no mask where it is called: {error} Set a backend that does, "
                f"such as model.set_attention_backend('native'), or {_INSTEAD}"
            ) from error


def _mask(window: AttentionWindow, text: int, where: str) -> Tensor:
    """Image tokens see those of their windows and text; text sees text. (size, size) of type bool."""
    near = [torch.from_numpy(near_along(side, window.radius, window.periodic)) for side in window.grid]
    tokens = math.prod(window.grid)
    image = slice(text, None) if where == "before" else slice(0, tokens)
    mask = torch.zeros(tokens + text, tokens + text, dtype=torch.bool)
    mask[:, slice(0, text) if where == "before" else slice(tokens, None)] = True
    mask[image, image] = (near[0][:, None, :, None] & near[1][None, :, None, :]).reshape(tokens, tokens)
    return mask


def _ours(hook: Any) -> bool:
    return isinstance(hook, functools.partial) and isinstance(getattr(hook.func, "__self__", None), Windows)


def _processor(module: torch.nn.Module) -> str:
    """The name of a module's processor, with its backend where one is set."""
    processor = getattr(module, "processor", None)
    backend = getattr(processor, "_attention_backend", None)
    return type(processor).__name__ + (f" on {getattr(backend, 'value', backend)}" if backend is not None else "")
