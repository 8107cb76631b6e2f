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
    # the public HSTU-large recipe for MovieLens-1M: ids, positions and times alone
    "hstu-ml1m": ModelConfig(
        d_model=50,
        n_layers=8,
        n_heads=2,
        d_qk=25,
        d_v=25,
        max_events=160,  # grows to 208: the published length is 200
        n_items=4_000,
        position_bias=True,
        time_bias=True,
        discrete=(),
        continuous=(),
        temperature=0.05,
    ),
    # the recipes of docs/quality.md, chosen on the validation part of each log
    "amazon-beauty": ModelConfig(
        d_model=256,
        n_layers=2,
        n_heads=2,
        d_qk=128,
        d_v=128,
        d_ff=256,
        max_events=48,
        n_items=12_101,
        positions="none",
        position_bias=True,
        discrete=(),
        continuous=(),
        temperature=0.07,
    ),
    "kuairand-pure": ModelConfig(
        d_model=128,
        n_layers=2,
        n_heads=2,
        d_qk=64,
        d_v=64,
        d_ff=256,
        max_events=96,
        n_items=7_583,
        positions="none",
        position_bias=True,
        time_bias=True,
        item_bias=True,
        temperature=0.07,
    ),
}

RECIPES: Final[Mapping[str, TrainingOptions]] = {
    "hstu-ml1m": TrainingOptions(
        part="known",  # as published: all but the last video of each user, for all of the epochs
        negatives=128,
        uniform_share=1.0,
        epochs=101,
        patience=None,
        batch_tokens=128 * 160,
        learning_rate=1e-3,
        schedule="constant",
        dropout=0.2,
        unknown_share=0.0,
        bare_share=0.0,
    ),
    "amazon-beauty": TrainingOptions(
        negatives="all",
        epochs=10,
        patience=None,
        evaluate_every=2,
        batch_tokens=4096,
        learning_rate=4e-3,
        weight_decay=1.0,
        dropout=0.4,
        unknown_share=0.0,
        cold_share=0.0,
        bare_share=0.0,
        max_cases=30_000,
    ),
    "kuairand-pure": TrainingOptions(
        part="known",
        weights={"skip": 0.3, "watch": 0.3},
        conditioned_on=("skip", "watch"),
        half_life_days=8.0,
        negatives="all",
        epochs=8,
        patience=None,
        batch_tokens=2048,
        learning_rate=2e-3,
        weight_decay=0.1,
        dropout=0.2,
        unknown_share=0.0,
        cold_share=0.0,
        bare_share=0.0,
    ),
}
"""How a preset is trained, where that is not by the defaults."""


def preset(name: str) -> ModelConfig:
    """A preset by its name; InputError names the nearest one."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def recipe(name: str) -> TrainingOptions:
    """How a preset is trained."""
    return RECIPES.get(name, TrainingOptions())
