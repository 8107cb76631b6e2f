"""What was known of users, and when: an evaluation must not know what came later."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from schemas.events import Event, Interaction, Profile


class ProfileTimeline:
    """The attributes of each user as they were at any time."""

    def __init__(self) -> None:
        self._of_user: Final[dict[str, list[tuple[int, Mapping[str, Any]]]]] = defaultdict(list)

    def __len__(self) -> int:
        """Users with a profile."""
        return len(self._of_user)

    def add(self, profile: Profile) -> None:
        """Take a profile in; they may come in any order, and of two of one time the later to come counts."""
        known = self._of_user[profile.user_id]
        place = bisect_right(known, profile.timestamp_ms, key=lambda entry: entry[0])
        known.insert(place, (profile.timestamp_ms, profile.attributes))

    def know(self, user_id: str, attributes: Mapping[str, Any]) -> None:
        """Take in what is known of a user from the start, until a profile replaces it."""
        self._of_user[user_id].insert(0, (-1, attributes))

    def at(self, user_id: str, time_ms: int) -> Mapping[str, Any]:
        """The newest attributes of a user that are not later than the time; none where nothing was known."""
        known = self._of_user.get(user_id, [])
        place = bisect_right(known, time_ms, key=lambda entry: entry[0])
        return known[place - 1][1] if place else {}

    def taken_from(self, events: Iterable[Event]) -> Iterator[Interaction]:
        """The events without their profiles, which are added here as they pass."""
        for event in events:
            if isinstance(event, Profile):
                self.add(event)
            else:
                yield event
