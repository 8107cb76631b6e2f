"""Tests that need a GPU: kernels as they run there. They import torch, Triton, numpy and hypothesis, and no vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is here where torch sees no GPU, saying so."""
    if torch.cuda.is_available():
        return
    reason = pytest.mark.skip(reason="needs a GPU, and torch.cuda.is_available() is False")
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(reason)
