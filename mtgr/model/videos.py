"""What the model knows of a video: a vector of its own, and what its attributes say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtgr.attributes import AttributeEncoder
from mtgr.catalog import Catalog
from mtgr.config import ModelConfig


class AttributeEmbedding(nn.Module):
    """Categories and numbers to one vector: the sum of their embeddings, plus an MLP of it."""

    def __init__(self, encoder: AttributeEncoder, d_model: int) -> None:
        super().__init__()
        self.categories = (
            nn.Embedding(encoder.table_size, d_model, padding_idx=0) if encoder.columns else None
        )
        self.numbers = nn.Linear(encoder.number_columns, d_model) if encoder.number_columns else None
        self.out = nn.Linear(d_model, d_model)
        if self.categories is not None:
            nn.init.normal_(self.categories.weight, std=d_model**-0.5)
            with torch.no_grad():
                self.categories.weight[0] = 0.0

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """categories: (..., columns) integer, 0 for a missing one; numbers: (..., number_columns)."""
        total: Tensor | None = None
        if self.categories is not None:
            total = self.categories(categories).sum(-2)
        if self.numbers is not None:
            linear = self.numbers(numbers.to(self.numbers.weight.dtype))
            total = linear if total is None else total + linear
        assert total is not None
        mixed: Tensor = total + self.out(functional.silu(total))
        return mixed


class VideoEmbedding(nn.Module):
    """One vector for each item index: its own, plus what its attributes say where the config names some.

    A video that joins after training has the vector of its bucket in place of one of its own, as an unknown video
    has, and its attributes; training shows videos like that now and then (`cold`), so that this means something.
    """

    bucket_of: Tensor
    categories: Tensor
    numbers: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_items = config.n_items
        self.n_slots = config.n_slots
        self.ids = nn.Embedding(config.n_indices, config.d_model)
        nn.init.normal_(self.ids.weight, std=config.d_model**-0.5)
        encoder = AttributeEncoder(config.video_categories, config.video_numbers)
        self.has_attributes = bool(encoder.columns or encoder.number_columns)
        self.register_buffer("bucket_of", torch.arange(config.n_indices), persistent=False)
        if self.has_attributes:
            self.attributes = AttributeEmbedding(encoder, config.d_model)
            categories = torch.zeros(config.n_indices, encoder.columns, dtype=torch.int32)
            numbers = torch.zeros(config.n_indices, encoder.number_columns, dtype=torch.float32)
            self.register_buffer("categories", categories)
            self.register_buffer("numbers", numbers)

    def describe(
        self, catalog: Catalog, attributes: Mapping[str, Mapping[str, Any]], config: ModelConfig
    ) -> None:
        """Take in what is known of the catalog's videos before a training; attributes by video id."""
        buckets = [catalog.bucket(video) for video in catalog.video_ids]
        self.bucket_of[: len(buckets)] = torch.tensor(buckets)
        if self.has_attributes:
            encoder = AttributeEncoder(config.video_categories, config.video_numbers)
            ids, numbers = encoder.encode_all([attributes.get(video, {}) for video in catalog.video_ids])
            self._write(slice(0, len(buckets)), ids, numbers)

    @torch.no_grad()
    def add(self, index: int, bucket: int, categories: Sequence[int], numbers: Sequence[float]) -> None:
        """Put a new video into a spare place: the vector of its bucket, and its attributes as encoded."""
        self.ids.weight[index] = self.ids.weight[bucket]
        if self.has_attributes:
            self._write(slice(index, index + 1), np.array([categories]), np.array([numbers]))

    def forward(self, video: Tensor, cold: Tensor | None = None) -> Tensor:
        """(...) item indices to (..., d_model); cold: (...) bool, True to show a video as one that has joined."""
        known = video if cold is None else torch.where(cold, self.bucket_of[video], video)
        embedded: Tensor = self.ids(known)
        if self.has_attributes:
            embedded = embedded + self.attributes(self.categories[video], self.numbers[video])
        return embedded

    def catalog(self, videos: int | None = None) -> Tensor:
        """(videos, d_model): those that can be recommended; the ones known at training unless told how many."""
        count = self.n_items if videos is None else videos
        if not self.has_attributes:
            return self.ids.weight[:count]
        everything: Tensor = self(torch.arange(count, device=self.ids.weight.device))
        return everything

    def _write(self, rows: slice, categories: Any, numbers: Any) -> None:
        shape = self.categories[rows].shape[0]
        self.categories[rows] = torch.as_tensor(np.asarray(categories, np.int32).reshape(shape, -1))
        self.numbers[rows] = torch.as_tensor(np.asarray(numbers, np.float32).reshape(shape, -1))
