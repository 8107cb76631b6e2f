"""vLLM serves what the reference computes: same videos, same scores, however the engine is set up."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pytest
from histories import interactions, scattered
from serving import (
    ITEMS,
    assert_same_lists,
    assert_same_slates,
    list_request,
    little_memory,
    user_attributes,
)

from mtgr.checkpoint import Checkpoint
from mtgr.reference import ReferenceRecommender
from mtgr.requests import MAX_SLATE, ListOutcome, ListRequest, ListResult
from mtgr.serving.environment import prepare_vllm
from mtgr.serving.options import EngineOptions, engine_arguments
from mtgr.serving.prompts import PromptBuilder
from mtgr.serving.session_lists import session_planner
from mtgr.serving.session_steps import decode_answer, decode_steps, encode_answer, encode_steps
from mtgr.serving.worker_extension import OPEN_SESSIONS
from schemas.events import Interaction

if TYPE_CHECKING:
    from mtgr.serving.session_worker import SessionWorker

pytestmark = pytest.mark.vllm

Recommend = Callable[[list[ListRequest]], list[ListOutcome]]

SET_UPS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain, as it comes": ("plain", {}),
    "everything, as it comes": ("everything", {}),
    "everything, in small chunks, odd blocks": (
        "everything",
        {"max_num_batched_tokens": 48, "max_num_seqs": 12, "block_size": 5},
    ),
    "bare, few at once, large blocks": ("bare", {"max_num_seqs": 3, "block_size": 64}),
    "plain, by vLLM's scheduler": ("plain", {"scheduling": "vllm"}),
    "everything, by vLLM's scheduler": ("everything", {"scheduling": "vllm"}),
    "everything, by vLLM's scheduler, without prefix caching": (
        "everything",
        {"scheduling": "vllm", "enable_prefix_caching": False},
    ),
    "everything, by vLLM's scheduler, in small chunks, odd blocks": (
        "everything",
        {"scheduling": "vllm", "max_num_batched_tokens": 48, "max_num_seqs": 12, "block_size": 5},
    ),
}


@dataclass(frozen=True)
class Pair:
    """An engine and the reference of the same model."""

    recommend: Recommend
    reference: ReferenceRecommender
    options: EngineOptions

    def check(self, requests: list[ListRequest]) -> list[ListOutcome]:
        """The engine's lists, once they are known to be those of the reference."""
        outcomes = self.recommend(requests)
        wanted = self.reference.recommend(requests)
        for strategy, same in (("topk", assert_same_lists), ("slate", assert_same_slates)):
            places = [place for place, request in enumerate(requests) if request.strategy == strategy]
            same([outcomes[place] for place in places], [wanted[place] for place in places])
        return outcomes


