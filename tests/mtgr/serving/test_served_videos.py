"""A served model looks each video up in one table, which says what the reference computes of it anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from serving import MODELS

from mtgr.additions import Addition
from mtgr.model.videos import VideoEmbedding
from mtgr.presets import PRESETS
from mtgr.serving import videos
from mtgr.serving.additions import VideoAdditions, pack_additions
from mtgr.serving.videos import ServedVideoEmbedding


@pytest.fixture(params=["everything", "bare"])
def pair(request: pytest.FixtureRequest) -> tuple[VideoEmbedding, ServedVideoEmbedding]:
    """The same videos for the reference and served, with attributes and without."""
    config = PRESETS["tiny"].replace(n_items=40, unknown_buckets=4, **MODELS[request.param])
    torch.manual_seed(1)
    reference, served = VideoEmbedding(config), ServedVideoEmbedding(config)
    if reference.has_attributes:
        reference.categories.random_(0, 16)
        reference.numbers.normal_()
    served.load_state_dict(reference.state_dict())
    return reference, served


@torch.inference_mode()
def assert_alike(reference: VideoEmbedding, served: ServedVideoEmbedding) -> None:
    everything = torch.arange(len(reference.ids.weight))
    torch.testing.assert_close(served(everything), reference(everything))


def test_one_lookup_is_the_whole_of_a_video(
    pair: tuple[VideoEmbedding, ServedVideoEmbedding], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of videos, empty places and buckets alike, however many are computed at once; loading again changes nothing."""
    reference, served = pair
    monkeypatch.setattr(videos, "CHUNK", 7)
    for _ in range(2):
        served.load_state_dict(reference.state_dict())
        served.settle()
        assert_alike(reference, served)


def test_a_video_that_joins_is_what_the_reference_makes_of_it(
    pair: tuple[VideoEmbedding, ServedVideoEmbedding],
) -> None:
    """Also where it joins again, as it does when an answer was lost."""
    reference, served = pair
    served.settle()
    known: dict[str, Any] = {"categories": [], "numbers": []}
    if reference.has_attributes:
        known = {"categories": [1, 0, 5, 30], "numbers": [0.7]}
    additions = [Addition(40, 49, **known), Addition(41, 47, **known), Addition(42, 49, **known)]
    for addition in additions:
        reference.add(addition.index, addition.bucket, addition.categories, addition.numbers)
    for some in (additions[:1], additions):
        assert served.join(some).tolist() == [addition.index for addition in some]
    assert_alike(reference, served)


def test_a_worker_hands_on_what_it_is_sent() -> None:
    """Additions cross the engine's processes as bytes."""

    class Model:
        taken: list[Addition]

        def add_videos(self, additions: list[Addition]) -> None:
            self.taken = additions

    class Worker(VideoAdditions):
        model = Model()

        def get_model(self) -> Model:
            return self.model

    additions = [Addition(7, 12, [1, 2], [0.5]), Addition(8, 12, [], [])]
    worker = Worker()
    worker.add_videos(pack_additions(additions))
    assert worker.model.taken == additions
