"""A log of any shape is read by a column mapping alone."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgr.datasets import parse_mapping, read_events, read_file
from mtgr.datasets.row_times import SYNTHETIC_START_MS
from mtgr.errors import InputError
from schemas.events import Event, Like, Share, Watch

SECONDS = 1_500_000_000


def text(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def read(path: Path, mapping: str) -> list[Event]:
    return list(read_file(path, parse_mapping([mapping])))


def watches(events: Sequence[Event]) -> list[Watch]:
    return [event for event in events if isinstance(event, Watch)]


def ranks(events: Sequence[Event]) -> list[float]:
    return [(event.timestamp_ms - SYNTHETIC_START_MS) / 1000 for event in events]


def test_movielens_without_a_header_is_read_by_numbered_columns(tmp_path: Path) -> None:
    """ "::" is found, columns are counted from 1, and the best rating is a whole watch of unknown length."""
    log = text(tmp_path / "ratings.dat", "1::1193::5::978300760", "1::661::3::978302109", "2::1193::4::97830")
    found = watches(read(log, "user=1,video=2,rating=3,time=4"))
    assert [(e.user_id, e.video_id, e.timestamp_ms, e.watch_ratio, e.watch_seconds) for e in found] == [
        ("2", "1193", 97_830_000, 0.8, 0.0),
        ("1", "1193", 978_300_760_000, 1.0, 0.0),
        ("1", "661", 978_302_109_000, 0.6, 0.0),
    ]


@pytest.mark.parametrize(
    ("mark", "option"),
    [
        (",", ""),
        ("\t", ""),
        (";", ""),
        ("|", ""),
        ("::", ""),
        (" ", ""),
        ("~", ",separator=~"),
        ("#+", ",separator=#+"),
    ],
)
@pytest.mark.parametrize("header", [True, False])
def test_every_separator_leads_to_the_same_log(tmp_path: Path, mark: str, option: str, header: bool) -> None:
    """What parts the fields is found by the first lines, or is named; a header is optional."""
    rows = [("u1", "v1", SECONDS), ("u1", "v2", SECONDS + 1), ("u2", "v1", SECONDS + 2)]
    lines = [mark.join(map(str, row)) for row in rows]
    mapping = "user=1,video=2,time=3"
    if header:
        lines.insert(0, mark.join(["who", "what", "when"]))
        mapping = "user=who,video=what,time=when"
    found = read(text(tmp_path / "log", *lines), mapping + option)
    assert [(e.user_id, e.video_id, e.timestamp_ms // 1000) for e in found] == rows


def test_a_comma_inside_a_quoted_field_parts_nothing(tmp_path: Path) -> None:
    """Quoted text is one field, whatever is in it."""
    log = text(tmp_path / "log.csv", "user,title,video,time", *(f'u,"a; b, c|d",v{n},{n}' for n in range(3)))
    assert [event.video_id for event in read(log, "user=user,video=video,time=time")] == ["v0", "v1", "v2"]


def test_a_row_that_tells_nothing_but_who_and_what_is_a_whole_watch(tmp_path: Path) -> None:
    """Where the log knows no lengths the ratio is 1 and the seconds are 0, by type column or without."""
    log = text(tmp_path / "log.csv", "u,v,t,action", f"a,b,{SECONDS},view", f"a,c,{SECONDS + 1},buy")
    for mapping in ("user=u,video=v,time=t", "user=u,video=v,time=t,rows_are=watch"):
        assert [(e.watch_ratio, e.watch_seconds) for e in watches(read(log, mapping))] == [(1, 0), (1, 0)]
    first, second = read(log, "user=u,video=v,time=t,type=action,type:view=watch,type:buy=share")
    assert isinstance(first, Watch)
    assert (first.watch_ratio, first.watch_seconds) == (1.0, 0.0)
    assert isinstance(second, Share)


def test_a_ratio_alone_is_a_watch_of_no_known_length(tmp_path: Path) -> None:
    """The ratio is kept, and no seconds are made up."""
    log = text(tmp_path / "log.csv", "u,v,t,r", f"a,b,{SECONDS},0.25")
    (found,) = watches(read(log, "user=u,video=v,time=t,watch_ratio=r"))
    assert (found.watch_ratio, found.watch_seconds, found.video_seconds) == (0.25, 0.0, None)


def test_ratings_are_over_the_highest_of_the_whole_log(tmp_path: Path) -> None:
    """The highest is that of all files, unless the mapping says what the best rating is."""
    one = text(tmp_path / "one.csv", "u,v,t,r", "a,x,1,4", "a,y,2,2")
    other = text(tmp_path / "other.csv", "u,v,t,r", "a,z,3,8")
    mapping = "user=u,video=v,time=t,rating=r"
    ratios = [
        event.watch_ratio for event in watches(list(read_events([one, other], parse_mapping([mapping]))))
    ]
    assert ratios == [0.5, 0.25, 1.0]
    assert [event.watch_ratio for event in watches(read(one, mapping + ",rating_max=16"))] == [0.25, 0.125]


def test_a_rank_becomes_a_time_that_keeps_the_order(tmp_path: Path) -> None:
    """Rank r is 2000-01-01 00:00 UTC and r seconds; rows of one rank stay in the file's order."""
    log = text(tmp_path / "log.csv", "u,v,n", "a,second,7", "a,first,0", "b,tie,7")
    found = read(log, "user=u,video=v,order=n")
    assert [event.video_id for event in found] == ["first", "second", "tie"]
    assert ranks(found) == [0, 7, 7]
    assert datetime.fromtimestamp(found[0].timestamp_ms / 1000, UTC) == datetime(2000, 1, 1, tzinfo=UTC)


