"""Feature rows to token vectors: lanes read back, discrete features embedded, continuous ones by an MLP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtgr.config import GROUPS, VIDEO_LANES, ModelConfig
from mtgr.features import FEATURE_LANE, GROUP_LANE, PROFILE, VIDEO_LANE


@dataclass(frozen=True, slots=True)
class UnpackedRows:
    """The lanes of feature rows as the model wants them; `...` stands for the rows' leading dimensions.

    group: (...) int64; video: (...) int64 item indices; discrete: one (...) int64 for each discrete feature
    of the config; continuous: (..., n_continuous) float32.
    """

    group: Tensor
    video: Tensor
    discrete: list[Tensor]
    continuous: Tensor


def unpack_rows(rows: Tensor, config: ModelConfig) -> UnpackedRows:
    """Read back the lanes that `mtgr.features` wrote; rows: (..., row_width) of any float type.

    Indices are clamped to their tables, so that the rows of a profiling run, whatever they hold, are safe.
    """
    lane = FEATURE_LANE
    discrete = []
    for feature in config.discrete:
        discrete.append(_read_bytes(rows, lane, feature.lanes).clamp(0, feature.size - 1))
        lane += feature.lanes
    return UnpackedRows(
        group=rows[..., GROUP_LANE].long().clamp(0, GROUPS - 1),
        video=_read_bytes(rows, VIDEO_LANE, VIDEO_LANES).clamp(0, config.n_indices - 1),
        discrete=discrete,
        continuous=rows[..., lane : lane + len(config.continuous)].float(),
    )


def _read_bytes(rows: Tensor, first: int, count: int) -> Tensor:
    value = rows[..., first].long()
    for byte in range(1, count):
        value = value + (rows[..., first + byte].long() << (8 * byte))
    return value


class VideoEmbedding(nn.Module):
    """What the model knows of a video: one vector for each item index, buckets of unknown videos included."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_items = config.n_items
        self.ids = nn.Embedding(config.n_indices, config.d_model)
        nn.init.normal_(self.ids.weight, std=config.d_model**-0.5)

    def forward(self, video: Tensor) -> Tensor:
        """(...) item indices to (..., d_model)."""
        embedded: Tensor = self.ids(video)
        return embedded

    def catalog(self) -> Tensor:
        """(n_items, d_model): the videos that can be recommended, buckets left out."""
        return self.ids.weight[: self.n_items]


class TokenEmbedding(nn.Module):
    """Event = video + discrete features + MLP(log1p of the continuous) + position; a profile is a vector."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.video = VideoEmbedding(config)
        self.discrete = nn.ModuleDict(
            {feature.name: nn.Embedding(feature.size, config.d_model) for feature in config.discrete}
        )
        for table in self.discrete.values():
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=0.02)
        self.continuous_in = nn.Linear(len(config.continuous), config.d_model)
        self.continuous_out = nn.Linear(config.d_model, config.d_model)
        self.profile = nn.Parameter(torch.randn(config.d_model) * config.d_model**-0.5)
        if config.positions == "absolute":
            self.positions = nn.Embedding(config.max_length, config.d_model)
            # a position no training sequence reached then adds nothing, rather than noise
            nn.init.zeros_(self.positions.weight)

    def forward(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """rows: (..., row_width); positions: (...) int64, 0 for the profile.

        Returns the tokens (..., d_model) and their one-hot groups (..., GROUPS), both of the weights' dtype.
        """
        unpacked = unpack_rows(rows, self.config)
        event = self.video(unpacked.video)
        for feature, value in zip(self.config.discrete, unpacked.discrete, strict=True):
            event = event + self.discrete[feature.name](value)
        numbers = torch.log1p(unpacked.continuous.clamp(min=0)).to(event.dtype)
        event = event + self.continuous_out(functional.silu(self.continuous_in(numbers)))
        token = torch.where((unpacked.group == PROFILE).unsqueeze(-1), self.profile, event)
        if self.config.positions == "absolute":
            token = token + self.positions(positions)
        return token, functional.one_hot(unpacked.group, GROUPS).to(token.dtype)
