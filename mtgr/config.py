"""The shape of a model, as validated data: its sizes, its features and the published presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from mtgr.errors import InputError
from mtgr.suggestions import did_you_mean

Name = Annotated[str, Meta(pattern="^[a-z][a-z0-9_-]*$", max_length=64)]

BLOCK_EVENTS: Final = 16  # sequences are cut in whole KV-cache blocks
VIDEO_LANES: Final = 3  # byte lanes of an item index, so at most 2**24 of them
PROFILE_TOKENS: Final = 1
GROUPS: Final = 3  # token groups of GroupLN: profile, event, candidate


def capacity(max_events: int) -> int:
    """Most events of a sequence that is cut back to `max_events`: 125 % of them, in whole cache blocks.

    Cutting by many blocks at once, never event by event, is what keeps cached prefixes useful.
    """
    return -(-max_events * 5 // (4 * BLOCK_EVENTS)) * BLOCK_EVENTS


class DiscreteFeature(Struct, frozen=True, forbid_unknown_fields=True):
    """A feature with `size` values, each embedded; it travels as `lanes` bytes, lowest first."""

    name: Name
    size: Annotated[int, Meta(ge=1, le=1 << 24)]
    lanes: Annotated[int, Meta(ge=1, le=3)] = 1

    def __post_init__(self) -> None:
        if self.size > 256**self.lanes:
            raise ValueError(f"feature {self.name!r}: {self.size} values do not fit {self.lanes} byte lanes")


class ContinuousFeature(Struct, frozen=True, forbid_unknown_fields=True):
    """A feature that is a non-negative raw number; the model takes its log1p."""

    name: Name


EVENT_FEATURES: Final = (
    DiscreteFeature("event_type", 5),
    DiscreteFeature("hour", 24),
    DiscreteFeature("weekday", 7),
    DiscreteFeature("share_channel", 256),
)
EVENT_NUMBERS: Final = (
    ContinuousFeature("watch_seconds"),
    ContinuousFeature("watch_ratio"),
    ContinuousFeature("video_seconds"),
    ContinuousFeature("gap_seconds"),
)


class ModelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides the shapes and the arithmetic of a model; the weights and the catalog aside."""

    d_model: Annotated[int, Meta(ge=8, le=65_536)]
    n_layers: Annotated[int, Meta(ge=1, le=512)]
    n_heads: Annotated[int, Meta(ge=1, le=512)]
    d_qk: Annotated[int, Meta(ge=8, le=256)]
    """Width of a query and of a key, per head."""
    d_v: Annotated[int, Meta(ge=8, le=256)]
    """Width of a value and of a gate, per head."""
    d_ff: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    """Width of the MLP after the attention; 0 leaves it out."""
    max_events: Annotated[int, Meta(ge=BLOCK_EVENTS, le=65_536, multiple_of=BLOCK_EVENTS)]
    """Events a cut sequence keeps; it grows to `capacity` before the next cut."""
    n_items: Annotated[int, Meta(ge=1)]
    """Videos of the catalog."""
    unknown_buckets: Annotated[int, Meta(ge=1, le=65_536)] = 64
    """Embeddings shared, by hash, by the videos outside the catalog."""
    positions: Literal["absolute", "none"] = "absolute"
    """Absolute positions are exact under a KV cache: between cuts history is only appended to."""
    temperature: Annotated[float, Meta(gt=0, le=10)] = 0.05
    norm_eps: Annotated[float, Meta(gt=0, le=0.01)] = 1e-6
    discrete: tuple[DiscreteFeature, ...] = EVENT_FEATURES
    continuous: Annotated[tuple[ContinuousFeature, ...], Meta(min_length=1)] = EVENT_NUMBERS

    def __post_init__(self) -> None:
        if self.n_indices > 256**VIDEO_LANES:
            raise ValueError(
                f"n_items + unknown_buckets is {self.n_indices}, where {VIDEO_LANES} byte lanes hold "
                f"{256**VIDEO_LANES}"
            )
        names = [feature.name for feature in self.discrete] + [feature.name for feature in self.continuous]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"feature {name!r} stands there {names.count(name)} times")

    @property
    def capacity(self) -> int:
        """Most events of a sequence: 125 % of `max_events`, in whole blocks."""
        return capacity(self.max_events)

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence, the profile included: N, the constant in the 1/N of attention."""
        return self.capacity + PROFILE_TOKENS

    @property
    def n_indices(self) -> int:
        """Rows of the video embedding: the catalog, then the buckets of unknown videos."""
        return self.n_items + self.unknown_buckets

    @property
    def profile_id(self) -> int:
        """Token id of the profile row; the ids below it are item indices."""
        return self.n_indices

    @property
    def vocab_size(self) -> int:
        """Token ids there are."""
        return self.n_indices + PROFILE_TOKENS

    @property
    def row_width(self) -> int:
        """Lanes of a feature row: the group, the video, the discrete features, the continuous ones."""
        return 1 + VIDEO_LANES + sum(feature.lanes for feature in self.discrete) + len(self.continuous)

    def replace(self, **changes: Any) -> ModelConfig:
        """This config with some fields changed; InputError if the result breaks a bound."""
        return parse_config({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `parse_config` reads it back."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data


def parse_config(data: Mapping[str, Any], source: str = "model config") -> ModelConfig:
    """Read a config from plain data; InputError names the source, the field and what would be right."""
    known = ModelConfig.__struct_fields__
    for key in data:
        if key not in known:
            raise InputError(f"{source}: unknown key {key!r}{did_you_mean(key, known)}")
    try:
        return msgspec.convert(data, ModelConfig)
    except msgspec.ValidationError as error:
        raise InputError(f"{source}: {error}") from None


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


def preset(name: str) -> ModelConfig:
    """A preset by its name; InputError names the nearest one."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}")
    return PRESETS[name]
