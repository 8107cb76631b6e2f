"""vLLM serves what the reference computes: same videos, same scores, however the engine is set up."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from events import EventMaker
from serving import ITEMS, assert_same_lists, list_request

from mtgr.checkpoint import Checkpoint
from mtgr.reference import ReferenceRecommender
from mtgr.requests import ListOutcome, ListRequest, ListResult
from mtgr.serving.options import EngineOptions, engine_arguments, prepare_vllm
from mtgr.serving.prompts import PromptBuilder
from schemas.events import Event

pytestmark = pytest.mark.vllm

Recommend = Callable[[list[ListRequest]], list[ListOutcome]]

SET_UPS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "without prefix caching": {"enable_prefix_caching": False},
    "in small chunks, odd blocks": {"max_num_batched_tokens": 48, "max_num_seqs": 12, "block_size": 5},
    "few at once, large blocks": {"max_num_seqs": 3, "block_size": 64},
}


@contextmanager
def vllm_within(checkpoint: Checkpoint, options: EngineOptions) -> Iterator[Recommend]:
    """vLLM in this process, spoken to in the prompts and read by the rules of the real engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        prepare_vllm()
        from vllm import LLM

        llm = LLM(**engine_arguments(options, checkpoint))
    builder = PromptBuilder(checkpoint)

    def recommend(requests: list[ListRequest]) -> list[ListOutcome]:
        prompts, refusals = builder.build(requests)
        outputs = llm.generate(
            [prompt.rows for prompt in prompts], [prompt.params for prompt in prompts], use_tqdm=False
        )
        outcomes: dict[int, ListOutcome] = dict(refusals)
        for prompt, output in zip(prompts, outputs, strict=True):
            outcomes[prompt.place] = builder.read(prompt, output)
        return [outcomes[place] for place in range(len(requests))]

    yield recommend
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module", params=SET_UPS, ids=list(SET_UPS))
def engine(
    request: pytest.FixtureRequest, checkpoint: Checkpoint
) -> Iterator[tuple[Recommend, EngineOptions]]:
    options = EngineOptions(checkpoint=checkpoint.directory, kv_cache_gib=0.05, **SET_UPS[request.param])
    with vllm_within(checkpoint, options) as recommend:
        yield recommend, options


def histories(seed: int, *lengths: int) -> list[list[Event]]:
    """Users with so many events each, of whom no two do the same."""
    return [
        EventMaker(100 * seed + place, [f"u{seed}-{place}"]).take(length)
        for place, length in enumerate(lengths)
    ]


def test_lists_of_any_length_are_those_of_the_reference(
    engine: tuple[Recommend, EngineOptions], reference: ReferenceRecommender
) -> None:
    """Histories from one event to the model's capacity, side by side, with refused requests between."""
    recommend, _ = engine
    users = histories(1, 1, 80, 2, 15, 16, 17, 79, 33, 64, 5, 48, 31)
    requests = [list_request(events) for events in users]
    requests[4:4] = [list_request([]), list_request(histories(2, 81)[0])]
    assert_same_lists(recommend(requests), reference.recommend(requests))


