"""How the demo cuts a log."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from mtgr.datasets import read_events
from mtgr.errors import InputError
from schemas.codecs import encode_event
from schemas.events import Event, Like, Profile, Watch
from schemas.videos import Video
from stream.demo.knowledge import Knowledge, simulated_knowledge
from stream.demo.log import event_logs, prepare_log, simulated_log


def _likes(users: list[str]) -> list[Event]:
    return [
        Like(event_id=f"e{n}", user_id=user, video_id=f"v{n}", timestamp_ms=1_000 * n)
        for n, user in enumerate(users)
    ]


def _file(path: Path, events: list[Event]) -> Path:
    path.write_bytes(b"".join(encode_event(event) + b"\n" for event in events))
    return path


def test_users_with_the_longest_histories_are_followed(tmp_path: Path) -> None:
    """The model learns from everybody before the cut; history and live events are those of the followed."""
    users = ["a", "a", "a", "b", "b", "c", "c", "a", "d", "c", "a", "b", "c", "a", "d"]
    log = prepare_log([_file(tmp_path / "log.jsonl", _likes(users))], Knowledge(), tmp_path, 2)
    trained = [event.event_id for event in read_events([log.training])]
    assert trained == [f"e{n}" for n in range(12)]
    assert log.training_events == 12
    assert log.users == 2
    assert [event.user_id for event in log.history] == ["a", "a", "a", "b", "b", "a", "a", "b"]
    assert [event.event_id for event in log.live] == ["e13"]


def test_log_whose_followed_users_do_not_come_back_is_refused(tmp_path: Path) -> None:
    """Without live events there is nothing to show, and the message says so before any training."""
    log = _file(tmp_path / "log.jsonl", _likes(["a"] * 8 + ["b", "b"]))
    with pytest.raises(InputError, match="none of the 1 users with the longest histories"):
        prepare_log([log], Knowledge(), tmp_path, 1)


def test_invalid_lines_are_counted_and_passed_over(tmp_path: Path) -> None:
    """One damaged line does not end the demo."""
    log = _file(tmp_path / "log.jsonl", _likes(["a"] * 20))
    log.write_bytes(log.read_bytes() + b'{"type": "like"}\n')
    assert prepare_log([log], Knowledge(), tmp_path, 1).skipped == 1


def test_folder_gives_the_event_logs_in_it(tmp_path: Path) -> None:
    """Files that hold something else are left alone, and a folder with none is refused."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "LICENSE").write_text("Anybody may use this.\n")
    (folder / "videos.csv").write_text("video_id,author\n1,2\n")
    with pytest.raises(InputError, match="holds no event log"):
        event_logs(folder)
    _file(folder / "b.jsonl", _likes(["a"]))
    with gzip.open(folder / "a.jsonl.gz", "wb") as packed:
        packed.write(encode_event(_likes(["a"])[0]) + b"\n")
    assert event_logs(folder) == [folder / "a.jsonl.gz", folder / "b.jsonl"]
    assert event_logs(folder / "b.jsonl") == [folder / "b.jsonl"]


def test_simulated_users_make_a_log_for_the_demo(tmp_path: Path) -> None:
    """The simulator's events can be cut, and its users come back."""
    log = prepare_log(simulated_log(tmp_path), simulated_knowledge(), tmp_path, 2_000)
    assert log.training_events == 120_000
    described = {video.video_id for video in log.known.videos}
    assert all(isinstance(event, Profile) or event.video_id in described for event in log.history)
    told = {event.user_id for event in log.history if isinstance(event, Profile)}
    assert {event.user_id for event in log.live} <= told
    assert 100 < len(log.new_videos) < 1_000, "some are born later than the cut"
    assert len(told) == log.users
    assert len(log.live) > 25_000
    assert log.users > 1_500


def test_what_is_known_of_users_comes_before_their_events(tmp_path: Path) -> None:
    """The history of the followed users begins with their profiles, and videos without an event will be new."""
    profiles = [
        Profile(event_id=f"p{user}", user_id=user, timestamp_ms=0, attributes={"age": 30.0}) for user in "abc"
    ]
    videos = [Video(video_id=video_id) for video_id in ("v0", "v13", "nobody's")]
    file = _file(tmp_path / "log.jsonl", _likes(["a"] * 8 + ["b"] * 4 + ["a"] * 2))
    log = prepare_log([file], Knowledge(videos, profiles), tmp_path, 1)
    assert log.history[0] == profiles[0]
    assert {event.user_id for event in log.history} == {"a"}
    assert log.known == Knowledge(videos[:1], profiles)
    assert log.new_videos == videos[1:]


def test_videos_are_ranked_by_watches_before_the_cut(tmp_path: Path) -> None:
    """Likes and what comes after the cut say nothing of what was watched most until then."""
    watched = ["b", "a", "b", "c", "b", "a", "x", "x", "x", "x"]
    events: list[Event] = [
        Watch(
            event_id=f"e{n}",
            user_id="u",
            video_id=video_id,
            timestamp_ms=n,
            watch_seconds=1.0,
            watch_ratio=0.1,
        )
        for n, video_id in enumerate(watched)
    ]
    events += [Like(event_id=f"l{n}", user_id="u", video_id="c", timestamp_ms=0) for n in range(5)]
    log = prepare_log([_file(tmp_path / "log.jsonl", events)], Knowledge(), tmp_path, 1)
    assert log.training_events == 12
    assert log.most_watched == ["b", "a", "c", "x"]
