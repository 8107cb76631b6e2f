"""Event logs in files are read as events, whatever their format, and what is wrong with them is named."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import events

from mtgr.datasets import ColumnMapping, parse_mapping, read_events, read_file, split_by_time
from mtgr.errors import InputError
from schemas.bounds import MAX_WATCH_RATIO
from schemas.events import Event, Favorite, Like, Share, Watch

KUAIRAND_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)


def kuairand_row(
    user: int = 1,
    video: int = 2,
    time_ms: int = 1_650_000_000_000,
    like: int = 0,
    follow: int = 0,
    forward: int = 0,
    play_ms: int = 5_000,
    duration_ms: int = 10_000,
) -> str:
    return f"{user},{video},20220415,600,{time_ms},1,{like},{follow},0,{forward},0,0,{play_ms},{duration_ms},0,0,0,0,1"


def csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def wire(path: Path, events_: Sequence[Event]) -> Path:
    path.write_bytes(msgspec.json.Encoder().encode_lines(events_))
    return path


@pytest.fixture
def watches() -> list[Event]:
    return [
        Watch(
            event_id=f"e{number}",
            user_id=f"u{number % 3}",
            video_id="v",
            timestamp_ms=1_000 * number,
            watch_seconds=1.5,
            watch_ratio=0.25,
        )
        for number in range(10)
    ]


def test_a_kuairand_row_is_a_watch_in_seconds_with_its_ratio(tmp_path: Path) -> None:
    """Milliseconds become seconds, and the ratio is the played time over the duration, above 1 when rewatched."""
    log = csv(tmp_path / "log.csv", KUAIRAND_HEADER, kuairand_row(play_ms=15_000, duration_ms=10_000))
    (event,) = read_file(log)
    assert isinstance(event, Watch)
    assert (event.user_id, event.video_id, event.timestamp_ms) == ("1", "2", 1_650_000_000_000)
    assert (event.watch_seconds, event.watch_ratio, event.video_seconds) == (15.0, 1.5, 10.0)


def test_a_duration_of_zero_is_an_unknown_length(tmp_path: Path) -> None:
    """A ratio by zero is not made up: the video's length is left out and the ratio is 0."""
    log = csv(tmp_path / "log.csv", KUAIRAND_HEADER, kuairand_row(duration_ms=0))
    (event,) = read_file(log)
    assert isinstance(event, Watch)
    assert (event.watch_seconds, event.watch_ratio, event.video_seconds) == (5.0, 0.0, None)


def test_a_ratio_beyond_the_bound_is_clipped_to_it(tmp_path: Path) -> None:
    """A minute of a video said to last a millisecond is a valid watch."""
    log = csv(tmp_path / "log.csv", KUAIRAND_HEADER, kuairand_row(play_ms=60_000_000, duration_ms=1))
    (event,) = read_file(log)
    assert isinstance(event, Watch)
    assert event.watch_ratio == MAX_WATCH_RATIO


def test_likes_and_forwards_follow_their_watch_and_a_follow_is_nothing(tmp_path: Path) -> None:
    """is_like and is_forward are events of their own, later than the watch; nobody is said to have a favourite."""
    log = csv(tmp_path / "log.csv", KUAIRAND_HEADER, kuairand_row(like=1, forward=1, follow=1))
    found = list(read_file(log))
    assert [type(event) for event in found] == [Watch, Like, Share]
    times = [event.timestamp_ms for event in found]
    assert times == sorted(set(times))
    assert len({event.event_id for event in found}) == 3


def test_a_row_that_is_there_twice_is_one_event_twice(tmp_path: Path) -> None:
    """Duplicate rows get the same event id, so that whoever deduplicates sees them; other rows get others."""
    rows = [kuairand_row(like=1), kuairand_row(like=1), kuairand_row(video=3)]
    found = list(read_file(csv(tmp_path / "log.csv", KUAIRAND_HEADER, *rows)))
    ids = [event.event_id for event in found if isinstance(event, Watch)]
    assert ids[0] == ids[1] != ids[2]
    assert len({event.event_id for event in found if isinstance(event, Like)}) == 1


def test_csv_rows_come_in_time_order_and_ties_in_the_files(tmp_path: Path) -> None:
    """A log sorted by user, as some are, is read in order of time."""
    times = [30, 10, 20, 10]
    rows = [kuairand_row(user=user, time_ms=time) for user, time in enumerate(times)]
    found = list(read_file(csv(tmp_path / "log.csv", KUAIRAND_HEADER, *rows)))
    assert [(event.timestamp_ms, event.user_id) for event in found] == [
        (10, "1"),
        (10, "3"),
        (20, "2"),
        (30, "0"),
    ]


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.dat"])
def test_the_format_is_told_by_content(tmp_path: Path, name: str) -> None:
    """A gzip file is read as one whatever its name, and so is a plain one."""
    text = f"{KUAIRAND_HEADER}\n{kuairand_row()}\n".encode()
    path = tmp_path / name
    path.write_bytes(text if name == "log.csv" else gzip.compress(text))
    assert len(list(read_file(path))) == 1


