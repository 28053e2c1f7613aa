"""How each class of network is called: one row a class, found by its name. Nothing is guessed from attributes alone.

A class joins by a row in `TABLE`; what a row says is what the pipeline of that class does in its loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastcrit import schedules
from fastcrit.diffusion.adapters import Convention, tensor_of

Config = Mapping[str, Any]

# Which time a network is given, in words.
TIMES = {
    "scheduler": "the scheduler's",
    "fraction": "a thousandth of the scheduler's: sigma in [0, 1] of flow matching",
    "scaled": "the scheduler's, times the timestep_scale of its config",
    "reversed": "1 - sigma in [0, 1]",
    "sigma": "the noise level itself",
}
# What masks of tokens belong to.
TOKENS = "encoder_hidden_states"
# What it returns.
PREDICTIONS = ("scheduler", "noise - x0", "x0 - noise", "denoised")


def _always(config: Config) -> bool:
    return True


@dataclass(frozen=True)
class Condition:
    """What a network is given beside state, time and class: a tensor with one row a prompt.

    Attributes
    ----------
    name : str
        Keyword of the call, or of the dictionary ``inside``.
    row : tuple
        Shape of a row: numbers, entries of the config, or words for any number; the same word is the same number.
    inside : str, optional
        The keyword of the call that takes a dictionary with this one in it.
    needed : callable
        Whether a network with this config is given it.
    optional : bool
        It may be left out.
    mask : bool
        1 for tokens that count, 0 for others; not cast to the network's type.
    """

    name: str
    row: tuple[int | str, ...]
    inside: str | None = None
    needed: Callable[[Config], bool] = _always
    optional: bool = False
    mask: bool = False


@dataclass(frozen=True)
class NetworkClass:
    """How networks of a class are called and what they return.

    Attributes
    ----------
    names : tuple of str
        Of the classes.
    state, time_by, labels : str
        Keywords of the call; labels: None where there are none.
    time : str
        One of `TIMES`.
    predicts : str
        "scheduler": what that says. Or a velocity, "noise - x0" or "x0 - noise"; or "denoised", D itself.
    classes : str, optional
        The entry of its config with the number of classes.
    null : str or bool
        Whether there is a label more, which stands for none, behind the others; a name: where that entry is above 0.
    one_hot : bool
        Labels are rows of 0 and 1.
    side, channels : str or None
        The entries of its config with the sides and the channels of a state.
    variance : bool
        It may return twice the channels; the second half is a variance and is dropped.
    conditions : tuple of Condition
    only : mapping
        Entries of its config, and the values with which it is called in this way.
    extra : mapping
        What else it is always given.
    dims : int
        Axes of a state's lattice.
    packed : bool
        Its states are tokens of 2 x 2 sites, with their positions beside them.
    remote : tuple of str
        A class that is no part of diffusers: entries that its config has to have.
    """

    names: tuple[str, ...]
    state: str
    time_by: str = "timestep"
    labels: str | None = None
    time: str = "scheduler"
    predicts: str = "scheduler"
    classes: str | None = None
    null: str | bool = False
    one_hot: bool = False
    side: str | None = "sample_size"
    channels: str = "in_channels"
    variance: bool = False
    conditions: tuple[Condition, ...] = ()
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    dims: int = 2
    packed: bool = False
    remote: tuple[str, ...] = ()

    def convention(self, said: Convention, config: Config, name: str, scheduler: str) -> Convention:
        """What the scheduler says, with what this class has otherwise; ValueError where they do not go together."""
        flow = self.predicts in ("noise - x0", "x0 - noise")
        if flow and said.kind != "velocity":
            raise ValueError(
                f"scheduler: {name} predicts a velocity, {self.predicts}, and {scheduler} says {said.kind!r}; expected "
                "one of flow matching, such as FlowMatchEulerDiscreteScheduler"
            )
        if self.time == "sigma" and said.kind != "preconditioned":
            raise ValueError(
                f"scheduler: {name} is a network of EDM, in whose pipeline the scheduler is one of EDM's, such as "
                f"EDMEulerScheduler, and gives its levels; got {scheduler}"
            )
        if self.time == "sigma":
            said = replace(said, schedule=schedules.EDM())
        elif self.time == "reversed":
            said = replace(said, time_scale=1.0, reverse=True)
        elif flow:
            said = replace(said, reverse=False)
        if self.time == "fraction":
            said = replace(said, time_scale=said.time_scale / 1000.0)
        elif self.time == "scaled":
            said = replace(said, time_scale=said.time_scale * float(config["timestep_scale"]))
        if self.predicts == "denoised":
            return replace(said, kind="sample")
        return replace(said, sign=1 if self.predicts == "noise - x0" else -1) if flow else said

    def check(self, config: Config, name: str) -> None:
        """TypeError for a network of this class whose config asks for another call."""
        for entry, values in self.only.items():
            if config.get(entry) not in values:
                raise TypeError(f"model: {name} with {entry}={config.get(entry)!r} is called in another way; {hook()}")
        taken, returned = config.get(self.channels), config.get("out_channels")
        if taken and returned and returned != taken and not (self.variance and returned == 2 * taken):
            raise TypeError(
                f"model: {name} takes {taken} channels and returns {returned}: something is put beside the state; "
                f"{hook()}"
            )

    def shape(self, config: Config) -> tuple[int, ...] | None:
        """(C, H, W) of a state, or (C, L), where the config says so."""
        side = config.get(self.side) if self.side else None
        channels = config.get(self.channels)
        if side is None or channels is None:
            return None
        return (int(channels), *(side if isinstance(side, (list, tuple)) else (side,) * self.dims))

    def classes_of(self, config: Config) -> tuple[int, int | None]:
        """Number of classes, that of "no label" included, and the latter."""
        known = int(config.get(self.classes) or 0) if self.classes else 0
        has_null = float(config.get(self.null) or 0.0) > 0 if isinstance(self.null, str) else self.null
        return (known + 1, known) if known and has_null else (known, None)

    def needs(self, config: Config) -> tuple[Condition, ...]:
        """What a network with this config is given beside state, time and class."""
        return tuple(c for c in self.conditions if c.needed(config))

    def call(
        self, model: Callable[..., Any], x: Tensor, t: Tensor, labels: Tensor | None, conditions: Mapping[str, Tensor]
    ) -> Any:
        """The network's answer."""
        given: dict[str, Any] = {self.state: x, self.time_by: t, **self.extra}
        if labels is not None:
            assert self.labels is not None
            given[self.labels] = labels
        for c in self.conditions:
            if c.name in conditions:
                (given.setdefault(c.inside, {}) if c.inside else given)[c.name] = conditions[c.name]
        if not self.packed:
            return model(**given)
        given |= {self.state: _packed(x), "img_ids": _positions(x)}
        given["txt_ids"] = x.new_zeros((conditions[TOKENS].shape[1], 3))
        return _unpacked(tensor_of(model(**given)), x)


