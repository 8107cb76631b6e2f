"""The named models: published sizes, and the ones this project ships."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mtgr.config import ModelConfig
from mtgr.errors import InputError
from mtgr.suggestions import did_you_mean
from mtgr.training.options import TrainingOptions

# small, medium and large are the published sizes of MTGR (blocks x width, heads). The catalog size is
# nominal: training puts the size of its own catalog in.
PRESETS: Final[Mapping[str, ModelConfig]] = {
    "tiny": ModelConfig(
        d_model=64,
        n_layers=2,
        n_heads=2,
        d_qk=32,
        d_v=32,
        max_events=128,
        n_items=10_000,
        temperature=0.1,  # gets further in the minute or two that this preset is trained for
    ),
    "small": ModelConfig(
        d_model=512, n_layers=3, n_heads=2, d_qk=128, d_v=128, max_events=1024, n_items=50_000
    ),
    "medium": ModelConfig(
        d_model=768, n_layers=5, n_heads=3, d_qk=128, d_v=128, max_events=1024, n_items=50_000
    ),
    "large": ModelConfig(
        d_model=768, n_layers=15, n_heads=3, d_qk=128, d_v=128, max_events=1024, n_items=50_000
    ),
    "seed-light": ModelConfig(
        d_model=768, n_layers=16, n_heads=12, d_qk=64, d_v=64, d_ff=3072, max_events=1024, n_items=30_000
    ),
    "seed-high": ModelConfig(
        d_model=1024, n_layers=24, n_heads=16, d_qk=64, d_v=64, d_ff=4096, max_events=1024, n_items=50_000
    ),
    "8b": ModelConfig(
        d_model=4096, n_layers=36, n_heads=32, d_qk=128, d_v=128, d_ff=16_384, max_events=2048, n_items=50_000
    ),
}

RECIPES: Final[Mapping[str, TrainingOptions]] = {}
"""How a preset is trained, where that is not by the defaults."""


def preset(name: str) -> ModelConfig:
    """A preset by its name; InputError names the nearest one."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def recipe(name: str) -> TrainingOptions:
    """How a preset is trained."""
    return RECIPES.get(name, TrainingOptions())
