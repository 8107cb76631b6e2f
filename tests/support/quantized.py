"""What tests of quantised checkpoints share."""

from __future__ import annotations

import random
from typing import Any, Final

from histories import interactions, scattered

from mtgr.training.log import EventLog

WIDTHS: Final[dict[str, Any]] = {"d_v": 16, "d_ff": 32}
"""Changes of the small models of `serving`, so that their widths fit 4 bits."""


def calibration_log(users: int = 30, events: int = 60) -> EventLog:
    """Histories of users whose times go back and forth."""
    return EventLog.collect(
        event
        for user in range(users)
        for event in scattered(interactions(100 + user, events, f"u{user}"), random.Random(user))
    )
