"""The study of a small trained network: a dataset a network, tables of several compared."""

from __future__ import annotations

from fastcrit.studies.fashion_mnist.study import FashionMnistStudy, data_bound, run_all
from fastcrit.studies.fashion_mnist.words import compare, summary

__all__ = ["FashionMnistStudy", "compare", "data_bound", "run_all", "summary"]
