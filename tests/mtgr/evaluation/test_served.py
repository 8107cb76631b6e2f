"""Promises of mtgr.evaluation.served: the reference's rankings and a generator's lists are of one product."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoints import ITEMS, MAX_EVENTS, tiny_checkpoint
from events import EventMaker, watch
from serving import random_checkpoint

from mtgr.errors import InputError
from mtgr.evaluation.metrics import NO_ITEM
from mtgr.evaluation.protocol import Case
from mtgr.evaluation.rankings import Rankings, rank_all
from mtgr.evaluation.served import (
    ReferenceScorer,
    compare_lists,
    list_requests,
    rank_generated,
)
from mtgr.history import History
from mtgr.reference import ReferenceRecommender
from mtgr.requests import ListOutcome, ListRefusal, ListRequest


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> ReferenceRecommender:
    """A recommender of random weights over the videos v0 to v299."""
    return ReferenceRecommender(tiny_checkpoint(tmp_path_factory.mktemp("served") / "checkpoint"))


def _cases(*lengths: int) -> list[Case]:
    cases = []
    for number, length in enumerate(lengths):
        events = EventMaker(number, [f"u{number}"]).take(length)
        cases.append(Case(f"u{number}", History.from_events(events), f"v{number}", 0, 0))
    return cases


def _generator(recommender: ReferenceRecommender, asked: list[int]):  # type: ignore[no-untyped-def]
    async def recommend(requests: Sequence[ListRequest]) -> list[ListOutcome]:
        asked.extend(request.count for request in requests)
        return recommender.recommend(requests)

    return recommend


async def test_lists_of_a_generator_are_the_head_of_the_full_ranking(
    recommender: ReferenceRecommender,
) -> None:
    """Short histories, long ones and ones that a daemon has cut: the same videos with the same scores."""
    checkpoint = recommender.checkpoint
    config, catalog = checkpoint.config, checkpoint.catalog
    cases = _cases(1, 7, config.capacity, config.capacity + 1, 3 * MAX_EVENTS)
    index_of = {video: index for index, video in enumerate(catalog.video_ids)}
    scorer = ReferenceScorer(recommender, config, catalog)
    full = rank_all(cases, scorer, index_of, len(catalog), 10)
    asked: list[int] = []
    requests = list_requests(cases, config, catalog, 10)
    made = await rank_generated(cases, requests, _generator(recommender, asked), index_of, 10)
    assert asked[:3] == [10, 10, 10], "nothing is forgotten, nothing more is asked for"
    assert asked[4] > 10
    compared = compare_lists(made, full)
    assert compared.lists == 5
    assert compared.different == 0
    assert compared.largest_score_difference < 1e-4
    for case, items in zip(cases, made.lists, strict=True):
        videos = {catalog.video_id(item) for item in items.tolist()}
        assert len(videos) == 10
        assert not videos & set(case.history.video_ids), "not even what the daemon has forgotten"
    np.testing.assert_array_equal(np.where(full.ranks <= 10, full.ranks, np.inf), made.ranks)


def test_scores_are_log_probabilities_over_what_may_be_listed(recommender: ReferenceRecommender) -> None:
    """They sum to one over the unseen videos, or over all of them where seen ones are listed too."""
    checkpoint = recommender.checkpoint
    cases = _cases(3, 20)
    for exclude_seen in (True, False):
        scorer = ReferenceScorer(
            recommender, checkpoint.config, checkpoint.catalog, exclude_seen=exclude_seen
        )
        scores = scorer.scores(cases)
        assert scores.shape == (2, ITEMS)
        assert np.exp(scores).sum(1) == pytest.approx(1, abs=1e-5)
        seen = checkpoint.catalog.indices(cases[1].history.video_ids)
        assert (scores[1, seen[seen < ITEMS]] == -np.inf).all() == exclude_seen


@pytest.mark.parametrize("items", [20, ITEMS], ids=["all held", "most forgotten"])
async def test_who_has_seen_everything_gets_an_empty_list(items: int, tmp_path: Path) -> None:
    """Nothing is left to recommend, whether a daemon still knows why or not, and that is no failure."""
    recommender = ReferenceRecommender(random_checkpoint(tmp_path / "few", max_events=32, n_items=items))
    config, catalog = recommender.checkpoint.config, recommender.checkpoint.catalog
    history = History.from_events([watch("u", str(number), f"v{number}") for number in range(items)])
    case = Case("u", history, "v0", 0, 0)
    index_of = {video: index for index, video in enumerate(catalog.video_ids)}
    full = rank_all([case], ReferenceScorer(recommender, config, catalog), index_of, items, 3)
    requests = list_requests([case], config, catalog, 3)
    made = await rank_generated([case], requests, _generator(recommender, []), index_of, 3)
    for found in (full, made):
        assert found.ranks.tolist() == [np.inf]
        assert found.lists.tolist() == [[NO_ITEM] * 3]
    assert compare_lists(made, full).different == 0


async def test_a_refused_case_is_told(recommender: ReferenceRecommender) -> None:
    """A generator that cannot serve a case stops the evaluation with the user and the reason."""

    async def refuse(requests: Sequence[ListRequest]) -> list[ListOutcome]:
        return [ListRefusal("RequestRefused", "it is too much") for _ in requests]

    checkpoint = recommender.checkpoint
    cases = _cases(2)
    requests = list_requests(cases, checkpoint.config, checkpoint.catalog, 3)
    with pytest.raises(InputError, match="no list for user 'u0': it is too much"):
        await rank_generated(cases, requests, refuse, {}, 3)


def _lists(*lists: list[tuple[int, float]]) -> Rankings:
    return Rankings(
        np.full(len(lists), np.inf),
        np.array([[item for item, _ in one] for one in lists]),
        np.array([[score for _, score in one] for one in lists], np.float32),
        complete=False,
    )


WANTED = [(1, -1.0), (2, -2.0), (3, -2.00001)]


@pytest.mark.parametrize(
    ("made", "different", "largest"),
    [
        (WANTED, 0, 0.0),
        ([(1, -1.0), (3, -2.00001), (2, -2.00002)], 0, 1e-5),
        ([(1, -1.0), (2, -2.0), (9, -2.00002)], 0, 1e-5),
        ([(2, -1.0), (1, -2.0), (3, -2.00001)], 1, 0.0),
        ([(1, -1.0), (9, -2.0), (8, -2.5)], 1, 0.49999),
        ([(1, -1.5), (2, -2.0), (3, -2.00001)], 1, 0.5),
        ([(1, -1.0), (2, -2.0), (NO_ITEM, np.nan)], 1, 0.0),
    ],
)
def test_lists_differ_where_more_than_equals_changed_places(
    made: list[tuple[int, float]], different: int, largest: float
) -> None:
    """Ties may fall either way, also at the end of a list; other videos, orders or scores are a difference."""
    found = compare_lists(_lists(made, WANTED), _lists(WANTED, WANTED))
    assert found.lists == 2
    assert found.different == different
    assert found.largest_score_difference == pytest.approx(largest, abs=1e-6)
