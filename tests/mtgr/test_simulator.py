"""Simulated users are valid, repeatable, and give a sequence model something to learn."""

from __future__ import annotations

from collections import Counter, defaultdict
from random import Random
from statistics import mean

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtgr.errors import InputError
from mtgr.simulator import Simulation, describe_users, describe_videos, simulate
from mtgr.simulator.videos import Videos
from mtgr.simulator.viewers import Viewer
from schemas.codecs import decode_event, decode_video, encode_event, encode_video
from schemas.events import Event, Watch

SIMULATION = Simulation(users=300, videos=600, events=40_000, seed=3)


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return list(simulate(SIMULATION))


@pytest.fixture(scope="module")
def watches(events: list[Event]) -> list[Watch]:
    return [event for event in events if isinstance(event, Watch)]


@settings(max_examples=25)
@given(
    users=st.integers(1, 50),
    videos=st.integers(16, 200),
    count=st.integers(0, 600),
    seed=st.integers(0, 2**64),
)
def test_events_are_valid_counted_ordered_and_repeatable(
    users: int, videos: int, count: int, seed: int
) -> None:
    """Whatever the numbers: so many valid events with ids of their own, in time order, the same for the same seed."""
    simulation = Simulation(users=users, videos=videos, events=count, seed=seed)
    made = list(simulate(simulation))
    assert len(made) == count
    assert [decode_event(encode_event(event)) for event in made] == made
    assert len({event.event_id for event in made}) == count
    times = [event.timestamp_ms for event in made]
    assert times == sorted(times)
    assert list(simulate(simulation)) == made


def test_another_seed_makes_other_events() -> None:
    """The seed is not for show."""
    one, other = (
        [(event.user_id, event.video_id) for event in simulate(Simulation(events=500, seed=seed))]
        for seed in (1, 2)
    )
    assert one != other


def test_an_event_depends_on_nothing_that_comes_after() -> None:
    """The events come as they are made: the first of them need no more than the first sessions."""
    stream = simulate(Simulation(users=10, videos=16, events=10**9))
    assert next(stream).user_id.startswith("u")


def test_reactions_follow_a_watch_of_the_same_video_in_the_same_session(events: list[Event]) -> None:
    """Nobody likes, saves or shares what was not just watched, and not much of what was skipped."""
    last: dict[str, Watch] = {}
    kinds = Counter(type(event).__name__ for event in events)
    for event in events:
        if isinstance(event, Watch):
            last[event.user_id] = event
        else:
            watch = last[event.user_id]
            assert (event.video_id, event.session_id) == (watch.video_id, watch.session_id)
            assert watch.watch_ratio > 0.4
    assert kinds["Watch"] > kinds["Like"] > kinds["Favorite"] > kinds["Share"] > 0


