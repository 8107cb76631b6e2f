"""What the engine makes of a model's config: whether it serves such a model, and what that takes in its cache."""

from __future__ import annotations

from mtgr.config import TIME_LANES, ModelConfig
from mtgr.errors import InputError


def check_served(config: ModelConfig, source: str = "model config") -> None:
    """InputError naming each field of a model that no engine serves, and what would be right."""
    wrong = [
        f"{field} is {value!r}, where the engine serves {served!r}"
        for field, value, served in (
            ("attention", config.attention, "silu"),
            # under any other mask, what is cached of the past changes with the future
            ("mask", config.mask, "causal"),
        )
        if value != served
    ]
    if wrong:
        raise InputError(f"{source}: {'; '.join(wrong)}")


def head_size(config: ModelConfig) -> int:
    """Numbers of a key in the cache: the key's own, and the bytes of its time where attention asks for it."""
    return config.d_qk + (TIME_LANES if config.time_bias else 0)
