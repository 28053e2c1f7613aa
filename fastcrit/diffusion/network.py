"""What can be read from a caller's network: what is inside its wrappers, where it computes and in which type."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def built_plainly() -> Iterator[None]:
    """Networks are made and read on the CPU, in float32, whatever torch's default device and type are."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def unwrapped(net: Any) -> Any:
    """The network itself inside torch.compile, DataParallel and DistributedDataParallel."""
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while hasattr(net, "_orig_mod") or isinstance(net, parallel):
        net = net.module if isinstance(net, parallel) else net._orig_mod
    return net


def is_compiled(net: Any) -> bool:
    """Whether torch.compile stands around a network, or around a module in it."""
    modules = net.modules() if isinstance(net, torch.nn.Module) else ()
    return hasattr(net, "_orig_mod") or any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None for module in modules
    )


def parameters_of_call(net: Any) -> tuple[inspect.Parameter, ...] | None:
    """What a network or function is called with; None where that cannot be known, as of built-in functions."""
    call = net.forward if isinstance(net, torch.nn.Module) else net
    try:
        return tuple(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        schema = getattr(call, "schema", None)  # of traced and scripted networks
        if schema is None:
            return None
    kinds = {False: inspect.Parameter.POSITIONAL_OR_KEYWORD, True: inspect.Parameter.KEYWORD_ONLY}
    return tuple(inspect.Parameter(a.name, kinds[a.kwarg_only]) for a in schema.arguments if a.name != "self")


def device_of(net: Any) -> torch.device | None:
    """Where a module takes its input: of its parameters, or where the hooks that keep them elsewhere bring them."""
    for hook in _hooks(net):
        group = getattr(hook, "group", None)
        device = getattr(group, "onload_device", getattr(hook, "execution_device", None))
        if device is not None:
            return torch.empty(0, device=device).device  # with its number
    weight = next(_weights(net), None)
    return None if weight is None else weight.device


def dtype_of(net: Any) -> torch.dtype | None:
    """Type that a module's input has to have: of its parameters, or the one it casts them to from what it stores."""
    for hook in _hooks(net):
        dtype = getattr(hook, "compute_dtype", None)
        if dtype is not None:
            return dtype  # type: ignore[no-any-return]  # a hook's attribute
    # Quantised weights are integers or of one byte, and no type of states. What diffusers keeps in float32 inside a
    # network of half precision casts its own input, and does not say what the network's is.
    kept = tuple(getattr(unwrapped(net), "_keep_in_fp32_modules", None) or ())
    named = unwrapped(net).named_parameters() if isinstance(net, torch.nn.Module) else ()
    wide = [(name, w.dtype) for name, w in named if w.is_floating_point() and w.element_size() > 1]
    told = (dtype for name, dtype in wide if not any(part in name for part in kept))
    return next(told, wide[0][1] if wide else None)


def training_mode(net: Any, name: str) -> str | None:
    """What is wrong with a network in training mode, in words; None for one in evaluation mode.

    Of one that is not, also modules inside that drop at random or average over the batch; of a function, the networks
    that it calls, where they are names of its own.
    """
    said = "is in training mode, where dropout makes D random; call .eval()"
    for module in _called(net):
        if getattr(module, "training", False):  # frozen ones have no mode
            return f"{name} {said}" if module is net else f"{name} calls {type(module).__name__}, which {said}"
        for path, inner in module.named_modules():
            if not isinstance(inner, (_BatchNorm, _DropoutNd)) or not inner.training:
                continue
            if isinstance(inner, _BatchNorm) or inner.p > 0:
                return (
                    f"{name}: its {path} ({type(inner).__name__}) is in training mode, where D is random or depends on "
                    "the batch; call .eval()"
                )
    return None


def check_forgetful(net: Any, name: str) -> None:
    """ValueError for a network of diffusers that answers with parts of what it said before."""
    if getattr(net, "is_cache_enabled", False) is True:
        raise ValueError(
            f"{name} keeps parts of earlier answers (enable_cache), so that it is no function of state and level; call "
            ".disable_cache()"
        )


def _called(net: Any) -> Iterator[torch.nn.Module]:
    """A network, or those that a function, method or partial calls by names of its own."""
    if isinstance(net, torch.nn.Module):
        yield net
    elif isinstance(net, functools.partial):
        yield from _called(unwrapped(net.func))
    elif inspect.ismethod(net):
        yield from _called(net.__self__)
    elif inspect.isfunction(net):
        names = inspect.getclosurevars(net)
        for value in (*names.nonlocals.values(), *names.globals.values()):
            if isinstance(unwrapped(value), torch.nn.Module):
                yield unwrapped(value)


def _weights(net: Any) -> Iterator[Tensor]:
    return iter(net.parameters()) if isinstance(net, torch.nn.Module) else iter(())


def _hooks(net: Any) -> Iterator[Any]:
    """Hooks of accelerate and diffusers on a module and those inside it, the outermost first."""
    for module in net.modules() if isinstance(net, torch.nn.Module) else ():
        hook = getattr(module, "_hf_hook", None)
        yield from getattr(hook, "hooks", () if hook is None else (hook,))
        yield from getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values()
