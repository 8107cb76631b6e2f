"""Feature rows to token vectors: lanes read back, discrete features embedded, continuous ones by an MLP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtgr.attributes import AttributeEncoder
from mtgr.config import CATEGORY_LANES, GROUPS, TIME_LANES, VIDEO_LANES, ModelConfig
from mtgr.features import EVENT, GROUP_LANE, PROFILE, TIME_LANE, VIDEO_LANE
from mtgr.model.videos import AttributeEmbedding, VideoEmbedding


@dataclass(frozen=True, slots=True)
class UnpackedRows:
    """The lanes of feature rows as the model wants them; `...` stands for the rows' leading dimensions.

    group: (...) int64; video: (...) int64 item indices; time: (...) int64 seconds since 1970, None where the rows
    hold none; discrete: one (...) int64 for each discrete feature of the config; continuous: (..., n_continuous)
    float32. Of rows of another group than the event's, the last two mean nothing.
    """

    group: Tensor
    video: Tensor
    time: Tensor | None
    discrete: list[Tensor]
    continuous: Tensor


def unpack_rows(rows: Tensor, config: ModelConfig) -> UnpackedRows:
    """Read back the lanes that `mtgr.features` wrote; rows: (..., row_width) of any float type.

    Indices are clamped to their tables, so that the rows of a profiling run, whatever they hold, are safe.
    """
    lane = config.feature_lane
    discrete = []
    for feature in config.discrete:
        discrete.append(_read_bytes(rows, lane, feature.lanes).clamp(0, feature.size - 1))
        lane += feature.lanes
    return UnpackedRows(
        group=rows[..., GROUP_LANE].long().clamp(0, GROUPS - 1),
        video=_read_bytes(rows, VIDEO_LANE, VIDEO_LANES).clamp(0, config.n_indices - 1),
        time=_read_bytes(rows, TIME_LANE, TIME_LANES) if config.time_bias else None,
        discrete=discrete,
        continuous=rows[..., lane : lane + len(config.continuous)].float(),
    )


def _read_bytes(rows: Tensor, first: int, count: int) -> Tensor:
    value = rows[..., first].long()
    for byte in range(1, count):
        value = value + (rows[..., first + byte].long() << (8 * byte))
    return value


class ProfileEmbedding(nn.Module):
    """The profile token: a learnt vector, plus what the user's attributes say where the config names some."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.lane = config.feature_lane
        encoder = AttributeEncoder(config.user_categories, config.user_numbers)
        self.columns, self.number_columns = encoder.columns, encoder.number_columns
        self.table_size = encoder.table_size
        self.everybody = nn.Parameter(torch.randn(config.d_model) * config.d_model**-0.5)
        self.attributes = (
            AttributeEmbedding(encoder, config.d_model) if self.columns or self.number_columns else None
        )

    def forward(self, rows: Tensor) -> Tensor:
        """rows: (..., row_width), of profiles. Returns (..., d_model), or (d_model,) where all are alike."""
        if self.attributes is None:
            return self.everybody
        ids = [
            _read_bytes(rows, self.lane + CATEGORY_LANES * column, CATEGORY_LANES)
            for column in range(self.columns)
        ]
        first = self.lane + CATEGORY_LANES * self.columns
        categories = (
            torch.stack(ids, dim=-1) if ids else rows.new_zeros((*rows.shape[:-1], 0), dtype=torch.long)
        )
        mixed: Tensor = self.attributes(
            categories.clamp(0, self.table_size - 1), rows[..., first : first + self.number_columns]
        )
        token: Tensor = self.everybody + mixed
        return token


class TokenEmbedding(nn.Module):
    """Event = video + discrete features + MLP(log1p of the continuous) + position; a candidate is a video alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.video = VideoEmbedding(config)
        self.profile = ProfileEmbedding(config)
        self.discrete = nn.ModuleDict(
            {feature.name: nn.Embedding(feature.size, config.d_model) for feature in config.discrete}
        )
        for table in self.discrete.values():
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=0.02)
        if config.continuous:
            self.continuous_in = nn.Linear(len(config.continuous), config.d_model)
            self.continuous_out = nn.Linear(config.d_model, config.d_model)
        if config.positions == "absolute":
            self.positions = nn.Embedding(config.max_length, config.d_model)
            # a position no training sequence reached then adds nothing, rather than noise
            nn.init.zeros_(self.positions.weight)

    def forward(
        self, rows: Tensor, positions: Tensor, cold: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """rows: (..., row_width); positions: (...) int64, 0 for the profile; cold: as in `VideoEmbedding`.

        Returns the tokens (..., d_model), their one-hot groups (..., GROUPS), both of the weights' dtype, and
        their times (...) int64 where the config has a time bias. A position beyond the model's length, as a slate
        may reach, counts as the last.
        """
        unpacked = unpack_rows(rows, self.config)
        features: Tensor | None = None
        for feature, value in zip(self.config.discrete, unpacked.discrete, strict=True):
            embedded = self.discrete[feature.name](value)
            features = embedded if features is None else features + embedded
        token: Tensor = self.video(unpacked.video, cold)
        if self.config.continuous:
            numbers = torch.log1p(unpacked.continuous.clamp(min=0)).to(token.dtype)
            mixed = self.continuous_out(functional.silu(self.continuous_in(numbers)))
            features = mixed if features is None else features + mixed
        groups = functional.one_hot(unpacked.group, GROUPS).to(token.dtype)
        if features is not None:
            token = token + features * groups[..., EVENT].unsqueeze(-1)
        token = torch.where((unpacked.group == PROFILE).unsqueeze(-1), self.profile(rows), token)
        if self.config.positions == "absolute":
            token = token + self.positions(positions.clamp(max=self.config.max_length - 1))
        return token, groups, unpacked.time
