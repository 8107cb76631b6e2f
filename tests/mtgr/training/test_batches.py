"""Promises of mtgr.training.batches: all windows, none padded, shown as training wants them shown."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import CATALOG, CONFIG, PLAIN, batch_of, histories

from mtgr.features import CANDIDATE, EVENT, PROFILE
from mtgr.model.embeddings import unpack_rows
from mtgr.model.masks import Roles, history_roles, mixed_mask
from mtgr.training.batches import Batcher
from mtgr.training.options import TrainingOptions
from mtgr.training.windows import NO_TARGET, make_windows


def _options(**changes: object) -> TrainingOptions:
    return msgspec.structs.replace(PLAIN, **changes)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.integers(20, 200), st.integers(0, 3))
def test_an_epoch_shows_every_window_once_within_the_token_budget(
    lengths: list[int], budget: int, seed: int
) -> None:
    """Batches hold all windows, none twice, and no more tokens than allowed unless one window alone does."""
    options = _options(batch_tokens=budget, seed=seed)
    windows = make_windows(histories(*("a" * length for length in lengths)), CONFIG, CATALOG, options)
    batcher = Batcher(windows, CATALOG, CONFIG, options)
    plan = batcher.plan(0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(windows)))
    for number, chosen in enumerate(plan):
        batch = batcher.batch(chosen, 0, number)
        assert len(chosen) == 1 or len(batch.rows) <= budget
        begin = 0
        for owner, window in enumerate(chosen.tolist()):
            start, length = windows.starts[window], windows.lengths[window]
            own = slice(begin, begin + length)
            assert np.array_equal(batch.rows[own], windows.rows[start : start + length])
            assert (batch.windows[own] == owner).all()
            targets = np.full(length, NO_TARGET)
            targets[batch.places[batch.owners == owner] - begin] = batch.targets[batch.owners == owner]
            assert np.array_equal(targets, windows.targets[start : start + length])
            begin += length
        assert begin == len(batch.rows)


def test_joined_windows_are_far_fewer_tokens_than_padded_ones() -> None:
    """With lengths as uneven as users', padding each batch to its longest would be several times the work."""
    chance = np.random.default_rng(0)
    lengths = np.minimum(40, chance.lognormal(1.5, 1.0, 400).astype(int) + 1).tolist()
    options = _options(batch_tokens=400)
    windows = make_windows(histories(*("a" * length for length in lengths)), CONFIG, CATALOG, options)
    batcher = Batcher(windows, CATALOG, CONFIG, options)
    batches = [batcher.batch(chosen, 0, number) for number, chosen in enumerate(batcher.plan(0))]
    tokens = sum(len(batch.rows) for batch in batches)
    assert tokens == sum(lengths) + len(lengths)
    assert sum(batch.layout.padded_tokens for batch in batches) > 2 * tokens


def test_a_batch_depends_on_seed_epoch_and_number_alone() -> None:
    """A resumed training makes the batches it would have made; other numbers, epochs and seeds make others."""
    options = TrainingOptions(unknown_share=0.5, negatives=4, batch_tokens=20)
    windows = make_windows(histories("abcdef", "bcdefg", "cdefgh"), CONFIG, CATALOG, options)
    batchers = [Batcher(windows, CATALOG, CONFIG, options) for _ in range(2)]
    chosen = np.arange(3)
    batchers[0].plan(0), batchers[0].batch(chosen, 0, 0)
    first, second = (batcher.batch(chosen, 1, 5) for batcher in batchers)
    assert torch.equal(first.rows, second.rows)
    assert first.draws is not None
    assert second.draws is not None
    assert torch.equal(first.draws.items, second.draws.items)
    assert [plan.tolist() for plan in batchers[0].plan(3)] == [plan.tolist() for plan in batchers[1].plan(3)]
    for other in ((1, 6), (2, 5)):
        assert not torch.equal(first.rows, batchers[0].batch(chosen, *other).rows)
    reseeded = Batcher(windows, CATALOG, CONFIG, msgspec.structs.replace(options, seed=1))
    assert not torch.equal(first.rows, reseeded.batch(chosen, 1, 5).rows)


def test_a_share_of_events_is_shown_as_unknown() -> None:
    """At a share of one every event's row is its bucket's row, while what is to be predicted stays."""
    batch, _ = batch_of(histories("abcde"), options=_options(unknown_share=1.0))
    hidden = [CATALOG.bucket(video) for video in "abcde"]
    assert unpack_rows(batch.rows, CONFIG).video[1:].tolist() == hidden
    assert batch.targets.tolist() == [0, 1, 2, 3, 4]
    assert batch.places.tolist() == [0, 1, 2, 3, 4]


