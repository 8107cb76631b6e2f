"""What the demo finds out of videos and users, and what it tells the training of them."""

from __future__ import annotations

import gzip
from pathlib import Path

from mtgr.datasets import read_events
from mtgr.datasets.attributes import read_attributes
from schemas.videos import Video
from stream.demo.knowledge import Knowledge, knowledge_of, simulated_knowledge


def _write_kuairand(folder: Path) -> None:
    with gzip.open(folder / "video_features_basic_pure.csv.gz", "wt") as videos:
        videos.write('video_id,author_id,tag,video_duration\n7,12,"39,4",1000.0\n8,13,unknown,\n')
    (folder / "video_features_statistic_pure.csv").write_text("video_id,show_cnt,tag\n7,12,1\n")
    (folder / "user_features_pure.csv").write_text("user_id,user_active_degree,follow_user_num\n3,high,5\n")


def test_a_folder_of_kuairand_tells_of_its_videos_and_users(tmp_path: Path) -> None:
    """The tables beside the logs become videos and profiles; any other folder or file tells nothing."""
    assert knowledge_of(tmp_path) == knowledge_of(tmp_path / "log.jsonl") == Knowledge()
    _write_kuairand(tmp_path)
    known = knowledge_of(tmp_path)
    assert known.videos == [
        Video(video_id="7", attributes={"author_id": 12.0, "tag": ["39", "4"], "video_duration": 1000.0}),
        Video(video_id="8", attributes={"author_id": 13.0, "tag": ["unknown"]}),
    ]
    (profile,) = known.profiles
    assert (profile.user_id, profile.timestamp_ms) == ("3", 0)
    assert profile.attributes == {"user_active_degree": "high", "follow_user_num": 5.0}


def test_the_training_is_told_what_there_is_and_no_more(tmp_path: Path) -> None:
    """Files that it reads back, the attributes that are in them, and places for the videos to come."""
    assert Knowledge().training_options(tmp_path, 0) == []
    assert Knowledge().training_options(tmp_path, 5) == ["--spare-items", "5"]
    _write_kuairand(tmp_path)
    known, new = knowledge_of(tmp_path).split({"7"})
    assert [video.video_id for video in new] == ["8"]
    options = known.training_options(tmp_path, len(new))
    told = dict(zip(options[::2], options[1::2], strict=True))
    assert list(read_events([told.pop("--events")])) == known.profiles
    assert read_attributes(told.pop("--videos")) == {"7": known.videos[0].attributes}
    assert told == {
        "--user-categories": "user_active_degree",
        "--video-categories": "author_id,tag",
        "--video-numbers": "video_duration",
        "--spare-items": "1",
    }


def test_simulated_videos_and_users_have_what_the_model_takes() -> None:
    """Every attribute that is named to the training is one that they have."""
    known = simulated_knowledge()
    for taken, attributes in (
        (known.of_videos, known.videos[0].attributes),
        (known.of_users, known.profiles[0].attributes),
    ):
        assert {*taken.categories, *taken.numbers} <= attributes.keys()
        assert taken.categories
