"""A checkpoint's config.json as the Hugging Face config class that vLLM asks for."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from mtgr.checkpoint import MODEL_TYPE
from mtgr.config import ModelConfig, parse_config


class MTGRConfig(PretrainedConfig):  # type: ignore[misc]
    """The keys vLLM reads, and under `model` the model's own config as plain data."""

    model_type = MODEL_TYPE

    def __init__(self, model: dict[str, Any] | None = None, **keys: Any) -> None:
        # transformers makes a config of no arguments to learn the defaults
        self.model = model or {}
        super().__init__(**keys)


def model_config_of(config: PretrainedConfig) -> ModelConfig:
    """The model config within; InputError if it breaks a bound."""
    return parse_config(config.model)
