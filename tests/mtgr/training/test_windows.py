"""Promises of mtgr.training.windows: every event is learnt once, from what the daemon would have held."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from events import watch
from hypothesis import given
from hypothesis import strategies as st
from training import CATALOG, CONFIG, PLAIN, WORDS, histories, words

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig
from mtgr.history import History
from mtgr.training.options import TrainingOptions
from mtgr.training.windows import NO_TARGET, Windows, aims, make_windows, next_places


def _targets(videos: str, **fields: Any) -> str:
    options = TrainingOptions(target=fields.pop("target", "watch"))
    history = History.from_events(words(videos, **fields))
    items = CATALOG.indices(history.video_ids)
    wanted = aims(history, items, len(CATALOG), options.target, only_new=True)
    return "".join([*videos.lower(), "-"][place] for place in next_places(wanted))


@pytest.mark.parametrize(
    ("videos", "targets"),
    [
        ("abc", "abc-"),
        ("aAbBc", "abbcc-"),
        ("aab", "abb-"),
        ("abab", "ab---"),
        ("Aab", "bbb-"),
        ("azb", "abb-"),
        ("", "-"),
        ("A", "--"),
    ],
)
def test_the_target_is_the_next_watched_video_that_is_new(videos: str, targets: str) -> None:
    """Likes, repeats, videos liked before and videos outside the catalog are no targets; what follows is."""
    assert _targets(videos) == targets


@given(st.text(WORDS + WORDS.upper() + "z", max_size=30))
def test_no_target_was_seen_before(videos: str) -> None:
    """After each event the target lies ahead and not behind: it could be in a list made there."""
    for place, target in enumerate(_targets(videos)):
        assert target == "-" or (target in videos[place:] and target not in videos[:place].lower())


def test_long_views_are_targets_where_they_are_asked_for() -> None:
    """A watch of 18 seconds, or of all of a shorter video, is a long view; a shorter one is passed over."""
    lengths = [(3.0, 60.0), (18.0, 60.0), (5.0, 5.0), (17.0, None)]
    events = [
        watch("u", f"{place}", video_id=WORDS[place], watch_seconds=seen, video_seconds=length)
        for place, (seen, length) in enumerate(lengths)
    ]
    windows = make_windows(
        {"u": History.from_events(list(events))}, CONFIG, CATALOG, TrainingOptions(target="long-view")
    )
    assert windows.targets.tolist() == [1, 1, 2, NO_TARGET, NO_TARGET]
    assert windows.aims.tolist() == [False, False, True, True, False]


def _long(events: int, **changes: Any) -> tuple[ModelConfig, Catalog, dict[str, History]]:
    log = [watch("u", f"e{place}", video_id=f"v{place}", timestamp_ms=place) for place in range(events)]
    catalog = Catalog([f"v{place}" for place in range(events)], 4)
    return CONFIG.replace(n_items=events, **changes), catalog, {"u": History.from_events(list(log))}


@given(st.integers(1, 400))
def test_a_long_history_is_learnt_once_and_at_every_length_the_daemon_serves(events: int) -> None:
    """Windows keep to the capacity, every event is a target once, and after the first window with a cut's past."""
    config, catalog, learnt = _long(events)
    windows = make_windows(learnt, config, catalog, PLAIN)
    targets = windows.targets[windows.targets != NO_TARGET]
    assert sorted(targets.tolist()) == list(range(events))
    assert windows.lengths.max() <= config.max_length
    for start, length in zip(windows.starts[1:].tolist(), windows.lengths[1:].tolist(), strict=True):
        learnt_at = np.flatnonzero(windows.targets[start : start + length] != NO_TARGET)
        assert learnt_at.min() >= config.max_events - 16