def test_videos_are_shown_as_new_where_new_ones_may_come() -> None:
    """With spare places or attributes a share of events and videos is cold; the profile and unknown ones are not.
    A video that no window holds is cold throughout, also where nothing new can come.
    """
    options = _options(cold_share=1.0)
    batch, _ = batch_of(histories("abc"), options=options)
    assert batch.cold is None
    assert batch.cold_videos is not None
    assert batch.cold_videos.tolist() == [False] * 3 + [True] * 7
    config = CONFIG.replace(video_numbers=[{"name": "length"}])
    batch, _ = batch_of(histories("abz"), config, options)
    assert batch.cold is not None
    assert batch.cold_videos is not None
    assert batch.cold.tolist() == [False, True, True, False]
    assert batch.cold_videos.all()


@pytest.mark.parametrize("number", range(8))
def test_the_end_of_a_window_is_shown_as_a_slate(number: int) -> None:
    """Behind the events stand bare videos, each new and watched, and each is to lead to the next of them."""
    options = _options(bare_share=1.0, max_bare=3)
    batch, windows = batch_of(histories("aAbBbcdCefz"), options=options, number=number)
    rows = unpack_rows(batch.rows, CONFIG)
    groups = rows.group.tolist()
    bare = groups.count(CANDIDATE)
    assert 1 <= bare <= 3
    assert groups == [PROFILE, *[EVENT] * (len(groups) - 1 - bare), *[CANDIDATE] * bare]
    assert (batch.rows[-bare:, 4:] == 0).all()
    # f is the last that leads nowhere; the slate ends before it
    names = [CATALOG.video_id(index) for index in rows.video[-bare:].tolist()]
    assert names == list("abcdef")[-1 - bare : -1]
    assert batch.targets[-bare:].tolist() == [CATALOG.index(video) for video in "abcdef"[-bare:]]
    events = len(groups) - bare
    assert np.array_equal(batch.rows[:events], windows.rows[:events])
    assert batch.layout.positions.tolist() == list(range(len(groups)))


@given(st.integers(1, 5), st.integers(0, 4))
def test_ranking_candidates_are_watched_videos_at_their_places(most: int, number: int) -> None:
    """Each stands behind its window, has its event's place and labels, is predicted nothing from, and no window
    has more than asked.
    """
    config = CONFIG.replace(ranking=["watch_through", "like"])
    options = _options(ranking_candidates=most)
    learnt = histories("aAbcd", "bzc", watch_ratio=1.0)
    batch, windows = batch_of(learnt, config, options, number=number)
    assert batch.roles is not None
    assert batch.candidates is not None
    assert torch.equal(torch.nonzero(batch.roles.candidate).squeeze(1), batch.candidates.places)
    counts = [int((batch.roles.candidate & (batch.windows == window)).sum()) for window in (0, 1)]
    assert counts == [min(most, 4), min(most, 2)]
    liked = {"u0": "a"}
    for place, labels in zip(batch.candidates.places.tolist(), batch.candidates.labels.tolist(), strict=True):
        user = windows.user_ids[int(batch.windows[place])]
        video = CATALOG.video_id(int(batch.token_ids[place]))
        order = int(batch.roles.order[place])
        assert learnt[user].video_ids[order - 1] == video
        assert learnt[user].records["event_type"][order - 1] == 1
        assert labels == [1.0, float(liked.get(user) == video)]
        assert place not in batch.places
        assert batch.rows[place, 0] == CANDIDATE


def test_roles_are_those_the_model_serves_with() -> None:
    """Without candidates the roles of a mixed mask are the reference's; with them the events' are the same."""
    config = CONFIG.replace(mask="mixed", recent_events=3)
    batch, _ = batch_of(histories("abcdefghij", "abc", "a"), config)
    assert batch.roles is not None
    expected = history_roles(batch.layout, 3)
    for name in ("static", "candidate", "order"):
        assert torch.equal(getattr(batch.roles, name), getattr(expected, name))
    ranked, _ = batch_of(histories("abcdefghij", "abc", "a"), config.replace(ranking=["like"]))
    assert ranked.roles is not None
    events = ~ranked.roles.candidate
    assert torch.equal(ranked.roles.static[events], batch.roles.static)
    assert not ranked.roles.static[~events].any()


def test_no_token_that_predicts_sees_what_it_predicts() -> None:
    """Under a mixed mask, with slates and candidates, what a predicting token sees lies before its target."""
    config = CONFIG.replace(mask="mixed", recent_events=4, ranking=["like"])
    batch, _ = batch_of(histories("abcdefghij", "hgfe"), config, _options(bare_share=1.0), number=1)
    roles = batch.roles
    assert isinstance(roles, Roles)
    for window in batch.windows.unique():
        own = torch.nonzero(batch.windows == window).squeeze(1)
        seen = mixed_mask(roles.at(own), both_ways=True)
        for place, target in zip(batch.places.tolist(), batch.targets.tolist(), strict=True):
            if place in own.tolist():
                visible = batch.token_ids[own][seen[own.tolist().index(place)]]
                assert target not in visible.tolist()