@contextmanager
def vllm_within(checkpoint: Checkpoint, options: EngineOptions) -> Iterator[Recommend]:
    """vLLM in this process, spoken to in the prompts and read by the rules of the real engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        prepare_vllm()
        from vllm import LLM

        llm = LLM(**engine_arguments(options, checkpoint))
    yield (_by_sessions if options.scheduling == "sessions" else _by_prompts)(llm, checkpoint, options)
    llm.llm_engine.engine_core.shutdown()


def _by_sessions(llm: Any, checkpoint: Checkpoint, options: EngineOptions) -> Recommend:
    (blocks, block_size), *_ = llm.collective_rpc(OPEN_SESSIONS)
    planner = session_planner(checkpoint, options, blocks, block_size)
    (worker, *_) = llm.collective_rpc(_sessions_of)

    def recommend(requests: list[ListRequest]) -> list[ListOutcome]:
        outcomes: list[ListOutcome] = []
        while len(outcomes) < len(requests):
            batch = planner.plan(requests[len(outcomes) :])
            answer = encode_answer(worker.launch(decode_steps(encode_steps(batch.steps))).wait())
            made = dict(planner.read(batch, decode_answer(answer)))
            outcomes += [made[place] for place in range(batch.taken)]
        return outcomes

    return recommend


def _sessions_of(worker: Any) -> SessionWorker:
    sessions: SessionWorker = worker.sessions
    return sessions


def _by_prompts(llm: Any, checkpoint: Checkpoint, options: EngineOptions) -> Recommend:
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

    return recommend


@pytest.fixture(scope="module", params=SET_UPS, ids=list(SET_UPS))
def pair(
    request: pytest.FixtureRequest,
    checkpoints: dict[str, Checkpoint],
    references: dict[str, ReferenceRecommender],
) -> Iterator[Pair]:
    model, set_up = SET_UPS[request.param]
    options = EngineOptions(checkpoint=checkpoints[model].directory, **little_memory(0.05), **set_up)
    with vllm_within(checkpoints[model], options) as recommend:
        yield Pair(recommend, references[model], options)


def histories(seed: int, *lengths: int) -> list[list[Interaction]]:
    """Users with so many events each, of whom no two do the same; their times go back and forth."""
    return [
        scattered(interactions(100 * seed + place, length, f"u{seed}-{place}"), random.Random(seed))
        for place, length in enumerate(lengths)
    ]


def profiles(seed: int) -> Iterator[dict[str, Any]]:
    """What is known of one user after the other."""
    chance = random.Random(seed)
    while True:
        yield user_attributes(chance)


def test_lists_of_any_length_are_those_of_the_reference(pair: Pair) -> None:
    """Histories from one event to the model's capacity, side by side, with refused requests between."""
    users = histories(1, 1, 80, 2, 15, 16, 17, 79, 33, 64, 5, 48, 31)
    known = profiles(1)
    requests = [list_request(events, profile=next(known)) for events in users]
    requests[4:4] = [list_request([]), list_request(histories(2, 81)[0])]
    pair.check(requests)


def test_slates_are_those_of_the_reference(pair: Pair) -> None:
    """Made video by video, of all lengths and beside lists made at once; the longest passes the model's length."""
    users = histories(3, 80, 1, 79, 40, 33, 16, 80, 64)
    counts = [MAX_SLATE, 5, 30, 1, 10, 17, 3, 20]
    known = profiles(3)
    requests = [
        list_request(events, count, "topk" if place == 4 else "slate", next(known))
        for place, (events, count) in enumerate(zip(users, counts, strict=True))
    ]
    for _ in range(2):  # and again, when the cache has all of it
        for request, outcome in zip(requests, pair.check(requests), strict=True):
            assert isinstance(outcome, ListResult)
            assert len(outcome.video_ids) == request.count


def test_a_slate_leaves_no_trace_in_other_lists(pair: Pair) -> None:
    """A video that was only listed is no event: who then watches it has another history."""
    (events,) = histories(4, 40)
    (slate,) = pair.check([list_request(events, 24, "slate")])
    assert isinstance(slate, ListResult)
    followed = [
        msgspec.structs.replace(event, video_id=video)
        for event, video in zip(interactions(4, 24), slate.video_ids, strict=True)
    ]
    pair.check([list_request(events + followed), list_request(events + followed, 8, "slate")])


