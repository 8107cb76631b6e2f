"""Promises of mtgr.evaluation.rankings: the whole catalog is ranked, and lists are the head of that ranking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from events import watch
from hypothesis import given
from hypothesis import strategies as st

from mtgr.errors import InputError
from mtgr.evaluation import rankings
from mtgr.evaluation.metrics import NO_ITEM
from mtgr.evaluation.popularity import ItemSpace, PopularityScorer, users_of_videos
from mtgr.evaluation.protocol import Case
from mtgr.evaluation.rankings import rank_all, rank_lists
from mtgr.history import History

CATALOG = [f"v{number}" for number in range(6)]
INDEX_OF = {video: index for index, video in enumerate(CATALOG)} | {"not in the catalog": 6}


def _case(user: str, videos: Sequence[str], target: str) -> Case:
    events = [watch(user, str(number), video) for number, video in enumerate(videos)]
    return Case(user, History.from_events(events), target, 0, 0)


class _Planted:
    """Gives each user the scores it was told."""

    def __init__(self, of_user: dict[str, list[float]]) -> None:
        self._of_user = of_user

    def scores(self, cases: Sequence[Case]) -> npt.NDArray[np.float32]:
        return np.array([self._of_user[case.user_id] for case in cases], np.float32)


def test_ranks_and_lists_by_hand() -> None:
    """Seen videos stand in no ranking, equals stand by number, and what is not in the catalog is a miss."""
    cases = [
        _case("long", ["v0", "v1"], "v4"),
        _case("tie", ["v5"], "v3"),
        _case("away", ["elsewhere"], "not in the catalog"),
        _case("most", ["v0", "v1", "v2", "v3"], "v5"),
    ]
    scorer = _Planted(
        {
            "long": [9, 8, 1, 5, 4, 3],
            "tie": [1, 2, 2, 2, 2, 7],
            "away": [0, 1, 2, 3, 4, 5],
            "most": [9, 9, 9, 9, 1, 0],
        }
    )
    done: list[int] = []
    found = rank_all(cases, scorer, INDEX_OF, 6, 3, on_progress=done.append)
    assert found.ranks.tolist() == [2, 3, np.inf, 2]
    assert found.lists.tolist() == [[3, 4, 5], [1, 2, 3], [5, 4, 3], [4, 5, NO_ITEM]]
    assert found.scores is not None
    np.testing.assert_array_equal(found.scores, [[5, 4, 3], [2, 2, 2], [5, 4, 3], [1, 0, np.nan]])
    assert found.complete
    assert done == [4]

    again = rank_all(cases, scorer, INDEX_OF, 6, 3, exclude_seen=False)
    assert again.ranks.tolist() == [4, 4, np.inf, 6]


def test_a_target_that_is_seen_or_impossible_is_a_miss() -> None:
    """What may not be recommended has no rank, rather than the last."""
    scorer = _Planted({"u": [1, 2, 3, 4, 5, -np.inf]})
    assert rank_all([_case("u", ["v1"], "v1")], scorer, INDEX_OF, 6, 3).ranks.tolist() == [np.inf]
    assert rank_all([_case("u", ["v1"], "v5")], scorer, INDEX_OF, 6, 3).ranks.tolist() == [np.inf]


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_a_broken_model_is_no_good_one(score: float) -> None:
    """NaN compares as nothing better and would make every rank the first; it is refused by name."""
    scorer = _Planted({"fine": [1.0] * 6, "hurt": [1, 1, 1, 1, score, 1]})
    cases = [_case("fine", ["v0"], "v1"), _case("hurt", ["v0"], "v1")]
    with pytest.raises(InputError, match=f"video number 4 for user 'hurt' is {score}"):
        rank_all(cases, scorer, INDEX_OF, 6, 3)


def test_scores_of_another_catalog_are_refused() -> None:
    """A row for each case and a column for each video, or it is a mistake in the program."""
    with pytest.raises(ValueError, match=r"scores are \(1, 5\), where \(1, 6\) is wanted"):
        rank_all([_case("u", ["v0"], "v1")], _Planted({"u": [1.0] * 5}), INDEX_OF, 6, 3)


_scores = st.lists(
    st.lists(st.integers(-2, 2).map(float) | st.just(-np.inf), min_size=6, max_size=6), min_size=1, max_size=8
)


@given(rows=_scores, seen=st.lists(st.sampled_from(CATALOG), min_size=1), k=st.integers(1, 8))
def test_a_ranking_is_the_sorted_catalog(rows: list[list[float]], seen: list[str], k: int) -> None:
    """Ranks and lists are those of sorting all unseen videos by score and then by number, whatever the ties."""
    cases = [_case(f"u{number}", seen, f"v{number % 6}") for number in range(len(rows))]
    scorer = _Planted({case.user_id: row for case, row in zip(cases, rows, strict=True)})
    found = rank_all(cases, scorer, INDEX_OF, 6, k)
    for case, row, rank, items in zip(cases, rows, found.ranks, found.lists, strict=True):
        kept = [item for item in range(6) if CATALOG[item] not in seen and row[item] > -np.inf]
        order = sorted(kept, key=lambda item: (-row[item], item))
        assert [item for item in items.tolist() if item != NO_ITEM] == order[:k]
        target = INDEX_OF[case.video_id]
        assert rank == (order.index(target) + 1 if target in order else np.inf)


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many cases fit a batch, each gets its own ranking, in the order of the cases."""
    chance = np.random.default_rng(0)
    cases = [_case(f"u{n}", CATALOG[: 1 + n % 4], "v5") for n in range(20)]
    scorer = _Planted({case.user_id: chance.random(6).tolist() for case in cases})
    whole = rank_all(cases, scorer, INDEX_OF, 6, 3)
    monkeypatch.setattr(rankings, "_BATCH_SCORES", 18)
    done: list[int] = []
    parts = rank_all(cases, scorer, INDEX_OF, 6, 3, on_progress=done.append)
    np.testing.assert_array_equal(whole.ranks, parts.ranks)
    np.testing.assert_array_equal(whole.lists, parts.lists)
    assert done == [3, 6, 9, 12, 15, 18, 20]