def test_without_time_and_order_the_file_is_the_order(tmp_path: Path) -> None:
    """Rows follow one another, over the files as they are named; a video come back to is another event."""
    one = text(tmp_path / "one.csv", "u,v,liked", "a,x,1", "b,x,0", "a,x,0")
    other = text(tmp_path / "other.csv", "u,v,liked", "a,x,1", "b,y,0")
    found = list(read_events([one, other], parse_mapping(["user=u,video=v,like=liked"])))
    seen = [(event.user_id, event.video_id) for event in watches(found)]
    assert seen == [("a", "x"), ("b", "x"), ("a", "x"), ("a", "x"), ("b", "y")]
    assert ranks(watches(found)) == [0, 1, 2, 3, 4]
    assert [type(event) for event in found if event.user_id == "a"] == [Watch, Like, Watch, Watch, Like]
    assert len({event.event_id for event in found}) == len(found)


def test_equal_rows_are_one_event_only_where_time_or_rank_says_so(tmp_path: Path) -> None:
    """The same row twice is one event twice with a time or a rank, and two events without."""
    log = text(tmp_path / "log.csv", "u,v,t", "a,x,5", "a,x,5", "a,x,6")
    for mapping, distinct in (
        ("user=u,video=v,time=t", 2),
        ("user=u,video=v,order=t", 2),
        ("user=u,video=v", 3),
    ):
        assert len({event.event_id for event in read(log, mapping)}) == distinct


@given(st.dictionaries(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=8), min_size=1))
def test_a_sequence_file_gives_every_user_the_videos_in_order(
    tmp_path_factory: pytest.TempPathFactory, users: dict[int, list[int]]
) -> None:
    """A line is a user and the user's videos; each is a watch of its own, later than the one before."""
    lines = [" ".join(map(str, [user, *videos])) for user, videos in users.items()]
    path = tmp_path_factory.mktemp("log") / "log.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    found = read(path, "layout=sequences")
    for user, videos in users.items():
        own = [event for event in found if event.user_id == str(user)]
        assert [event.video_id for event in own] == [str(video) for video in videos]
        assert all(one.timestamp_ms < later.timestamp_ms for one, later in pairwise(own))
        assert len({event.event_id for event in own}) == len(videos)


@pytest.mark.parametrize("line", ["u 1 2 3", "u\t1\t2\t3", "u,1,2,3", "u\t1,2,3", "u  1 2 3 "])
def test_a_sequence_line_is_parted_by_blanks_or_commas(tmp_path: Path, line: str) -> None:
    """All the usual ways to write a list in a line mean the same."""
    found = read(text(tmp_path / "log.txt", line), "layout=sequences")
    assert [(event.user_id, event.video_id) for event in found] == [("u", "1"), ("u", "2"), ("u", "3")]


def test_sequences_in_columns_bring_their_times_and_ratings(tmp_path: Path) -> None:
    """Lists of one row belong together by their places, as text in CSV or as lists in Parquet."""
    mapping = "layout=sequences,user=user_id,video=items,time=times,rating=ratings"
    log = text(
        tmp_path / "log.csv", "user_id,items,ratings,times", 'u1,"[7, 8]","5,4","100,200"', 'u2,"9","1","150"'
    )
    frame = pl.DataFrame(
        {"user_id": [1, 2], "items": [[7, 8], [9]], "ratings": [[5, 4], [1]], "times": [[100, 200], [150]]}
    )
    frame.write_parquet(tmp_path / "log.parquet")
    for path, prefix in ((log, "u"), (tmp_path / "log.parquet", "")):
        found = watches(read(path, mapping))
        assert [(e.user_id, e.video_id, e.timestamp_ms, e.watch_ratio) for e in found] == [
            (f"{prefix}1", "7", 100_000, 1.0),
            (f"{prefix}2", "9", 150_000, 0.2),
            (f"{prefix}1", "8", 200_000, 0.8),
        ]