def test_appended_events_find_the_history_in_the_cache(pair: Pair) -> None:
    """What was computed for a user is found again, by vLLM in whole blocks, and lists are those of a fresh start."""
    users = histories(5, *[65 + place for place in range(12)])
    profile = {"country": "jp", "age": 51}
    known = [0] * len(users)
    for fewer in (4, 3, 1):
        requests = [list_request(events[:-fewer], profile=profile) for events in users]
        outcomes = pair.check(requests)
        assert [outcome.cached_tokens for outcome in outcomes if isinstance(outcome, ListResult)] == known
        by_sessions = pair.options.scheduling == "sessions"
        if by_sessions or pair.options.enable_prefix_caching:
            # tokens: the profile and the events
            block = 1 if by_sessions else pair.options.block_size or 16
            known = [(1 + len(events) - fewer) // block * block for events in users]


def test_another_profile_is_another_user(pair: Pair) -> None:
    """What is cached of a history was computed with the profile before it."""
    (events,) = histories(6, 40)
    for profile in ({}, {"country": "fr"}, {"country": "de", "age": 12}, {"age": 80}):
        pair.check([list_request(events, profile=profile)])


def test_users_who_begin_alike_share_what_they_share(pair: Pair) -> None:
    """A common beginning is no leak: each gets the list of the whole of its own history."""
    (common,) = histories(7, 40)
    requests = [list_request(common + end) for end in histories(8, *[1 + place for place in range(12)])]
    requests += [list_request(common[:length]) for length in (40, 39, 32, 17)]
    pair.check(requests)
    pair.check(requests[::-1])


def test_a_change_in_the_past_is_not_served_from_the_cache(pair: Pair) -> None:
    """Of two histories that differ in one old event, neither sees the other's."""
    (events,) = histories(9, 60)
    (other,) = histories(10, 60)
    requests = [list_request(events), list_request(events[:5] + other[5:6] + events[6:])]
    for request in requests:
        pair.check([request])


def test_long_lists_leave_out_what_was_seen(pair: Pair) -> None:
    """Lists of one to hundreds of videos in one batch; at the longest, all the unseen ones and no other."""
    users = histories(11, 80, 40, 3, 60)
    seen = [{event.video_id for event in events if event.video_id.startswith("v")} for events in users]
    counts = [ITEMS - len(seen[0]), 300, 1, 25]
    outcomes = pair.check([list_request(events, count) for events, count in zip(users, counts, strict=True)])
    for outcome, known, count in zip(outcomes, seen, counts, strict=True):
        assert isinstance(outcome, ListResult)
        assert len(outcome.video_ids) == count
        assert not known.intersection(outcome.video_ids)
        assert outcome.scores == sorted(outcome.scores, reverse=True)


def test_order_and_company_change_nothing(pair: Pair) -> None:
    """A user's list is the same alone, in a crowd, and in another order."""
    chance = random.Random(12)
    requests = [list_request(events) for events in histories(12, *[chance.randint(1, 80) for _ in range(30)])]
    wanted = pair.reference.recommend(requests)
    assert_same_lists(pair.recommend(requests), wanted)
    order = chance.sample(range(30), 30)
    assert_same_lists(
        pair.recommend([requests[place] for place in order]), [wanted[place] for place in order]
    )
    assert_same_lists(pair.recommend(requests[:1]), wanted[:1])


def test_bfloat16_serves_nearly_the_same_lists(
    checkpoints: dict[str, Checkpoint], references: dict[str, ReferenceRecommender]
) -> None:
    """Half the memory costs the rounding of scores: indices and times, which are bytes, stay exact."""
    requests = [list_request(events) for events in histories(13, *range(1, 80, 7))]
    checkpoint = checkpoints["everything"]
    options = EngineOptions(checkpoint=checkpoint.directory, **little_memory(0.05), dtype="bfloat16")
    with vllm_within(checkpoint, options) as recommend:
        fresh, again = recommend(requests), recommend(requests)
    for outcomes in (fresh, again):
        for ours, theirs in zip(outcomes, references["everything"].recommend(requests), strict=True):
            assert isinstance(ours, ListResult)
            assert isinstance(theirs, ListResult)
            assert len(set(ours.video_ids) & set(theirs.video_ids)) >= 7
            assert max(abs(a - b) for a, b in zip(ours.scores, theirs.scores, strict=True)) < 0.3


@pytest.mark.parametrize("scheduling", ["sessions", "vllm"])
def test_a_cache_that_overflows_forgets_and_stays_exact(
    scheduling: Literal["sessions", "vllm"],
    checkpoints: dict[str, Checkpoint],
    references: dict[str, ReferenceRecommender],
) -> None:
    """With room for two sequences, users wait for each other, lose their histories and half their slates, and
    nothing more."""
    checkpoint = checkpoints["everything"]
    options = EngineOptions(checkpoint=checkpoint.directory, **little_memory(1.5e-4), scheduling=scheduling)
    users = histories(14, *[70 + place for place in range(10)])
    with vllm_within(checkpoint, options) as recommend:
        pair = Pair(recommend, references["everything"], options)
        for fewer in (2, 1):
            outcomes = pair.check([list_request(events[:-fewer]) for events in users])
        pair.check([list_request(events, 40, "slate") for events in users])
    found = [outcome.cached_tokens for outcome in outcomes if isinstance(outcome, ListResult)]
    assert 0 in found