def test_a_few_videos_have_most_of_the_watches(watches: list[Watch]) -> None:
    """Popularity is skewed, as by Zipf's law, but the tail is watched too."""
    counts = sorted(Counter(watch.video_id for watch in watches).values(), reverse=True)
    assert sum(counts[: SIMULATION.videos // 10]) > 0.25 * len(watches)
    assert counts[0] > 5 * counts[len(counts) // 2]
    assert len(counts) > 0.9 * SIMULATION.videos


def test_users_watch_longer_and_oftener_what_they_like() -> None:
    """A user's own topics have most of the watches and by far the higher watch ratio."""
    random = Random(5)
    videos = Videos.make(500, 16, 0.0, random)
    liked, other = [], []
    for _ in range(200):
        viewer = Viewer.make(16, random)
        now = 0.0
        for _ in range(20):
            for action in viewer.session(videos, now, random):
                if action.kind == "watch":
                    ratio = action.watched_seconds / videos.seconds[action.video]
                    (liked if videos.topic[action.video] in viewer.topics else other).append(ratio)
                now = action.seconds
    assert len(liked) > 2 * len(other) > 0
    assert mean(liked) > 1.5 * mean(other)


def test_days_have_a_rhythm(watches: list[Watch]) -> None:
    """The busiest hour sees at least twice the sessions of the quietest."""
    hours = Counter(watch.timestamp_ms // 3_600_000 % 24 for watch in watches)
    assert max(hours.values()) > 2 * min(hours[hour] for hour in range(24))


def test_the_order_of_events_tells_more_than_popularity(watches: list[Watch]) -> None:
    """Ten guesses by the last video beat ten guesses by popularity on unseen videos, by a factor of two at least."""
    cut = len(watches) * 8 // 10
    popular = [video for video, _ in Counter(watch.video_id for watch in watches[:cut]).most_common()]
    after: dict[str, Counter[str]] = defaultdict(Counter)
    last: dict[str, str] = {}
    seen: dict[str, set[str]] = defaultdict(set)
    by_order = by_popularity = 0
    for number, watch in enumerate(watches):
        user, video = watch.user_id, watch.video_id
        if number >= cut and video not in seen[user]:
            following = after[last.get(user, "")].most_common(50)
            by_order += video in [guess for guess, _ in following if guess not in seen[user]][:10]
            unseen = (guess for guess in popular if guess not in seen[user])
            by_popularity += video in [guess for guess, _ in zip(unseen, range(10), strict=False)]
        elif number < cut and user in last:
            after[last[user]][video] += 1
        last[user] = video
        seen[user].add(video)
    assert by_order > 2 * by_popularity > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"users": 0}, "users: 0 should be from 1"),
        ({"videos": 3}, "videos: 3 should be from 16"),
        ({"events": -1}, "events: -1 should be from 0"),
    ],
)
def test_numbers_out_of_bounds_are_named(wrong: dict[str, int], message: str) -> None:
    """What cannot be simulated is refused before the first event."""
    with pytest.raises(InputError, match=message):
        simulate(msgspec.structs.replace(Simulation(), **wrong))


def test_a_simulation_that_outlasts_the_wire_is_refused() -> None:
    """Events beyond the last time that the wire allows are never made."""
    late = Simulation(users=1, videos=16, events=10_000, start_ms=4_102_444_000_000)
    with pytest.raises(InputError, match="beyond the year 2100"):
        list(simulate(late))


@settings(max_examples=25)
@given(
    users=st.integers(1, 50), videos=st.integers(16, 200), count=st.integers(0, 300), seed=st.integers(0, 99)
)
def test_videos_and_users_are_described_validly_and_repeatably(
    users: int, videos: int, count: int, seed: int
) -> None:
    """Every video and every user of a simulation is described once, in the words of the wire, and no other."""
    simulation = Simulation(users=users, videos=videos, events=count, seed=seed)
    known, told = list(describe_videos(simulation)), list(describe_users(simulation))
    assert (
        [decode_video(encode_video(video)) for video in known] == known == list(describe_videos(simulation))
    )
    assert (
        [decode_event(encode_event(profile)) for profile in told] == told == list(describe_users(simulation))
    )
    assert len({video.video_id for video in known}) == videos
    assert len({profile.user_id for profile in told}) == users
    for event in simulate(simulation):
        assert event.video_id in {video.video_id for video in known}
        assert event.user_id in {profile.user_id for profile in told}


def test_attributes_say_what_users_will_watch(watches: list[Watch]) -> None:
    """Users watch the categories that they told longer than the others, and a series stays with one author."""
    known = {video.video_id: video.attributes for video in describe_videos(SIMULATION)}
    interests = {profile.user_id: profile.attributes["interests"] for profile in describe_users(SIMULATION)}
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for watch in watches:
        ratios[known[watch.video_id]["category"] in interests[watch.user_id]].append(watch.watch_ratio)
    assert mean(ratios[True]) > 1.3 * mean(ratios[False])
    assert len(ratios[True]) > 0.4 * len(watches)
    authors = defaultdict(set)
    for attributes in known.values():
        for tag in attributes["tags"]:
            authors[tag].add(attributes["author"])
        assert attributes["category"] in attributes["tags"]
    assert all(len(found) == 1 for tag, found in authors.items() if tag.startswith("series-"))
    assert any(len(found) > 1 for tag, found in authors.items() if tag.startswith("topic-"))