PARQUET_TIMES: list[list[Any]] = [
    [SECONDS],
    [SECONDS * 1_000],
    [SECONDS * 1_000_000],
    [SECONDS * 1_000_000_000],
    [float(SECONDS)],
    [datetime(2017, 7, 14, 2, 40)],
    [datetime(2017, 7, 14, 2, 40, tzinfo=UTC)],
    ["2017-07-14T04:40:00+02:00"],
]


@pytest.mark.parametrize("times", PARQUET_TIMES, ids=lambda times: f"{times[0]!s:.24}")
def test_times_of_parquet_are_read_in_every_common_type(tmp_path: Path, times: list[Any]) -> None:
    """Numbers of any unit, texts and proper times with a zone or without mean the same moment."""
    path = tmp_path / "log.parquet"
    pl.DataFrame({"u": [1], "v": ["x"], "t": times}).write_parquet(path)
    (event,) = read(path, "user=u,video=v,time=t")
    assert event.timestamp_ms == SECONDS * 1_000


def test_a_date_is_its_midnight(tmp_path: Path) -> None:
    """A column of days is read as UTC days."""
    path = tmp_path / "log.parquet"
    pl.DataFrame({"u": [1], "v": ["x"], "t": [datetime(2017, 7, 14).date()]}).write_parquet(path)
    (event,) = read(path, "user=u,video=v,time=t")
    assert event.timestamp_ms == 1_499_990_400_000


def test_a_table_is_the_same_log_in_every_format(tmp_path: Path) -> None:
    """CSV, Parquet and JSON lines of the same rows give the same events, and merge in time order."""
    frame = pl.DataFrame(
        {
            "userId": [1, 2, 1],
            "movieId": ["x", "y", "z"],
            "ts": [SECONDS, SECONDS + 1, SECONDS + 2],
            "sec": [1.5, 20.0, 3.0],
            "liked": [False, True, False],
        }
    )
    frame.write_csv(tmp_path / "log.csv")
    frame.write_parquet(tmp_path / "log.parquet")
    frame.write_ndjson(tmp_path / "log.jsonl")
    mapping = parse_mapping(["user=userId,video=movieId,time=ts,watch_seconds=sec,like=liked"])
    csv, parquet, objects = (
        [msgspec.structs.replace(event, event_id="") for event in read_file(tmp_path / name, mapping)]
        for name in ("log.csv", "log.parquet", "log.jsonl")
    )
    assert csv == parquet == objects
    assert [type(event) for event in csv] == [Watch, Watch, Like, Watch]
    merged = list(read_events([tmp_path / "log.csv", tmp_path / "log.parquet"], mapping))
    assert len(merged) == 8
    assert merged == sorted(merged, key=lambda event: event.timestamp_ms)


def test_ids_that_pandas_made_floats_are_the_ids_they_were(tmp_path: Path) -> None:
    """7.0 is user 7, in whatever type a column came."""
    path = tmp_path / "log.parquet"
    pl.DataFrame({"u": [7.0], "v": pl.Series(["x"], dtype=pl.Categorical), "t": [1]}).write_parquet(path)
    (event,) = read(path, "user=u,video=v,time=t")
    assert (event.user_id, event.video_id) == ("7", "x")


