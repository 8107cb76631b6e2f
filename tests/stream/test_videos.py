"""Promises of stream.videos: every video of the topic reaches the generator, whatever else is in it or fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, TopicAuthorizationFailedError
from partitions import Record

from mtgr.attributes import pack_attributes
from mtgr.requests import AddedVideos, NewVideo
from schemas.codecs import CONTENT_TYPE_HEADER, MESSAGEPACK, encode_video
from schemas.videos import Video
from stream import videos
from stream.errors import Fatal
from stream.observability import Health, Metrics
from stream.videos import COMPONENT, VideoTable

TP = TopicPartition("videos", 0)


def record(offset: int, video_id: str, key: bytes | None = None, **attributes: str) -> Record:
    value = encode_video(Video(video_id=video_id, attributes=dict(attributes)))
    return Record(offset, video_id.encode() if key is None else key, value)


class Topic:
    """A consumer of one partition; `failures` are raised by the calls to come, one each."""

    def __init__(self, records: Sequence[Record], failures: Sequence[Exception] = ()) -> None:
        self.records = list(records)
        self.failures = list(failures)
        self.grown = asyncio.Event()
        self._next = 0

    def assign(self, partitions: list[TopicPartition]) -> None:
        assert partitions == [TP]

    async def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        self._next = 0

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        self._fail()
        return {TP: len(self.records)}

    async def position(self, partition: TopicPartition) -> int:
        return self._next

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Record]]:
        self._fail()
        found = self.records[self._next : self._next + max_records]
        self._next += len(found)
        if not found:
            self.grown.clear()
            await asyncio.wait_for(self.grown.wait(), 20)
        return {TP: found} if found else {}

    def append(self, *records: Record) -> None:
        self.records += records
        self.grown.set()

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


class Catalog:
    """What takes videos, and refuses those for which there is no place."""

    def __init__(self, places: int = 1_000_000) -> None:
        self.batches: list[list[NewVideo]] = []
        self.changed = asyncio.Condition()
        self._places = places

    async def add(self, batch: Sequence[NewVideo]) -> AddedVideos:
        self.batches.append(list(batch))
        taken = min(self._places, len(batch))
        self._places -= taken
        async with self.changed:
            self.changed.notify_all()
        return AddedVideos(taken, 0, [video.video_id for video in batch[taken:]])

    @property
    def videos(self) -> list[NewVideo]:
        return [video for batch in self.batches for video in batch]


def table_of(topic: Topic, catalog: Catalog, patience: float = 20) -> tuple[VideoTable, Metrics, Health]:
    metrics, health = Metrics(), Health([COMPONENT])
    table = VideoTable(
        topic, [TP], catalog.add, metrics, health, patience_seconds=patience  # type: ignore[arg-type]
    )  # fmt: skip
    return table, metrics, health


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "_RETRY_SECONDS", 0.001)


def counted(metrics: Metrics, outcome: str) -> float:
    return metrics.registry.get_sample_value("mtgr_videos_total", {"outcome": outcome}) or 0.0


async def test_the_topic_is_read_to_its_end_before_the_daemon_is_ready() -> None:
    """The newest of an id counts, in either format; what is no video or of another key is passed over."""
    packed = Record(
        2,
        b"b",
        encode_video(Video(video_id="b", attributes={"n": 1}), MESSAGEPACK),
        ((CONTENT_TYPE_HEADER, MESSAGEPACK.encode()),),
    )
    topic = Topic(
        [
            record(0, "a", tag="old"),
            Record(1, b"x", b"rubbish"),
            packed,
            record(3, "c", key=b"d"),
            Record(4, b"b", None),
            record(5, "a", tag="new"),
        ]
    )
    catalog = Catalog()
    table, metrics, health = table_of(topic, catalog)
    await table.catch_up()
    assert health.is_ready
    assert {video.video_id: video.attributes for video in catalog.videos} == {
        "a": pack_attributes({"tag": "new"}),
        "b": pack_attributes({"n": 1.0}),
    }
    assert (counted(metrics, "added"), counted(metrics, "invalid")) == (2, 2)


async def test_an_empty_topic_is_ready_at_once() -> None:
    """Without a video there is nothing to wait for."""
    table, _, health = table_of(Topic([]), Catalog())
    await table.catch_up()
    assert health.is_ready


async def test_videos_that_come_later_are_handed_on() -> None:
    """Once it is read, the topic is followed."""
    topic, catalog = Topic([record(0, "a")]), Catalog()
    table, _, _ = table_of(topic, catalog)
    await table.catch_up()
    following = asyncio.create_task(table.run())
    topic.append(record(1, "b"), record(2, "c"))
    async with asyncio.timeout(20), catalog.changed:
        await catalog.changed.wait_for(lambda: len(catalog.videos) == 3)
    following.cancel()
    assert [video.video_id for video in catalog.videos] == ["a", "b", "c"]


async def test_batches_are_bounded_by_number_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic of any length goes to the generator in pieces that a call can carry."""
    monkeypatch.setattr(videos, "_BATCH_VIDEOS", 10)
    monkeypatch.setattr(videos, "_BATCH_BYTES", 250)
    catalog = Catalog()
    table, _, _ = table_of(Topic([record(n, f"v{n}", text="x" * (n % 120 + 1)) for n in range(95)]), catalog)
    await table.catch_up()
    assert [video.video_id for video in catalog.videos] == [f"v{n}" for n in range(95)]
    assert all(
        len(batch) == 1 or sum(len(video.attributes) for video in batch) <= 250 for batch in catalog.batches
    )
    assert max(map(len, catalog.batches)) == 10


async def test_refused_videos_are_counted() -> None:
    """Videos for which the catalog has no place are told by number."""
    table, metrics, _ = table_of(Topic([record(n, f"v{n}") for n in range(5)]), Catalog(places=3))
    await table.catch_up()
    assert (counted(metrics, "added"), counted(metrics, "refused")) == (3, 2)


async def test_a_broker_that_comes_back_is_waited_for() -> None:
    """A connection that fails while the topic is read costs time, and no video."""
    catalog = Catalog()
    failures = [KafkaConnectionError("gone"), OSError("no route"), KafkaConnectionError("still gone")]
    table, _, health = table_of(Topic([record(0, "a"), record(1, "b")], failures), catalog)
    await table.catch_up()
    assert health.is_ready
    assert [video.video_id for video in catalog.videos] == ["a", "b"]


@pytest.mark.parametrize(
    ("failures", "patience", "message"),
    [
        ([TopicAuthorizationFailedError("no")], 20.0, "videos cannot be read"),
        ([KafkaConnectionError("gone")] * 3, 0.0, "topic videos could not be read to its end"),
    ],
)
async def test_a_topic_that_cannot_be_read_stops_the_daemon(
    failures: list[KafkaError], patience: float, message: str
) -> None:
    """A refusal at once and a broker that stays away are fatal: lists without these videos would be wrong."""
    table, _, health = table_of(Topic([record(0, "a")], failures), Catalog(), patience)
    with pytest.raises(Fatal, match=message):
        await table.catch_up()
    assert not health.is_ready
