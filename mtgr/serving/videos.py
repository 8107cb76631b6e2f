"""The videos of a served model: their vectors as looked up, and those that join while it is served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from mtgr.additions import Addition
from mtgr.config import ModelConfig
from mtgr.model.videos import VideoEmbedding

CHUNK: Final = 1 << 14
"""Videos whose vectors are computed at once."""


class ServedVideoEmbedding(VideoEmbedding):
    """`VideoEmbedding` with what the attributes say already added to each vector: a token costs one lookup."""

    bucket_ids: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        # what a bucket's vector is before its attributes, which a new video has others of
        self.register_buffer(
            "bucket_ids", torch.empty(config.unknown_buckets, config.d_model), persistent=False
        )

    @torch.no_grad()
    def settle(self) -> None:
        """Make the vectors that are looked up, once the weights are loaded."""
        self.bucket_ids.copy_(self.ids.weight[self.n_slots :])
        if self.has_attributes:
            everything = torch.arange(len(self.ids.weight), device=self.ids.weight.device)
            for some in torch.split(everything, CHUNK):
                self.ids.weight[some] = super().forward(some)

    def forward(self, video: Tensor, cold: Tensor | None = None) -> Tensor:
        """(...) item indices to (..., d_model)."""
        embedded: Tensor = self.ids(video)
        return embedded

    @torch.no_grad()
    def join(self, additions: Sequence[Addition]) -> Tensor:
        """Put new videos into their places, as `VideoEmbedding.add` does one; returns the places, (n,) int64."""
        device = self.ids.weight.device
        places = torch.tensor([addition.index for addition in additions], device=device)
        buckets = torch.tensor([addition.bucket for addition in additions], device=device)
        vectors = self.bucket_ids[buckets - self.n_slots]
        if self.has_attributes:
            categories = torch.tensor(
                [addition.categories for addition in additions], dtype=torch.int32, device=device
            )
            numbers = torch.tensor(
                [addition.numbers for addition in additions], dtype=torch.float32, device=device
            )
            vectors = vectors + self.attributes(categories, numbers)
        self.ids.weight[places] = vectors
        return places
