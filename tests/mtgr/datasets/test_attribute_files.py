"""Attributes of videos and users are read from whatever file holds them."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from mtgr.datasets import read_attributes
from mtgr.errors import InputError


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_numbers_texts_and_gaps_of_csv(tmp_path: Path) -> None:
    """A column of numbers is numbers, another texts, and an empty field is left out."""
    path = tmp_path / "videos.csv.gz"
    path.write_bytes(gzip.compress(b"video_id,author,seconds,tag\n7,ann,1.5,3\n8,,20,music\n"))
    assert read_attributes(path) == {
        "7": {"author": "ann", "seconds": 1.5, "tag": "3"},
        "8": {"seconds": 20.0, "tag": "music"},
    }


def test_what_a_number_would_lose_stays_text(tmp_path: Path) -> None:
    """Leading zeros and ids of more than 2^53 are told apart as texts only."""
    path = text(
        tmp_path / "users.csv", "user_id,zip,account\na,01072,9007199254740993\nb,55117,9007199254740992\n"
    )
    assert read_attributes(path) == {
        "a": {"zip": "01072", "account": "9007199254740993"},
        "b": {"zip": "55117", "account": "9007199254740992"},
    }


def test_movielens_without_a_header(tmp_path: Path) -> None:
    """Columns are numbered, and one of them is a list by what parts its values."""
    path = text(
        tmp_path / "movies.dat", "1::Toy Story (1995)::Animation|Comedy\n2::A, B, C, D (1995)::Drama\n"
    )
    assert read_attributes(path, "1", ["3"], {"3": "|"}) == {
        "1": {"3": ["Animation", "Comedy"]},
        "2": {"3": ["Drama"]},
    }


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    """Numbers, lists, booleans and times; nulls and what is not finite are left out."""
    path = tmp_path / "videos.parquet"
    pl.DataFrame(
        {
            "id": [1.0, 2.0],
            "n": [3, None],
            "x": [float("nan"), 0.5],
            "live": [True, None],
            "tags": [["a", None, "b"], []],
            "codes": [[1.0, 2.0], None],
            "since": [datetime(2020, 1, 2, 3, tzinfo=UTC), None],
            "big": [2**60, 1],
        }
    ).write_parquet(path)
    found = read_attributes(path)
    assert str(found["1"].pop("since")).startswith("2020-01-02 03:00:00")
    assert found == {
        "1": {"n": 3.0, "live": "true", "tags": ["a", "b"], "codes": ["1", "2"], "big": str(2**60)},
        "2": {"x": 0.5, "big": "1"},
    }


def test_json_lines_and_an_array_of_objects(tmp_path: Path) -> None:
    """One object is one id; members may differ from one to the next."""
    one = '{"video_id": 4, "tags": ["x", 5], "n": 1, "gone": null}'
    other = '{"video_id": "v", "live": true, "empty": [], "id": 12345678901234567890}'
    expected = {
        "4": {"tags": ["x", "5"], "n": 1.0},
        "v": {"live": "true", "id": "12345678901234567890"},
    }
    assert read_attributes(text(tmp_path / "a.jsonl", f"{one}\n\n{other}\n")) == expected
    assert read_attributes(text(tmp_path / "a.json", f"[{one},\n{other}]")) == expected
    assert read_attributes(text(tmp_path / "one.jsonl", one)) == {"4": expected["4"]}


def test_videos_as_on_the_wire(tmp_path: Path) -> None:
    """An `attributes` object holds the attributes, and what stands beside it is none."""
    path = text(
        tmp_path / "videos.jsonl",
        '{"video_id":"v","attributes":{"author":"a"},"timestamp_ms":5}\n{"video_id":"w","attributes":{}}\n',
    )
    assert read_attributes(path) == {"v": {"author": "a"}, "w": {}}


@pytest.mark.parametrize("space", ["", "\n "])
def test_an_object_of_ids(tmp_path: Path, space: str) -> None:
    """Values without a name are called attributes; named ones keep their names."""
    path = tmp_path / "items.json.gz"
    path.write_bytes(gzip.compress(f'{{{space}"4": [1, 2],{space} "83": [4]}}'.encode()))
    assert read_attributes(path) == {"4": {"attributes": ["1", "2"]}, "83": {"attributes": ["4"]}}
    named = text(tmp_path / "items.json", '{"4": {"author": "a", "n": 2}}')
    assert read_attributes(named) == {"4": {"author": "a", "n": 2.0}}


def test_columns_and_the_id_are_chosen(tmp_path: Path) -> None:
    """Only the chosen columns are kept, and only they are checked."""
    path = text(tmp_path / "a.csv", f"key,a,b,c\nx,1,2,{'long' * 100}\n")
    assert read_attributes(path, "b", ["a", "key"]) == {"2": {"a": 1.0, "key": "x"}}
    path = text(
        tmp_path / "a.jsonl", f'{{"key": "x", "a": 1, "c": "{"long" * 100}"}}\n{{"key": "y", "b": 2}}'
    )
    assert read_attributes(path, "key", ["a", "b"]) == {"x": {"a": 1.0}, "y": {"b": 2.0}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds nothing"),
        ("id,a\n", "holds no rows"),
        ("id,a\n,1\n", r"line 2: id is '', where it should be text"),
        ("id,a\nx,1\nx,2\n", r"line 3: id 'x' is there a second time, with other attributes"),
        (f"id,a\nx,{'y' * 129}\n", r"line 2: a has a text of 129 characters, .* at most 128"),
        ("id," + ",".join(f"c{n}" for n in range(65)) + "\nx\n", "has 65 columns beside id"),
        ("id,a\nx,1,2\n", r"line 2: has 3 fields, where the first line has 2"),
        ('{"id": "x"}\n{"id": ', r"line 2: no JSON object"),
        ('{"id": "x"}\n{"a": 1}\n{"id": [1]}', r"line 3: the id is \[1\]"),
        ('{"id": "x", "a": {"b": 1}}', r"line 1: a is an object, where it should be"),
        ('{"id": "x", "a": [[1]]}', r"line 1: a is a list of lists"),
        ('{"x": [' + ",".join("1" * 33) + "]}", r"id 'x': attributes has 33 values, .* at most 32"),
        ("[1]", "element 1: should be an object"),
        ("[{]", "is no JSON"),
        ("{}\n{}", "line 1: is empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    """File, line and column are in one line."""
    path = text(tmp_path / "file", content)
    with pytest.raises(InputError, match=message) as raised:
        read_attributes(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    """The id, an attribute and a list that no row has."""
    table = text(tmp_path / "a.csv", "video_id,author\nx,y\n")
    objects = text(tmp_path / "a.jsonl", '{"video_id": "x", "author": "y"}')
    for path in (table, objects):
        with pytest.raises(InputError, match=r"'video'.*did you mean video_id"):
            read_attributes(path, "video")
        with pytest.raises(InputError, match=r"'autor'.*did you mean author"):
            read_attributes(path, None, ["autor"])
        with pytest.raises(InputError, match=r"'tags'.*author"):
            read_attributes(path, lists={"tags": ","})
    with pytest.raises(InputError, match="there is no such file"):
        read_attributes(tmp_path / "none.csv")