@given(st.lists(events(), max_size=20))
def test_wire_events_read_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, made: list[Event]
) -> None:
    """Whatever events are written as JSON lines come back the same, in time order, gzip or not."""
    directory = tmp_path_factory.mktemp("wire")
    ordered = sorted(made, key=lambda event: event.timestamp_ms)
    plain = wire(directory / "log.jsonl", made)
    packed = directory / "log.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    if made:
        assert list(read_file(plain)) == list(read_file(packed)) == ordered
    else:
        with pytest.raises(InputError, match="holds nothing"):
            read_file(plain)


def test_logs_are_merged_into_one_time_order(tmp_path: Path, watches: list[Event]) -> None:
    """Several files are read as one log, of whatever formats they are."""
    one = wire(tmp_path / "one.jsonl", watches[::2])
    other = csv(
        tmp_path / "other.csv",
        "event_id,user_id,video_id,timestamp_ms,type,watch_seconds,watch_ratio",
        *(f"e{n},u{n % 3},v,{1_000 * n},watch,1.5,0.25" for n in range(1, 10, 2)),
    )
    assert list(read_events([one, other])) == watches


def test_columns_are_named_by_a_mapping(tmp_path: Path) -> None:
    """A log of any shape is read by saying which column means what, and what its words for types mean."""
    log = csv(
        tmp_path / "log.csv",
        "userId,movieId,stamp,action,sec,len,via,key",
        "7,m1,1500000000,play,30,60,,k1",
        "7,m1,1500000001,heart,,,,k2",
        "7,m1,1500000002,share,,,mail,k3",
        "7,m1,1500000003,save,,,,k4",
    )
    mapping = parse_mapping(
        [
            "user=userId,video=movieId,time=stamp,type=action,type:play=watch,type:heart=like,type:save=favorite",
            "watch_seconds=sec,video_seconds=len,channel=via,event_id=key",
        ]
    )
    common = {"user_id": "7", "video_id": "m1"}
    start = 1_500_000_000_000
    assert list(read_file(log, mapping)) == [
        Watch(
            event_id="k1",
            timestamp_ms=start,
            watch_seconds=30.0,
            watch_ratio=0.5,
            video_seconds=60.0,
            **common,
        ),
        Like(event_id="k2", timestamp_ms=start + 1_000, **common),
        Share(event_id="k3", timestamp_ms=start + 2_000, channel="mail", **common),
        Favorite(event_id="k4", timestamp_ms=start + 3_000, **common),
    ]


@pytest.mark.parametrize(
    ("stamp", "unit"),
    [
        ("1500000000", "auto"),
        ("1500000000.0", "s"),
        ("1500000000000", "auto"),
        ("1500000000000", "ms"),
        ("2017-07-14T02:40:00Z", "auto"),
        ("2017-07-14 02:40:00", "iso"),
        ("2017-07-14T04:40:00+02:00", "auto"),
    ],
)
def test_times_are_read_in_every_common_form(tmp_path: Path, stamp: str, unit: str) -> None:
    """Seconds, milliseconds and ISO 8601 with or without a zone mean the same moment."""
    log = csv(tmp_path / "log.csv", "u,i,t", f"1,2,{stamp}")
    (event,) = read_file(log, parse_mapping([f"user=u,video=i,time=t,rows_are=like,time_unit={unit}"]))
    assert event.timestamp_ms == 1_500_000_000_000


def test_a_watch_can_be_given_by_its_ratio(tmp_path: Path) -> None:
    """The watched time follows from the ratio and the video's length."""
    log = csv(tmp_path / "log.tsv", "u\ti\tt\tratio\tlen", "1\t2\t3\t0.5\t40000")
    mapping = parse_mapping(["user=u,video=i,time=t,watch_ratio=ratio,video_ms=len"])
    (event,) = read_file(log, mapping)
    assert isinstance(event, Watch)
    assert (event.watch_seconds, event.watch_ratio, event.video_seconds) == (20.0, 0.5, 40.0)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("user=u,time=t", "video must be given"),
        ("user=u,video=v,time=t,watch_second=s", "did you mean watch_seconds"),
        ("user=u,video=v,time=t,rows_are=view", "one of watch, like, favorite, share"),
        ("user=u,video=v,time=t,time_unit=min", "one of auto, s, ms, us, ns, iso"),
        ("user=u,user=w,video=v,time=t", "user is given twice"),
        ("user=u,video=v,time=t,watch_seconds=s,watch_ms=m", "both given"),
        ("user=u,video=v,time=t,type:play=watch,watch_ms=m", "type=COLUMN"),
        ("user", "should read FIELD=COLUMN"),
    ],
)
def test_a_wrong_mapping_is_refused_with_what_would_be_right(pairs: str, message: str) -> None:
    """Every mistake in a mapping is one line that names it."""
    with pytest.raises(InputError, match=message) as raised:
        parse_mapping([pairs])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,v,soon,1", r"line 2: t is 'soon', where it should be milliseconds"),
        ("x,v,-5,1", r"line 2: t is '-5'"),
        (",v,5,1", r"line 2: u is '', where it should be text of 1 to 128"),
        ("x,v,5,lots", r"line 2: w is 'lots', where it should be from 0 to 604800 seconds"),
        ("x,v,5,-1", r"line 2: w is '-1'"),
        ("x,v,5,nan", r"line 2: w is 'nan'"),
        (f"{'x' * 129},v,5,1", r"line 2: u is 'xxx"),
    ],
)
def test_a_row_that_is_no_event_is_named_by_file_line_column_and_value(
    tmp_path: Path, row: str, message: str
) -> None:
    """The first wrong row stops the reading with one line that leads to it."""
    log = csv(tmp_path / "log.csv", "u,i,t,w", row)
    mapping = ColumnMapping(user="u", video="i", time="t", time_unit="ms", watch_seconds="w")
    with pytest.raises(InputError, match=message) as raised:
        list(read_file(log, mapping))
    assert str(raised.value).startswith(str(log))


