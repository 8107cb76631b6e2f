"""How to train: the settings of one training, with the reasons for their defaults."""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct


class TrainingOptions(Struct, frozen=True, kw_only=True):
    """Settings of one training; the command line checks their bounds."""

    epochs: int = 6
    batch_tokens: int | None = None
    """Tokens of a batch; without it four of the longest sequences: many small steps learn
    more in the same time than few large ones."""
    learning_rate: float | None = None
    """Of AdamW after the warm-up; without it, 0.004 at width 64 and falling with the root of the width."""
    negatives: int = 1024
    """Videos drawn for each batch, from which a target is to be told apart."""
    unknown_share: float = 0.02
    """Share of the events that show a video as an unknown one, so that unknown videos mean something."""
    max_test_users: int = 10_000
    seed: int = 0
    max_seconds: float | None = None
    """Time for reading, training and testing together; the learning rate then falls with the time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def tokens_a_batch(self, max_length: int) -> int:
        """The tokens of a batch, for a model with sequences of up to so many."""
        return self.batch_tokens or 4 * max_length

    def peak_rate(self, d_model: int) -> float:
        """The learning rate after the warm-up, for a model of this width."""
        return self.learning_rate or 0.004 * math.sqrt(64 / d_model)
