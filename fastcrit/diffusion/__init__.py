"""Trained models: adapters to one call D(y, s, labels), sampling, a small network and its training. Needs torch."""

from __future__ import annotations

from fastcrit._edge.extras import need

need("torch", "fastcrit.diffusion")

from fastcrit.diffusion import adapters, fashion_mnist  # noqa: E402 (after the check, for its message)
from fastcrit.diffusion.adapters import *  # noqa: E402, F403 (a new adapter is named once, in its file)
from fastcrit.diffusion.attention_windows import AttentionWindow, attention_window  # noqa: E402
from fastcrit.diffusion.checkpoints import load_edm2  # noqa: E402
from fastcrit.diffusion.decision import EntropyRate, class_entropy_rate, forward_backward  # noqa: E402
from fastcrit.diffusion.denoiser import Denoiser  # noqa: E402
from fastcrit.diffusion.diffusers import from_diffusers  # noqa: E402
from fastcrit.diffusion.exact import from_gaussian, from_mixture, from_patch  # noqa: E402
from fastcrit.diffusion.find_pulse import FoundPulse, find_pulse  # noqa: E402
from fastcrit.diffusion.folders import load_diffusers  # noqa: E402
from fastcrit.diffusion.guidance import (  # noqa: E402
    Constant,
    Guided,
    Interval,
    Pulse,
    Weight,
    guided,
    to_diffusers_callback,
)
from fastcrit.diffusion.information import Information, InformationCurve, LevelWindow, information  # noqa: E402
from fastcrit.diffusion.judge import Judge, load_judge  # noqa: E402
from fastcrit.diffusion.locality import LocalityGap, locality_gap  # noqa: E402
from fastcrit.diffusion.net import Net, NetConfig  # noqa: E402
from fastcrit.diffusion.pipelines import from_pipeline  # noqa: E402
from fastcrit.diffusion.pretrained import SHIPPED, pretrained  # noqa: E402
from fastcrit.diffusion.probe import Probe  # noqa: E402
from fastcrit.diffusion.retention import Retention  # noqa: E402
from fastcrit.diffusion.sample import sample  # noqa: E402
from fastcrit.diffusion.schedulers import scheduler_levels  # noqa: E402
from fastcrit.diffusion.train import Training, load_net, save_net  # noqa: E402

__all__ = [
    *adapters.__all__,
    "SHIPPED",
    "AttentionWindow",
    "Constant",
    "Denoiser",
    "EntropyRate",
    "FoundPulse",
    "Guided",
    "Information",
    "InformationCurve",
    "Interval",
    "Judge",
    "LevelWindow",
    "LocalityGap",
    "Net",
    "NetConfig",
    "Probe",
    "Pulse",
    "Retention",
    "Training",
    "Weight",
    "attention_window",
    "class_entropy_rate",
    "fashion_mnist",
    "find_pulse",
    "forward_backward",
    "from_diffusers",
    "from_gaussian",
    "from_mixture",
    "from_patch",
    "from_pipeline",
    "guided",
    "information",
    "load_diffusers",
    "load_edm2",
    "load_judge",
    "load_net",
    "locality_gap",
    "pretrained",
    "sample",
    "save_net",
    "scheduler_levels",
    "to_diffusers_callback",
]
