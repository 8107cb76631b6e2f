"""The shape of a model, as validated data: its sizes, its features and what it attends by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from mtgr.plain_data import parse_struct
from schemas.attributes import AttributeName

Name = Annotated[str, Meta(pattern="^[a-z][a-z0-9_-]*$", max_length=64)]

BLOCK_EVENTS: Final = 16  # sequences are cut in whole KV-cache blocks
VIDEO_LANES: Final = 3  # byte lanes of an item index, so at most 2**24 of them
TIME_LANES: Final = 4  # byte lanes of a time in seconds since 1970
CATEGORY_LANES: Final = 3  # byte lanes of a user's category
PROFILE_TOKENS: Final = 1
GROUPS: Final = 3  # token groups of GroupLN: profile, event, candidate


def capacity(max_events: int) -> int:
    """Most events of a sequence that is cut back to `max_events`: 125 % of them, in whole cache blocks.

    Cutting by many blocks at once, never event by event, is what keeps cached prefixes useful.
    """
    return -(-max_events * 5 // (4 * BLOCK_EVENTS)) * BLOCK_EVENTS


def dropped_events(events: int, max_events: int) -> int:
    """How many of a user's events are dropped by the time that so many have come, cut as `capacity` says."""
    room = capacity(max_events)
    at_once = room - max_events
    return max(0, -(-(events - room) // at_once) * at_once)


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


class CategoricalAttribute(Struct, frozen=True, forbid_unknown_fields=True):
    """An attribute of videos or users that is a text, or up to `values` texts, hashed into `size` embeddings."""

    name: AttributeName
    size: Annotated[int, Meta(ge=1, le=1 << 20)]
    values: Annotated[int, Meta(ge=1, le=32)] = 1


class NumericAttribute(Struct, frozen=True, forbid_unknown_fields=True):
    """An attribute of videos or users that is a number; the model takes (x - mean) / scale, x as log1p if `log`."""

    name: AttributeName
    log: bool = False
    mean: float = 0.0
    scale: Annotated[float, Meta(gt=0)] = 1.0


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
    spare_items: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    """Places for videos that join the catalog while the model is served."""
    unknown_buckets: Annotated[int, Meta(ge=1, le=65_536)] = 64
    """Embeddings shared, by hash, by the videos outside the catalog."""
    positions: Literal["absolute", "none"] = "absolute"
    """Absolute positions are exact under a KV cache: between cuts history is only appended to."""
    position_bias: bool = False
    """Whether attention adds a learnt number by the distance in tokens, for each head (HSTU)."""
    time_bias: bool = False
    """Whether attention adds a learnt number by the gap in time, in logarithmic buckets, for each head (HSTU)."""
    attention: Literal["silu", "softmax"] = "silu"
    """softmax is there to be compared with: the engine serves SiLU."""
    mask: Literal["causal", "mixed"] = "causal"
    """mixed lets the static part of a history see itself in both directions; the engine serves causal."""
    recent_events: Annotated[int, Meta(ge=1)] = 32
    """Newest events that the mixed mask does not count as static."""
    group_norm: bool = True
    """Whether each token group has a layer norm of its own; without, all share one."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """How a hidden state meets a video: as unit vectors over the temperature, or by their product over it."""
    item_bias: bool = False
    """Whether each video has a learnt number added to its logit."""
    ranking: tuple[Literal["watch_through", "like", "share"], ...] = ()
    """Heads that say how a video would be met: watched to its end, liked, shared."""
    temperature: Annotated[float, Meta(gt=0, le=1000)] = 0.05
    norm_eps: Annotated[float, Meta(gt=0, le=0.01)] = 1e-6
    discrete: tuple[DiscreteFeature, ...] = EVENT_FEATURES
    continuous: tuple[ContinuousFeature, ...] = EVENT_NUMBERS
    video_categories: tuple[CategoricalAttribute, ...] = ()
    """Attributes of a video; with them one that training never met has an embedding of its own."""
    video_numbers: tuple[NumericAttribute, ...] = ()
    user_categories: tuple[CategoricalAttribute, ...] = ()
    """Attributes of a user, which make the profile token."""
    user_numbers: tuple[NumericAttribute, ...] = ()

    def __post_init__(self) -> None:
        if self.n_indices > 256**VIDEO_LANES:
            raise ValueError(
                f"n_items + spare_items + unknown_buckets is {self.n_indices}, where {VIDEO_LANES} byte lanes hold "
                f"{256**VIDEO_LANES}"
            )
        for kind, names in (
            ("feature", [*_names(self.discrete), *_names(self.continuous)]),
            ("video attribute", [*_names(self.video_categories), *_names(self.video_numbers)]),
            ("user attribute", [*_names(self.user_categories), *_names(self.user_numbers)]),
            ("ranking head", [str(head) for head in self.ranking]),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{kind} {name!r} stands there {names.count(name)} times")
        if sum(category.size for category in self.user_categories) >= 256**CATEGORY_LANES:
            raise ValueError(f"user_categories: their sizes do not fit {CATEGORY_LANES} byte lanes together")

    @property
    def capacity(self) -> int:
        """Most events of a sequence: 125 % of `max_events`, in whole blocks."""
        return capacity(self.max_events)

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence, the profile included: N, the constant in the 1/N of attention."""
        return self.capacity + PROFILE_TOKENS

    @property
    def n_slots(self) -> int:
        """Videos that can be recommended: the catalog's, then those that may join it."""
        return self.n_items + self.spare_items

    @property
    def n_indices(self) -> int:
        """Rows of the video embedding: the slots, then the buckets of unknown videos."""
        return self.n_slots + self.unknown_buckets

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
        """Lanes of a feature row: group, video, time where attention asks for it, and the features.

        What the last lanes hold depends on the group: the features of an event, or the attributes of a user.
        """
        event = sum(feature.lanes for feature in self.discrete) + len(self.continuous)
        user = CATEGORY_LANES * sum(category.values for category in self.user_categories)
        return self.feature_lane + max(event, user + len(self.user_numbers))

    @property
    def feature_lane(self) -> int:
        """The first lane after group, video and time."""
        return 1 + VIDEO_LANES + (TIME_LANES if self.time_bias else 0)

    def replace(self, **changes: Any) -> ModelConfig:
        """This config with some fields changed; InputError if the result breaks a bound."""
        return parse_config({**self.to_dict(), **msgspec.to_builtins(changes)})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `parse_config` reads it back."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data


def _names(
    features: Sequence[DiscreteFeature | ContinuousFeature | CategoricalAttribute | NumericAttribute],
) -> list[str]:
    return [feature.name for feature in features]


def parse_config(data: Mapping[str, Any], source: str = "model config") -> ModelConfig:
    """Read a config from plain data; InputError names the source, the field and what would be right."""
    return parse_struct(data, ModelConfig, source)