def test_invalid_rows_can_be_counted_and_passed_over(tmp_path: Path) -> None:
    """With `on_invalid` every valid row is read and every other one is told."""
    log = csv(tmp_path / "log.csv", "u,i,t", "a,b,5", "a,,6", "a,b,never", "a,b,7")
    wrong: list[InputError] = []
    mapping = ColumnMapping(user="u", video="i", time="t", time_unit="ms", rows_are="like")
    found = list(read_file(log, mapping, wrong.append))
    assert [event.timestamp_ms for event in found] == [5, 7]
    assert [str(error).partition(": ")[2].partition(":")[0] for error in wrong] == ["line 3", "line 4"]


def test_an_invalid_line_is_named_by_file_line_field_and_value(tmp_path: Path, watches: list[Event]) -> None:
    """A wrong JSON line stops the reading, or is passed over; blank lines do not count."""
    log = wire(tmp_path / "log.jsonl", watches)
    lines = log.read_bytes().splitlines()
    lines[4] = lines[4].replace(b'"watch_seconds":1.5', b'"watch_seconds":-2')
    log.write_bytes(b"\n\n".join([*lines, b"{"]) + b"\n")
    with pytest.raises(InputError, match=r"line 9: watch_seconds = -2: expected a number"):
        list(read_file(log))
    wrong: list[InputError] = []
    assert list(read_file(log, on_invalid=wrong.append)) == watches[:4] + watches[5:]
    assert len(wrong) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds nothing"),
        (b"\n \n", "holds nothing"),
        (b"PAR1\0\0", "cannot be read as Parquet"),
        (b"\x7fELF\0\0", "neither JSON lines, CSV"),
        (b"a,b,c\n1,2,3\n", "name yours by a mapping"),
        (gzip.compress(b"x" * 100_000)[:-20], "cannot be read"),
        (b"user_id,video_id,timestamp_ms\na,b,1\n", "says what the rows are"),
    ],
)
def test_a_file_of_no_known_format_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """What is not a log is refused in one line that names the file."""
    path = tmp_path / "log"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        list(read_file(path))
    assert str(path) in str(raised.value)


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    """A mapping that does not fit the header says which column it meant."""
    log = csv(tmp_path / "log.csv", "user,item,time", "1,2,3")
    with pytest.raises(InputError, match=r"no column 'items'.*did you mean item\?"):
        list(read_file(log, parse_mapping(["user=user,video=items,time=time,rows_are=like"])))


def test_missing_files_are_told_before_anything_is_read(tmp_path: Path) -> None:
    """A wrong path among several stops the reading at once."""
    log = csv(tmp_path / "log.csv", KUAIRAND_HEADER, kuairand_row())
    with pytest.raises(InputError, match="there is no such file"):
        read_events([log, tmp_path / "nope.csv"])
    with pytest.raises(InputError, match="is a directory"):
        read_events([tmp_path])


@given(times=st.lists(st.integers(0, 30), min_size=1, max_size=40), fraction=st.floats(0.05, 0.95))
def test_a_split_cuts_between_two_times(
    tmp_path_factory: pytest.TempPathFactory, times: list[int], fraction: float
) -> None:
    """Both parts together are the log, and every event of the first is earlier than every event of the second."""
    directory = tmp_path_factory.mktemp("split")
    made: list[Event] = [
        Like(event_id=f"e{number}", user_id="u", video_id="v", timestamp_ms=time)
        for number, time in enumerate(times)
    ]
    log = wire(directory / "log.jsonl", made)
    if sorted(times)[int(fraction * len(times))] == min(times):
        with pytest.raises(InputError, match="cannot be cut in two"):
            split_by_time([log], fraction, directory / "parts")
        return
    split = split_by_time([log], fraction, directory / "parts")
    earlier, later = list(read_file(split.earlier)), list(read_file(split.later))
    assert [*earlier, *later] == list(read_file(log))
    assert earlier[-1].timestamp_ms < split.cut_ms == later[0].timestamp_ms
    assert (len(earlier), len(later)) == (split.earlier_events, split.later_events)
    assert len(earlier) <= fraction * len(times)