def test_lists_tell_ranks_down_to_their_end() -> None:
    """A target in a list has its place there, any other none; lists may know videos that the catalog does not."""
    cases = [_case("a", ["v0"], "v2"), _case("b", ["v0"], "v5"), _case("c", ["v0"], "not in the catalog")]
    found = rank_lists(
        cases,
        [["v1", "v2", "v5"], ["v1", "v2", "v5"], ["not in the catalog"]],
        [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0]],
        INDEX_OF,
        2,
    )
    assert found.ranks.tolist() == [2, np.inf, 1]
    assert found.lists.tolist() == [[1, 2], [1, 2], [6, NO_ITEM]]
    assert not found.complete
    with pytest.raises(ValueError, match="the list of user 'a' holds a video twice"):
        rank_lists(cases[:1], [["v1", "v1"]], None, INDEX_OF, 2)


def test_popularity_counts_users_not_events() -> None:
    """A video that one user watched often is known to one user."""
    cases = [_case("a", ["v1", "v1", "v1", "new"], "v2"), _case("b", ["v2", "new"], "v0")]
    known = users_of_videos({case.user_id: case.history for case in cases})
    assert known == {"v1": 1, "v2": 1, "new": 2}
    space = ItemSpace(CATALOG, known)
    assert (len(space), space.catalog_size, space.index_of["new"]) == (7, 6, 6)
    counts = space.counts(known)
    assert counts.tolist() == [0, 1, 1, 0, 0, 0, 2]
    found = rank_all(cases, PopularityScorer(counts[:6]), space.index_of, 6, 3)
    assert found.ranks.tolist() == [1, 2]
