"""Promises of mtgr.evaluation.candidates: a candidate is scored by the history alone, whoever stands beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import ITEMS, MAX_EVENTS
from events import EventMaker
from serving import random_checkpoint

from mtgr.checkpoint import open_checkpoint
from mtgr.config import CategoricalAttribute
from mtgr.evaluation import candidates
from mtgr.evaluation.candidates import CandidateScorer
from mtgr.evaluation.impressions import Impressions
from mtgr.evaluation.profiles import ProfileTimeline
from mtgr.history import History
from schemas.events import Profile

HEADS = ("watch_through", "share")


def _impressions(*shapes: tuple[int, int]) -> list[Impressions]:
    """Users of so many events and so many candidates."""
    found = []
    for number, (events, shown) in enumerate(shapes):
        history = History.from_events(EventMaker(number, [f"u{number}"]).take(events))
        videos = [f"v{(7 * number + 3 * place) % (ITEMS + 5)}" for place in range(shown)]
        found.append(Impressions(f"u{number}", history, 9, videos, np.zeros((shown, len(HEADS)), np.bool_)))
    return found


@pytest.mark.parametrize(
    "changes",
    [{}, {"position_bias": True, "time_bias": True}, {"mask": "mixed", "recent_events": 4}],
    ids=["plain", "biases", "mixed"],
)
def test_a_candidate_is_scored_as_if_it_were_alone(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither other candidates nor other users change a score, nor does a split of many candidates."""
    path = random_checkpoint(
        tmp_path / "model", max_events=MAX_EVENTS, n_items=ITEMS, ranking=HEADS, **changes
    )
    scorer = CandidateScorer(open_checkpoint(path))
    users = _impressions((1, 4), (17, 1), (100, 9), (5, 3))
    done: list[int] = []
    found = scorer.scores(users, done.append)
    assert done[-1] == len(users)
    assert [scores.shape for scores in found] == [(4, 2), (1, 2), (9, 2), (3, 2)]
    for user, scores in zip(users, found, strict=True):
        for place, video in enumerate(user.video_ids):
            alone = Impressions(user.user_id, user.history, 9, [video], user.labels[:1])
            np.testing.assert_allclose(scorer.scores([alone])[0][0], scores[place], atol=1e-5)
    assert np.ptp(found[2], axis=0).min() > 1e-3, "videos are told apart"
    monkeypatch.setattr(candidates, "_CANDIDATES", 2)
    for whole, parts in zip(found, scorer.scores(users), strict=True):
        np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_what_is_known_of_a_user_counts(tmp_path: Path) -> None:
    """A profile from before the moment changes the scores, a later one does not."""
    path = random_checkpoint(
        tmp_path / "model", n_items=ITEMS, ranking=HEADS, user_categories=(CategoricalAttribute("city", 8),)
    )
    checkpoint = open_checkpoint(path)
    users = _impressions((5, 3))

    def scores(*times_ms: int) -> Any:
        profiles = ProfileTimeline()
        for time_ms in times_ms:
            profiles.add(
                Profile(event_id="p", user_id="u0", timestamp_ms=time_ms, attributes={"city": "Rome"})
            )
        return CandidateScorer(checkpoint, profiles).scores(users)[0]

    np.testing.assert_array_equal(scores(), scores(10))
    assert np.abs(scores() - scores(9)).max() > 1e-4


def test_a_checkpoint_without_ranking_heads_has_no_such_scores(tmp_path: Path) -> None:
    """There is nothing to ask of it."""
    with pytest.raises(ValueError, match="no ranking heads"):
        CandidateScorer(open_checkpoint(random_checkpoint(tmp_path / "model")))