def test_json_lines_of_another_shape_are_read_by_a_mapping(tmp_path: Path) -> None:
    """Objects need not be events: their members are columns, and wrong ones are named by line."""
    log = text(
        tmp_path / "reviews.jsonl",
        '{"reviewerID": "A", "asin": "B1", "overall": 5.0, "unixReviewTime": 1300000000}',
        '{"reviewerID": "A", "asin": null, "overall": 5.0, "unixReviewTime": 1300000001}',
        "{",
        '{"reviewerID": "A", "asin": "B2", "overall": 3.0, "unixReviewTime": 1300000002, "vote": [1]}',
    )
    wrong: list[InputError] = []
    mapping = parse_mapping(["user=reviewerID,video=asin,rating=overall,time=unixReviewTime"])
    found = watches(list(read_file(log, mapping, wrong.append)))
    assert [(event.video_id, event.watch_ratio) for event in found] == [("B1", 1.0), ("B2", 0.6)]
    assert [str(error).removeprefix(f"{log}: ")[:21] for error in wrong] == [
        "line 2: asin is '', w",
        "line 3: no JSON objec",
    ]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("item=i,user=u", "did you mean video"),
        ("user=u,video=v,timestamp=t", "did you mean time"),
        ("user=u,video=v,time=t,order=n", "time and order are both given"),
        ("user=u,video=v,rating=r,watch_ratio=w", "rating and watch_ratio are both given"),
        ("user=u,video=v,rating_max=5", "rating=COLUMN"),
        ("user=u,video=v,rating=r,rating_max=0", "should be a number above 0"),
        ("user=u,video=v,rating=r,rows_are=like", "rating is for watches"),
        ("user=0,video=1", "by its number from 1"),
        ("user=u,video=2,header=no", "by its number from 1"),
        ("layout=lists", "one of rows, sequences"),
        ("layout=sequences,user=1,video=2,time=3", "name no columns"),
        ("user=u,video=v,separator=", "separator=comma"),
    ],
)
def test_a_mapping_that_makes_no_sense_is_refused(pairs: str, message: str) -> None:
    """What contradicts itself is one line that says what would be right."""
    with pytest.raises(InputError, match=message) as raised:
        parse_mapping([pairs])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("lines", "mapping", "message"),
    [
        (["1::2::x::5"], "user=1,video=2,rating=3,time=4", r"line 1: column 3 is 'x', where it should be a rating"),
        (["1::2", "1::3::4"], "user=1,video=2", r"line 2: has 3 fields, where the first line has 2"),
        (["1,2"], "user=1,video=2,time=3", r"no column '3', which the mapping names as time; the first line has 2"),
        (["u,v", "1,2", "1,2,3"], "user=u,video=v", r"line 3: has 3 fields, where the first line has 2"),
        (["u,v,n", "1,2,1.5"], "user=u,video=v,order=n", r"line 2: n is '1.5', where it should be a whole number"),
        (["u,v,n", "1,2,-1"], "user=u,video=v,order=n", r"line 2: n is '-1'"),
        (["u,v,r", "1,2,0"], "user=u,video=v,rating=r", r"no r is above 0"),
        (["u,v,r", "1,2,6"], "user=u,video=v,rating=r,rating_max=5", r"line 2: r is '6', .* rating from 0 to 5"),
        (["u,v,t", "1,2,2020-13-01"], "user=u,video=v,time=t", r"line 2: t is '2020-13-01', .* ISO 8601"),
        (["u,v", ",2"], "user=u,video=v", r"line 2: u is ''"),
        (["u,v,n", "1,2,x", '3,4,"y', "5,6,z"], "user=u,video=v", r"line 3: a quote"),
        (["u,v,t"], "user=u,video=v,time=t", r"holds no rows"),
        (["u;v", "1;2"], "user=u,video=v,separator=comma", r"comma does not lead to .*separator=semicolon"),
        (["7"], "layout=sequences", r"line 1: holds a user and no video"),
        (["u,v", "1,[]"], "layout=sequences,user=u,video=v", r"line 2: v holds no video"),
        (["u;v;t", "1;2 3;4"], "layout=sequences,user=u,video=v,time=t", r"line 2: t holds 1 values, where v holds 2"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_log_is_named(
    tmp_path: Path, lines: list[str], mapping: str, message: str
) -> None:
    """File, line, column, value and what would be right are in one line."""
    path = text(tmp_path / "log", *lines)
    with pytest.raises(InputError, match=message) as raised:
        read(path, mapping)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_columns_of_parquet_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """Lists where one value should be, and one value where lists should be."""
    path = tmp_path / "log.parquet"
    pl.DataFrame({"u": [1], "v": [[2, 3]], "w": [4]}).write_parquet(path)
    with pytest.raises(InputError, match=r"column 'v' holds List.*layout=sequences"):
        read(path, "user=u,video=v")
    with pytest.raises(InputError, match=r"column 'w' holds Int64.*needs lists"):
        read(path, "user=u,video=w,layout=sequences")
    pl.DataFrame({"u": [1], "v": [2], "t": [None]}).write_parquet(path)
    with pytest.raises(InputError, match=r"row 1: t is '', where it should be"):
        read(path, "user=u,video=v,time=t")


def test_text_that_is_not_utf8_is_told_with_the_way_out(tmp_path: Path) -> None:
    """An old file in Latin-1 is refused by what to do with it."""
    path = tmp_path / "log.csv"
    path.write_bytes("u,v\ncafé,1\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8; convert it, such as by iconv"):
        read(path, "user=u,video=v")
