"""Our recipes with one thing changed: what each part of the model is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from mtgr.evaluation.protocol import TimeSplit
from mtgr.evaluation.quality.data_sets import DataSet
from mtgr.presets import preset, recipe

OURS: Final = "ours"


class Variant(Struct, frozen=True):
    """Changes to a recipe's config and options, and whether it learns without what is known of videos or users."""

    title: str
    config: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}
    without_videos: bool = False
    without_users: bool = False

    def changes(self, chosen: DataSet) -> bool:
        """Whether the data set's recipe is another one with this: a log without users' attributes lacks none."""
        if self.without_users:
            return chosen.users is not None
        config = preset(chosen.preset)
        if "ranking" in self.config:  # outcomes of impressions, which only a split by time has after it
            return isinstance(chosen.protocol, TimeSplit)
        changed = not self.config and not self.options
        changed |= self.without_videos
        changed |= bool(self.config) and config.replace(**dict(self.config)) != config
        options = recipe(chosen.preset)
        return changed or (bool(self.options) and options.replace(**dict(self.options)) != options)


VARIANTS: Final[Mapping[str, Variant]] = {
    OURS: Variant("MTGR, the recipe"),
    "no-position-bias": Variant("no position bias (absolute positions instead)",
                                config={"position_bias": False, "positions": "absolute"}),
    "no-time-bias": Variant("no time bias", config={"time_bias": False}),
    "plain-norm": Variant("one layer norm for all groups", config={"group_norm": False}),
    "softmax": Variant("softmax attention in place of SiLU", config={"attention": "softmax"}),
    "mixed-mask": Variant("mixed mask: all but the newest events see each other both ways",
                          config={"mask": "mixed", "recent_events": 16}),
    "no-video-attributes": Variant("no attributes of videos", without_videos=True),
    "no-user-attributes": Variant("no attributes of users", without_users=True),
    "no-event-features": Variant("no features of events", config={"discrete": [], "continuous": []}),
    "equal-weights": Variant("all watches count alike", options={"weights": {}, "half_life_days": None}),
    "no-conditions": Variant("training not told of the feedback of targets", options={"conditioned_on": []}),
    "ranking-heads": Variant("with heads for watch-through, like and share",
                             config={"ranking": ["watch_through", "like", "share"]},
                             options={"ranking_weight": 0.2}),
}  # fmt: skip
