"""Whole runs: a configuration in, an `xarray.Dataset` and a folder with figures out."""

from __future__ import annotations

from fastcrit.studies import fashion_mnist, guidance, imagenet, patch
from fastcrit.studies.fashion_mnist import FashionMnistStudy
from fastcrit.studies.guidance import GuidanceStudy
from fastcrit.studies.imagenet import ImageNetStudy
from fastcrit.studies.patch import PatchStudy

__all__ = ["FashionMnistStudy", "GuidanceStudy", "ImageNetStudy", "PatchStudy"]

# What ``fastcrit study NAME`` runs.
COMMANDS = {
    "patch": patch.COMMAND,
    "fashion-mnist": fashion_mnist.COMMAND,
    "guidance": guidance.COMMAND,
    "imagenet": imagenet.COMMAND,
}
