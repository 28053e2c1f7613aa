"""Collected only where torch sees a CUDA device."""

from __future__ import annotations

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]


def pytest_report_header():
    if not torch.cuda.is_available():
        return "tests/gpu: torch sees no CUDA device here; nothing is collected"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (sm_{major}{minor}), torch {torch.__version__}, CUDA {torch.version.cuda}"
