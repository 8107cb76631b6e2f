"""What is asked of every system: so many users with so many events each, computed afresh or cached but for one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Final

from msgspec import Meta, Struct

from mtgr.errors import InputError

TOP: Final = 10
"""Videos of a list."""

_TEXT: Final = re.compile(r"([1-9]\d*)x([1-9]\d*)(\+1)?")


class Case(Struct, frozen=True, order=True):
    """One row: a batch of lists, each of a user whose history is new to the system, or known but for one event."""

    users: Annotated[int, Meta(ge=1)]
    events: Annotated[int, Meta(ge=1)]
    """Of each history; of a cached one those that the system has computed before."""
    cached: bool = False

    def __str__(self) -> str:
        """As `parse_case` reads it."""
        return f"{self.users}x{self.events}{'+1' if self.cached else ''}"

    @property
    def length(self) -> int:
        """Tokens of a sequence: the profile's and one for each event."""
        return 1 + self.events + self.cached

    @property
    def new_tokens(self) -> int:
        """Tokens of a sequence that no earlier batch has computed."""
        return 1 if self.cached else self.length

    @property
    def title(self) -> str:
        """For a table."""
        if self.cached:
            return f"{self.users} x ({self.events} cached + 1)"
        return f"{self.users} x {self.events}"


def parse_case(text: str) -> Case:
    """Read "64x200", fresh, or "64x1000+1", cached; InputError says what is wanted."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise InputError(f"case {text!r}: USERSxEVENTS is wanted, or USERSxEVENTS+1 where EVENTS are cached")
    return Case(int(found[1]), int(found[2]), found[3] is not None)


def parse_cases(text: str) -> tuple[Case, ...]:
    """Read cases with commas between them."""
    return tuple(parse_case(part.strip()) for part in text.split(","))


def longest(cases: Iterable[Case]) -> int:
    """Most events that a history of these cases begins with."""
    return max(case.events for case in cases)


GPU_CASES: Final = parse_cases("1x100,4x200,8x500,64x200,256x500,64x1000,64x1000+1,512x1000+1,1024x1000+1")
CPU_CASES: Final = parse_cases("64x200,64x200+1")
