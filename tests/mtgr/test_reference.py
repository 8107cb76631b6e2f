"""Promises of mtgr.reference: lists of unseen videos with true log-probabilities, and refusals for the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import ITEMS, MAX_EVENTS, tiny_checkpoint
from events import EventMaker, watch

from mtgr.checkpoint import open_checkpoint
from mtgr.config import capacity
from mtgr.errors import InputError
from mtgr.features import RowEncoder
from mtgr.history import RECORD_DTYPE, History, event_digest, pack_event
from mtgr.reference import ReferenceRecommender
from mtgr.requests import ListOutcome, ListRefusal, ListRequest, ListResult
from schemas.events import Event


def _request(events: list[Event], count: int = 10, user_id: str = "u") -> ListRequest:
    videos = [event.video_id.encode() for event in events]
    records = b"".join(
        pack_event(event, event_digest(event.event_id), video)
        for event, video in zip(events, videos, strict=True)
    )
    return ListRequest(user_id, records, b"".join(videos), count)


def _events(count: int, seed: int = 0) -> list[Event]:
    return EventMaker(seed, ["u"]).take(count)


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> ReferenceRecommender:
    """A recommender of random weights over the videos v0 to v299."""
    return ReferenceRecommender(tiny_checkpoint(tmp_path_factory.mktemp("reference") / "checkpoint"))


def _list(recommender: ReferenceRecommender, request: ListRequest) -> ListResult:
    (outcome,) = recommender.recommend([request])
    assert isinstance(outcome, ListResult)
    return outcome


def _assert_alike(outcome: ListOutcome, alone: ListResult) -> None:
    """The same list; sums in a batch of another size differ in the last digits."""
    assert isinstance(outcome, ListResult)
    assert outcome.video_ids == alone.video_ids
    assert outcome.scores == pytest.approx(alone.scores, abs=1e-5)


def test_a_list_is_of_unseen_videos_best_first(recommender: ReferenceRecommender) -> None:
    """Nothing in the history is recommended, nothing twice, and scores fall."""
    events = _events(40)
    outcome = _list(recommender, _request(events, count=50))
    assert len(outcome.video_ids) == len(set(outcome.video_ids)) == 50
    assert not {event.video_id for event in events} & set(outcome.video_ids)
    assert outcome.scores == sorted(outcome.scores, reverse=True)
    assert (outcome.sequence_length, outcome.cached_tokens) == (40, 0)


def test_scores_are_log_probabilities_over_the_unseen_videos(recommender: ReferenceRecommender) -> None:
    """Asked for all videos that are left, the probabilities of the list sum to one."""
    events = _events(30)
    left = ITEMS - len(
        {event.video_id for event in events if event.video_id in recommender.checkpoint.catalog}
    )
    outcome = _list(recommender, _request(events, count=left))
    assert np.exp(outcome.scores).sum() == pytest.approx(1, abs=1e-5)
    (refusal,) = recommender.recommend([_request(events, count=left + 1)])
    assert refusal == ListRefusal(
        "RequestRefused",
        f"count is {left + 1}, but {left} of the catalog's {ITEMS} videos are unseen by this user",
    )


def test_a_list_is_what_the_model_says(recommender: ReferenceRecommender) -> None:
    """The scores are those of the loaded model on the encoded history, computed apart."""
    events = _events(20)
    checkpoint = recommender.checkpoint
    history = History.from_events(events)
    encoded = RowEncoder(checkpoint.config, checkpoint.catalog).encode(history)
    model = checkpoint.load_model()
    with torch.no_grad():
        logits = model.logits(model(torch.from_numpy(encoded.rows)[None])[0, -1])
    logits[[index for index in encoded.token_ids.tolist() if index < ITEMS]] = -torch.inf
    best = torch.log_softmax(logits, 0).topk(10)
    outcome = _list(recommender, _request(events))
    assert outcome.video_ids == [checkpoint.catalog.video_id(index) for index in best.indices.tolist()]
    assert outcome.scores == pytest.approx(best.values.tolist(), abs=1e-5)


def test_a_list_does_not_depend_on_who_else_is_in_the_batch(recommender: ReferenceRecommender) -> None:
    """Users of all lengths together get what they get alone, in the order they asked in."""
    requests = [_request(_events(count, seed=count), count=5) for count in (1, 40, 7, 16, 33, 2)]
    for request, outcome in zip(requests, recommender.recommend(requests), strict=True):
        _assert_alike(outcome, _list(recommender, request))


def test_only_unknown_videos_are_a_history_too(recommender: ReferenceRecommender) -> None:
    """A user who watched nothing of the catalog gets a list of it."""
    outcome = _list(recommender, _request([watch("u", "1", video_id="elsewhere")], count=ITEMS))
    assert len(outcome.video_ids) == ITEMS


def _corrupt(field: str, value: float) -> ListRequest:
    request = _request(_events(3))
    records = np.frombuffer(request.records, RECORD_DTYPE).copy()
    records[field][1] = value
    return ListRequest("u", records.tobytes(), request.videos, 10)


WHOLE = _request(_events(3))
CAPACITY = capacity(MAX_EVENTS)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (_request([]), "history is empty, where at least 1 event is wanted"),
        (
            _request(_events(CAPACITY + 1)),
            f"history has {CAPACITY + 1} events, where the model takes {CAPACITY}",
        ),
        (_request(_events(3), count=0), "count is 0, where at least 1 is wanted"),
        (_request(_events(3), count=ITEMS + 1), f"count is {ITEMS + 1}, but "),
        (ListRequest("u", WHOLE.records[:-1], WHOLE.videos, 10), "history is corrupt: records: "),
        (ListRequest("u", WHOLE.records, WHOLE.videos + b"x", 10), "history is corrupt: videos: "),
        (ListRequest("u", WHOLE.records, b"\xff" * len(WHOLE.videos), 10), "history is corrupt: "),
        (_corrupt("watch_seconds", np.nan), "history is corrupt: watch_seconds of event 1 is nan"),
        (_corrupt("event_type", 77), "history is corrupt: event type of event 1 is 77"),
    ],
)
def test_what_cannot_be_served_is_refused_and_the_others_are_served(
    recommender: ReferenceRecommender, request_: ListRequest, message: str
) -> None:
    """A bad request is answered by a refusal that says why, in its place among lists for the others."""
    good = _request(_events(CAPACITY))
    first, refusal, last = recommender.recommend([good, request_, good])
    assert isinstance(refusal, ListRefusal)
    assert refusal.error == "RequestRefused"
    assert refusal.message.startswith(message)
    _assert_alike(first, _list(recommender, good))
    _assert_alike(last, _list(recommender, good))


def test_no_requests_are_no_lists(recommender: ReferenceRecommender) -> None:
    """An empty batch is answered by an empty list."""
    assert recommender.recommend([]) == []


def test_a_checkpoint_that_is_not_there_is_told(tmp_path: Path) -> None:
    """A wrong path is one clear error, not a failure at the first request."""
    with pytest.raises(InputError, match="no such checkpoint directory"):
        ReferenceRecommender(tmp_path / "nowhere")


def test_an_opened_checkpoint_serves_as_its_directory_does(recommender: ReferenceRecommender) -> None:
    """A recommender takes a checkpoint that is open already."""
    again = ReferenceRecommender(open_checkpoint(recommender.checkpoint.directory))
    assert again.recommend([WHOLE]) == recommender.recommend([WHOLE])