@given(st.integers(1, 200), st.integers(1, 40))
def test_a_mixed_mask_learns_every_event_once_from_where_only_the_past_is_seen(
    events: int, recent: int
) -> None:
    """Static tokens see each other both ways, so that only the newest predict; windows enough make that all."""
    config, catalog, learnt = _long(events, mask="mixed", recent_events=recent)
    windows = make_windows(learnt, config, catalog, PLAIN)
    targets = windows.targets[windows.targets != NO_TARGET]
    assert sorted(targets.tolist()) == list(range(events))
    assert windows.lengths.max() <= config.max_length
    for start, length in zip(windows.starts.tolist(), windows.lengths.tolist(), strict=True):
        learnt_at = np.flatnonzero(windows.targets[start : start + length] != NO_TARGET)
        assert learnt_at.min() >= length - recent or length - 1 <= recent
        # the target follows the event before it
        ids = windows.token_ids[start : start + length]
        for place in learnt_at[learnt_at > 0].tolist():
            assert windows.targets[start + place] == ids[place] + 1


def _weights(windows: Windows) -> list[float]:
    return [
        weight
        for weight, target in zip(windows.weights.tolist(), windows.targets.tolist(), strict=True)
        if target != NO_TARGET
    ]


def test_a_target_weighs_by_the_strongest_thing_the_user_did_with_it() -> None:
    """A liked video counts as liked, a skipped one as skipped, others as 1, scaled to 1 on average."""
    events = [
        watch("u", "1", video_id="a", watch_seconds=1.0, watch_ratio=0.1),
        watch("u", "2", video_id="b", watch_seconds=20.0, watch_ratio=0.3),
        *words("cC"),
    ]
    options = TrainingOptions(weights={"skip": 0.5, "like": 3.0})
    windows = make_windows({"u": History.from_events(list(events))}, CONFIG, CATALOG, options)
    assert _weights(windows) == pytest.approx([0.5 / 1.5, 1 / 1.5, 3 / 1.5])


def test_a_target_has_the_condition_of_its_feedback() -> None:
    """Numbered as the options name the kinds, and none for what is of no kind named, or no target."""
    events = [
        watch("u", "1", video_id="a", watch_seconds=1.0, watch_ratio=0.1),
        watch("u", "2", video_id="b", watch_seconds=20.0, watch_ratio=0.3),
        *words("cC"),
    ]
    for kinds, expected in {
        (): [0, 0, 0, 0, 0],
        ("skip",): [1, 0, 0, 0, 0],
        ("like", "skip"): [2, 0, 1, 0, 0],
    }.items():
        options = TrainingOptions(conditioned_on=kinds)  # type: ignore[arg-type]
        windows = make_windows({"u": History.from_events(list(events))}, CONFIG, CATALOG, options)
        assert windows.conditions.tolist() == expected


def test_targets_weigh_half_for_each_half_life() -> None:
    """By the target's own age before the newest event of what is learnt."""
    day = 86_400_000
    events = [
        watch("u", f"{place}", video_id=WORDS[place], timestamp_ms=day * days)
        for place, days in enumerate((0, 2, 4))
    ]
    windows = make_windows(
        {"u": History.from_events(list(events))}, CONFIG, CATALOG, TrainingOptions(half_life_days=2)
    )
    assert _weights(windows) == pytest.approx([weight / (1.75 / 3) for weight in (0.25, 0.5, 1.0)])


def test_windows_know_their_users_and_profiles_their_time() -> None:
    """Each window names its user; it has the profile of its own end, not of another time."""
    config = CONFIG.replace(user_categories=[{"name": "country", "size": 1}])
    asked: list[tuple[str, int]] = []

    def profile(user: str, time_ms: int) -> dict[str, str]:
        asked.append((user, time_ms))
        return {"country": "se"} if user == "u1" else {}

    windows = make_windows(histories("abc", "A", "bcde"), config, CATALOG, PLAIN, profile=profile)
    assert [windows.user_ids[user] for user in windows.users] == ["u0", "u2"]
    assert asked == [("u0", 2_000), ("u2", 3_000)]
    windows = make_windows(histories("abc", "bc"), config, CATALOG, PLAIN, profile=profile)
    lane = config.feature_lane
    assert [windows.rows[start, lane] for start in windows.starts] == [0, 1]
    for before, after in pairwise(windows.starts.tolist()):
        assert after - before == 4
