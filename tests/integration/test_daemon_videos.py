"""Videos that the model never saw are recommended, and what is known of a user makes a difference."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Deployment, deployed, inside
from events import outgoing, watch
from expectations import all_committed, all_served
from records import Outgoing, TopicNames, create_topic, produce
from serving import list_request, random_checkpoint

from mtgr.attributes import pack_attributes
from mtgr.config import CategoricalAttribute
from mtgr.reference import ReferenceRecommender
from mtgr.requests import ListRequest, ListResult
from schemas.codecs import CONTENT_TYPE_HEADER, MESSAGEPACK, encode_event, encode_video
from schemas.events import Profile
from schemas.videos import Video

ITEMS, SPARE = 6, 3


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of six videos with places for three more, which looks at tags and cities."""
    return random_checkpoint(
        tmp_path_factory.mktemp("checkpoint") / "small",
        n_items=ITEMS,
        spare_items=SPARE,
        video_categories=(CategoricalAttribute("tags", size=32, values=2),),
        user_categories=(CategoricalAttribute("city", size=32),),
    )


@pytest.fixture
def small(kafka: str, topics: TopicNames, small_checkpoint: Path, tmp_path: Path) -> Iterator[Deployment]:
    """Daemons of the small model, one video a list."""
    with deployed(kafka, topics, small_checkpoint, tmp_path) as deployment:
        yield deployment


def changes(names: TopicNames) -> dict[str, object]:
    return {"topics.videos": f"{names.group}-videos", "generator.list_length": 1}


def video(video_id: str, *tags: str) -> Outgoing:
    return Outgoing(
        video_id.encode(), encode_video(Video(video_id=video_id, attributes={"tags": list(tags)}))
    )


async def test_a_video_that_comes_while_the_daemon_runs_is_recommended(small: Deployment) -> None:
    """A user who has seen all that the model was trained with gets the video that has come since, by name."""
    servers, names = small.servers, small.names
    async with inside(small, changes=changes(names)) as running:
        await produce(
            servers, names.events, [outgoing(watch("u", f"e{n}", f"v{n}")) for n in range(ITEMS - 1)]
        )
        outcome = await all_served(servers, names)
        assert [item.video_id for item in outcome.lists[-1].value.items] == [f"v{ITEMS - 1}"]
        await produce(servers, f"{names.group}-videos", [video("new", "cats")])
        await running.until(lambda: running.metric("videos_total", outcome="added") == 1, "the new video")
        await produce(servers, names.events, [outgoing(watch("u", "last", f"v{ITEMS - 1}"))])
        outcome = await all_served(servers, names)
    assert [item.video_id for item in outcome.lists[-1].value.items] == ["new"]


async def test_videos_are_read_to_the_end_before_the_first_list(small: Deployment) -> None:
    """A daemon that starts knows every video of the topic: what is no video is counted and passed over, a tombstone
    takes nothing back, and those there is no place for are refused."""
    servers, names = small.servers, small.names
    topic = f"{names.group}-videos"
    await create_topic(servers, topic, partitions=1, config={"cleanup.policy": "compact"})
    packed = Outgoing(
        b"c", encode_video(Video(video_id="c"), MESSAGEPACK), [(CONTENT_TYPE_HEADER, MESSAGEPACK.encode())]
    )
    rubbish = [Outgoing(b"x", b"rubbish"), Outgoing(b"other", encode_video(Video(video_id="x")))]
    known = [video("v0"), video("v1")]
    taken = [video("a", "x"), video("b", "y"), Outgoing(b"a", None), packed]
    await produce(servers, topic, [*rubbish, *known, *taken, video("a", "z"), video("d")])
    seen = [outgoing(watch("u", f"e{n}", f"v{n}")) for n in range(ITEMS)]
    await produce(servers, names.events, seen)
    async with inside(small, changes=changes(names) | {"generator.list_length": SPARE}) as running:
        outcome = await all_served(servers, names)
        counted = {
            kind: running.metric("videos_total", outcome=kind)
            for kind in ("added", "known", "refused", "invalid")
        }
    assert counted == {"added": 3, "known": 2, "refused": 1, "invalid": 2}
    assert {item.video_id for item in outcome.lists[-1].value.items} == {"a", "b", "c"}


async def test_a_videos_topic_that_forgets_is_refused(small: Deployment) -> None:
    """A videos topic that is not compacted would lose videos: the daemon does not start."""
    topic = f"{small.names.group}-videos"
    await create_topic(small.servers, topic, partitions=1, config={"cleanup.policy": "delete"})
    running = small.start(changes={"topics.videos": topic})
    assert await running.ended() == 2
    (line,) = running.plain_output()
    assert f"topic {topic} has cleanup.policy = delete where videos must have compact" in line


async def test_profile_and_strategy_reach_the_model_through_a_restart_without_local_files(
    small: Deployment, small_checkpoint: Path
) -> None:
    """A profile asks for no list and is never lost: the list after the next event is the slate that the model makes
    for this history and this profile, also where another daemon has restored it from Kafka."""
    servers, names = small.servers, small.names
    slates = {"generator.strategy": "slate", "generator.list_length": 3}
    profile = Profile(event_id="p", user_id="u", timestamp_ms=1, attributes={"city": "x"})
    late = Profile(event_id="q", user_id="u", timestamp_ms=0, attributes={"city": "y"})
    told = [Outgoing(b"u", encode_event(one)) for one in (profile, late)]
    first = watch("u", "e1", "v1")
    async with inside(small, changes=slates) as running:
        await produce(servers, names.events, [outgoing(first), *told])
        await all_committed(servers, names)
        await all_served(servers, names)
        assert running.metric("lists_total") == 1
        assert running.metric("events_total", type="profile") == 2
        assert running.metric("duplicates_total") == 1
    shutil.rmtree(small.state_directory())
    second = watch("u", "e2", "v2")
    async with inside(small, changes=slates):
        await produce(servers, names.events, [outgoing(second)])
        outcome = await all_served(servers, names)
    reference = ReferenceRecommender(small_checkpoint)
    histories = list_request([first, second], 3)
    expected, without = reference.recommend(
        [
            ListRequest("u", histories.records, histories.videos, 3, "slate", packed)
            for packed in (pack_attributes({"city": "x"}), b"")
        ]
    )
    assert isinstance(expected, ListResult)
    assert isinstance(without, ListResult)
    made = outcome.lists[-1].value
    assert made.strategy == "slate"
    assert [item.video_id for item in made.items] == expected.video_ids
    assert [item.score for item in made.items] == pytest.approx(expected.scores, abs=1e-4)
    assert expected.scores != pytest.approx(without.scores, abs=1e-3), "the profile makes no difference"
