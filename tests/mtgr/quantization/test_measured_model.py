"""The checkpoints that formats are measured on: made once, and without weights where nobody has trained a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from quantized import WIDTHS, calibration_log
from serving import random_checkpoint

from mtgr.errors import InputError
from mtgr.quantization.models import MeasuredModel
from mtgr.quantization.scheme import Method


def test_a_trained_model_is_quantised_once(tmp_path: Path) -> None:
    """In a process of its own, and found again by the next run."""
    source = random_checkpoint(tmp_path / "source", **WIDTHS)
    model = MeasuredModel(source, None, calibration_log(3), tmp_path / "work")
    assert model.by(None).directory == source
    made = model.by("awq")
    assert made.quantization is not None
    assert made.quantization.method == "awq"
    written = made.weights.stat().st_mtime_ns
    assert model.by("awq").weights.stat().st_mtime_ns == written


def test_a_preset_needs_no_weights(tmp_path: Path) -> None:
    """Not even eight billion of them; whoever reads them is told that they are missing."""
    model = MeasuredModel(None, "8b", None, tmp_path)
    assert model.dummy
    methods: tuple[Method | None, ...] = (None, "int8", "awq")
    for method in methods:
        made = model.by(method)
        assert made.config.n_layers == 36
        assert made.weights.stat().st_size < 1_000
        with pytest.raises(InputError, match="is missing"):
            made.verify()
