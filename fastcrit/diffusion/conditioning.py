"""Prompts as classes: label j takes row j of every tensor that a network is given beside state and time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcrit._edge.arrays import to_tensor
from fastcrit.diffusion.network_classes import TOKENS, Condition, Config


class Conditioning:
    """Tensors with a row for each of P prompts, and one more for "no prompt" where there is one.

    Attributes
    ----------
    classes : int
        P, or P + 1 with the null row.
    null_label : int or None
        P, with a null row.
    sha256 : str
        Of names, shapes, types and bytes as they were given.
    """

    def __init__(
        self,
        conditioning: Mapping[str, Any] | None,
        null: Mapping[str, Any] | None,
        *,
        name: str,
        needs: Sequence[Condition] | None,
        config: Config,
        device: torch.device | None,
        dtype: torch.dtype | None,
    ) -> None:
        """``needs``: of a class of the table; None: any names."""
        given = _flat(conditioning, "conditioning", needs)
        _check_names(given, "conditioning", name, needs, config)
        prompts = {len(tensor) if tensor.ndim else 0 for tensor in given.values()}
        if len(prompts) != 1 or not max(prompts):
            raise ValueError(f"conditioning: expected a row a prompt in every tensor, got {_shapes(given)}")
        (count,) = prompts
        empty = None if null is None else _flat(null, "null", needs)
        if empty is not None and {k: (1, *v.shape[1:]) for k, v in given.items()} != {
            k: tuple(v.shape) for k, v in empty.items()
        }:
            raise ValueError(
                f"null: expected one row for each of {_shapes({k: v[:1] for k, v in given.items()})}, got "
                f"{_shapes(empty)}; embeddings of prompts are padded to the same number of tokens"
            )
        if needs is not None:
            _check_shapes(given, name, needs, config)
        self.classes = count + (empty is not None)
        self.null_label = None if empty is None else count
        self.sha256 = _digest(given, empty)
        self._masks = tuple(c.name for c in needs or () if c.mask)
        self._rows: dict[str, Tensor] = {}
        for key, tensor in given.items():
            rows = tensor if empty is None else torch.cat([tensor, empty[key].to(tensor)])
            # Sizes and scales may come as integers; of a call that is not known here they stay as they are.
            cast = rows.is_floating_point() or (needs is not None and key not in self._masks)
            self._rows[key] = rows.to(device=device, dtype=dtype if cast and dtype is not None else rows.dtype)

    def rows(self, labels: Tensor) -> dict[str, Tensor]:
        """The row of each label (batch,), by name."""
        return {name: rows.to(labels.device).index_select(0, labels) for name, rows in self._rows.items()}

    def with_hidden_tokens(self) -> tuple[dict[str, Tensor], tuple[str, dict[str, Tensor]]] | None:
        """One prompt some tokens of which a mask hides, that mask's name, and the same with others in their place."""
        for name in self._masks:
            if name not in self._rows:
                continue
            hidden = self._rows[name] == 0
            where = hidden.any(dim=1).nonzero()
            if len(where):
                one = self.rows(where[0])
                tokens = one[TOKENS]
                return one, (name, {TOKENS: torch.where(hidden[where[0], :, None], 1 - tokens, tokens)})
        return None


def nested(conditions: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keywords of a call: ``a.b`` is entry ``b`` of a dictionary ``a``."""
    call: dict[str, Any] = {}
    for name, tensor in conditions.items():
        outer, _, inner = name.partition(".")
        if inner:
            call.setdefault(outer, {})[inner] = tensor
        else:
            call[name] = tensor
    return call


def _flat(given: Any, argument: str, needs: Sequence[Condition] | None) -> dict[str, Tensor]:
    """Tensors by name; those inside of a dictionary by ``outer.inner``, or as the table has them by ``inner``."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{argument}: expected a dictionary of tensors with a row a prompt, got {type(given).__name__}")
    places = {f"{c.inside}.{c.name}": c.name for c in needs or () if c.inside}
    flat: dict[str, Tensor] = {}
    for name, value in given.items():
        inner = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {str(name): value}
        for key, tensor in inner.items():
            known = places.get(key, key)
            if known in flat:
                raise ValueError(f"{argument}: {known} is given twice")
            flat[known] = tensor.detach() if isinstance(tensor, Tensor) else to_tensor(np.asarray(tensor), known)
    return flat


def _check_names(
    given: Mapping[str, Tensor], argument: str, name: str, needs: Sequence[Condition] | None, config: Config
) -> None:
    """ValueError for what is missing or not known, with all that a class of the table needs."""
    if needs is None:
        return
    if not needs:
        raise ValueError(f"{argument}: {name} takes none; its labels are classes of its own")
    missing = [c.name for c in needs if c.name not in given and not c.optional]
    unknown = sorted(given.keys() - {c.name for c in needs})
    if missing or unknown:
        wrong = [f"{', '.join(missing)} missing"] if missing else []
        wrong += [f"{', '.join(unknown)} not known"] if unknown else []
        raise ValueError(f"{argument}: {name} needs {describe(needs, config)}; {' and '.join(wrong)}")


def describe(needs: Sequence[Condition], config: Config) -> str:
    """Names and shapes of what a network is given, in words: P is the number of prompts."""
    return ", ".join(
        f"{c.inside + '.' if c.inside else ''}{c.name} ({', '.join(['P', *map(str, _row(c, config))])})"
        + (" if there is one" if c.optional else "")
        for c in needs
    )


def _row(condition: Condition, config: Config) -> list[int | str]:
    """The shape of a row: what the config says of it as numbers, and words for the rest."""
    sizes = (config.get(n, n) if isinstance(n, str) else n for n in condition.row)
    # What a network of several widths has, or one whose config leaves it open, is not checked.
    return [n if isinstance(n, (int, str)) else "width" for n in sizes]


def _check_shapes(given: Mapping[str, Tensor], name: str, needs: Sequence[Condition], config: Config) -> None:
    """ValueError for rows of another shape than the network has; words in them stand for the same number each."""
    sizes: dict[str, int] = {}
    for c in needs:
        if c.name not in given:
            continue
        found = tuple(given[c.name].shape[1:])
        expected = _row(c, config)
        fits = len(found) == len(expected) and all(
            n == (sizes.setdefault(e, n) if isinstance(e, str) and e != "width" else n if isinstance(e, str) else e)
            for n, e in zip(found, expected, strict=True)
        )
        if not fits:
            raise ValueError(
                f"conditioning: {name} needs {describe(needs, config)}; got {c.name} {tuple(given[c.name].shape)}"
            )
    total = config.get("projection_class_embeddings_input_dim")
    if total and "text_embeds" in given:  # of SDXL: both are embedded side by side
        width = given["text_embeds"].shape[1] + given["time_ids"].shape[1] * config["addition_time_embed_dim"]
        if width != total:
            raise ValueError(
                f"conditioning: {name} embeds text_embeds and time_ids in {total} numbers, and those of "
                f"{_shapes({k: given[k] for k in ('text_embeds', 'time_ids')})} are {width}"
            )


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"


def _digest(given: Mapping[str, Tensor], null: Mapping[str, Tensor] | None) -> str:
    """Sha256 of names, shapes, types and bytes, the null rows' apart."""
    digest = hashlib.sha256()
    for part, tensors in (("conditioning", given), ("null", null or {})):
        for name in sorted(tensors):
            tensor = tensors[name].cpu().contiguous()
            digest.update(f"{part}:{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
