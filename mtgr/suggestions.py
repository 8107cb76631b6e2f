"""Names the known word that a mistyped one is nearest to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean X?`, or the known words where none is near; ends an error about an unknown word.

    A prefix that all share is left out of the comparison, where it would make any two words alike.
    """
    choices = {choice.removeprefix(prefix): choice for choice in known}
    close = difflib.get_close_matches(word.removeprefix(prefix), choices, n=1, cutoff=0.5)
    return f"; did you mean {choices[close[0]]}?" if close else f"; known are {', '.join(choices.values())}"