def test_appended_events_find_the_history_in_the_cache(
    engine: tuple[Recommend, EngineOptions], reference: ReferenceRecommender
) -> None:
    """What was computed for a user is found again in whole blocks, and the lists are those of a fresh start."""
    recommend, options = engine
    users = histories(3, *[65 + place for place in range(12)])
    known = [0] * len(users)
    for fewer in (4, 3, 1):
        requests = [list_request(events[:-fewer]) for events in users]
        outcomes = recommend(requests)
        assert_same_lists(outcomes, reference.recommend(requests))
        assert [outcome.cached_tokens for outcome in outcomes if isinstance(outcome, ListResult)] == known
        if options.enable_prefix_caching:
            # tokens: the profile and the events
            known = [(1 + len(events) - fewer) // options.block_size * options.block_size for events in users]


def test_users_who_begin_alike_share_what_they_share(
    engine: tuple[Recommend, EngineOptions], reference: ReferenceRecommender
) -> None:
    """A common beginning is no leak: each gets the list of the whole of its own history."""
    recommend, _ = engine
    (common,) = histories(4, 40)
    requests = [list_request(common + end) for end in histories(5, *[1 + place for place in range(12)])]
    requests += [list_request(common[:length]) for length in (40, 39, 32, 17)]
    assert_same_lists(recommend(requests), reference.recommend(requests))
    assert_same_lists(recommend(requests[::-1]), reference.recommend(requests[::-1]))


def test_a_change_in_the_past_is_not_served_from_the_cache(
    engine: tuple[Recommend, EngineOptions], reference: ReferenceRecommender
) -> None:
    """Of two histories that differ in one old event, neither sees the other's."""
    recommend, _ = engine
    (events,) = histories(6, 60)
    (other,) = histories(7, 60)
    requests = [list_request(events), list_request(events[:5] + other[5:6] + events[6:])]
    for request in requests:
        assert_same_lists(recommend([request]), reference.recommend([request]))


def test_long_lists_leave_out_what_was_seen(
    engine: tuple[Recommend, EngineOptions], reference: ReferenceRecommender
) -> None:
    """Lists of one to hundreds of videos in one batch; at the longest, all the unseen ones and no other."""
    recommend, _ = engine
    users = histories(8, 80, 40, 3, 60)
    seen = [{event.video_id for event in events if event.video_id.startswith("v")} for events in users]
    counts = [ITEMS - len(seen[0]), 300, 1, 25]
    requests = [list_request(events, count) for events, count in zip(users, counts, strict=True)]
    outcomes = recommend(requests)
    assert_same_lists(outcomes, reference.recommend(requests))
    for outcome, known, count in zip(outcomes, seen, counts, strict=True):
        assert isinstance(outcome, ListResult)
        assert len(outcome.video_ids) == count
        assert not known.intersection(outcome.video_ids)
        assert outcome.scores == sorted(outcome.scores, reverse=True)


def test_order_and_company_change_nothing(
    engine: tuple[Recommend, EngineOptions], reference: ReferenceRecommender
) -> None:
    """A user's list is the same alone, in a crowd, and in another order."""
    recommend, _ = engine
    chance = random.Random(9)
    requests = [list_request(events) for events in histories(9, *[chance.randint(1, 80) for _ in range(30)])]
    wanted = reference.recommend(requests)
    assert_same_lists(recommend(requests), wanted)
    order = chance.sample(range(30), 30)
    assert_same_lists(recommend([requests[place] for place in order]), [wanted[place] for place in order])
    assert_same_lists(recommend(requests[:1]), wanted[:1])


def test_bfloat16_serves_nearly_the_same_lists(
    checkpoint: Checkpoint, reference: ReferenceRecommender
) -> None:
    """Half the memory costs the rounding of scores: rows, which hold indices as bytes, stay exact."""
    requests = [list_request(events) for events in histories(10, *range(1, 80, 7))]
    options = EngineOptions(checkpoint=checkpoint.directory, kv_cache_gib=0.05, dtype="bfloat16")
    with vllm_within(checkpoint, options) as recommend:
        fresh, again = recommend(requests), recommend(requests)
    for outcomes in (fresh, again):
        for ours, theirs in zip(outcomes, reference.recommend(requests), strict=True):
            assert isinstance(ours, ListResult)
            assert isinstance(theirs, ListResult)
            assert len(set(ours.video_ids) & set(theirs.video_ids)) >= 7
            assert max(abs(a - b) for a, b in zip(ours.scores, theirs.scores, strict=True)) < 0.3


def test_a_cache_that_overflows_forgets_and_stays_exact(
    checkpoint: Checkpoint, reference: ReferenceRecommender
) -> None:
    """With room for three sequences, users wait for each other and lose their histories, and nothing more."""
    options = EngineOptions(checkpoint=checkpoint.directory, kv_cache_gib=1.3e-4)
    users = histories(11, *[70 + place for place in range(10)])
    with vllm_within(checkpoint, options) as recommend:
        for fewer in (2, 1):
            requests = [list_request(events[:-fewer]) for events in users]
            outcomes = recommend(requests)
            assert_same_lists(outcomes, reference.recommend(requests))
    found = [outcome.cached_tokens for outcome in outcomes if isinstance(outcome, ListResult)]
    assert 0 in found