def _packed(x: Tensor) -> Tensor:
    """(batch, C, H, W) to tokens (batch, H/2 W/2, 4 C) of 2 x 2 sites, as FluxPipeline has them."""
    batch, channels, height, width = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"y: expected even sides, which are packed two by two, got {height} x {width}")
    tiles = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(batch, height * width // 4, 4 * channels)


def _unpacked(tokens: Tensor, x: Tensor) -> Tensor:
    """Tokens to the shape of ``x``."""
    batch, channels, height, width = x.shape
    tiles = tokens.reshape(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(batch, channels, height, width)


def _positions(x: Tensor) -> Tensor:
    """Row and column of each token (tokens, 3); the first of the three is 0."""
    rows, columns = (torch.arange(n // 2, device=x.device, dtype=x.dtype) for n in x.shape[-2:])
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
    return torch.cat([torch.zeros_like(place[:, :1]), place], dim=1)


def _text_and_time(config: Config) -> bool:
    return config.get("addition_embed_type") == "text_time"


def _sized(config: Config) -> bool:
    """Whether a PixArt is told resolution and aspect ratio: where its config does not say, those of 128 sites are."""
    said = config.get("use_additional_conditions")
    return bool(config.get("sample_size") == 128 if said is None else said)


def _guided(config: Config) -> bool:
    return bool(config.get("guidance_embeds"))


def _tokens(width: str) -> Condition:
    return Condition(TOKENS, ("tokens", width))


_MASK = Condition("encoder_attention_mask", ("tokens",), mask=True)
_ADDED = "added_cond_kwargs"

TABLE = (
    NetworkClass(
        ("UNet2DModel",), "sample", labels="class_labels", classes="num_class_embeds", variance=True,
        only={"class_embed_type": (None,)},
    ),
    # Its extra_in_channels are those of the time, which the network puts beside the state itself.
    NetworkClass(("UNet1DModel",), "sample", dims=1),
    # SD 1.5 and 2; SDXL is told pooled embeddings and sizes besides.
    NetworkClass(
        ("UNet2DConditionModel",), "sample", variance=True,
        conditions=(
            _tokens("cross_attention_dim"),
            replace(_MASK, optional=True),
            Condition("text_embeds", ("pooled",), _ADDED, _text_and_time),
            Condition("time_ids", ("sizes",), _ADDED, _text_and_time),
        ),
        only={
            "addition_embed_type": (None, "text_time"), "class_embed_type": (None,), "num_class_embeds": (None,),
            "encoder_hid_dim_type": (None,), "time_cond_proj_dim": (None,),
        },
    ),
    NetworkClass(
        ("DiTTransformer2DModel",), "hidden_states", labels="class_labels", classes="num_embeds_ada_norm", null=True,
        variance=True,
    ),
    NetworkClass(
        ("PixArtTransformer2DModel",), "hidden_states", variance=True,
        conditions=(
            _tokens("caption_channels"),
            _MASK,
            Condition("resolution", (2,), _ADDED, _sized),
            Condition("aspect_ratio", (1,), _ADDED, _sized),
        ),
    ),
    NetworkClass(
        ("SD3Transformer2DModel",), "hidden_states", predicts="noise - x0",
        conditions=(
            _tokens("joint_attention_dim"), Condition("pooled_projections", ("pooled_projection_dim",)),
        ),
    ),
    NetworkClass(
        ("SanaTransformer2DModel",), "hidden_states", time="scaled", predicts="noise - x0", variance=True,
        conditions=(_tokens("caption_channels"), _MASK), only={"guidance_embeds": (None, False)},
    ),
    NetworkClass(
        ("FluxTransformer2DModel",), "hidden_states", time="fraction", predicts="noise - x0", side=None, packed=True,
        conditions=(
            _tokens("joint_attention_dim"),
            Condition("pooled_projections", ("pooled_projection_dim",)),
            Condition("guidance", (), needed=_guided),
        ),
    ),
    NetworkClass(
        ("AuraFlowTransformer2DModel",), "hidden_states", time="fraction", predicts="noise - x0",
        conditions=(_tokens("joint_attention_dim"),),
    ),
    NetworkClass(
        ("Lumina2Transformer2DModel",), "hidden_states", time="reversed", predicts="x0 - noise",
        conditions=(_tokens("cap_feat_dim"), _MASK),
    ),
    NetworkClass(
        ("SiTTransformer2DModel", "LightningDiTTransformer2DModel"), "hidden_states", labels="class_labels",
        time="reversed", predicts="x0 - noise", classes="num_classes", null="class_dropout_prob", side="input_size",
        remote=("input_size", "in_channels", "num_classes", "class_dropout_prob"),
    ),
    # Its scheduler says "epsilon", and its pipeline asks that for levels alone: what it returns is D.
    NetworkClass(
        ("EDM2UNet2DModel",), "sample", time_by="sigma", labels="class_labels", time="sigma", predicts="denoised",
        classes="num_class_embeds", one_hot=True, extra={"force_fp32": True},
        remote=("sample_size", "in_channels", "num_class_embeds", "sigma_data"),
    ),
)  # fmt: skip


def hook() -> str:
    """What to do with a network that is called in another way, in words."""
    return (
        "say how it is called: from_diffusers(model, scheduler, call=lambda model, x, t, labels, conditions: "
        "model(x, t).sample, shape=.., classes=..), with x and t as the scheduler has them and what the pipeline passes"
    )


def row_of(model: Any, config: Config) -> NetworkClass | None:
    """The row of an unwrapped network, by the class that owns its ``forward``.

    None for whatever has nothing to do with diffusers; TypeError for its classes that are not in the table.
    """
    kind = type(model)
    owner = next((c for c in kind.__mro__ if "forward" in vars(c)), kind)
    name, own = owner.__name__, owner.__module__.startswith("diffusers.")
    row = next((r for r in TABLE if name in r.names and own == (not r.remote)), None)
    if row is None and not any(c.__module__.startswith("diffusers.") for c in kind.__mro__):
        return None
    missing = [] if row is None else [entry for entry in row.remote if entry not in config]
    if row is None or missing:
        known = ", ".join(n for r in TABLE for n in r.names)
        lacks = f" as one of that name with {', '.join(missing)} in its config" if missing else ""
        raise TypeError(
            f"model: {name} is not in the table of networks that are known{lacks} ({known}); {hook()}. A network in "
            "half precision behind a function needs an nn.Module around it, from which its type and device are read"
        )
    row.check(config, name)
    return row
