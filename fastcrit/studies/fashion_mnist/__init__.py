"""The study of a small trained network: a dataset a network, tables of several compared."""

from __future__ import annotations

from fastcrit.studies.fashion_mnist.bound import data_bound
from fastcrit.studies.fashion_mnist.several import NetworksCommand, run_all
from fastcrit.studies.fashion_mnist.study import FashionMnistStudy
from fastcrit.studies.fashion_mnist.words import compare, summary

__all__ = ["COMMAND", "FashionMnistStudy", "compare", "data_bound", "run_all", "summary"]

COMMAND = NetworksCommand(
    FashionMnistStudy,
    """Follow trained networks from noise to image: spectra, lengths, gains beside the Gaussian bound, critical levels.

    Without --net: every network that ships with fastcrit, compared.
    """,
    summary,
)
