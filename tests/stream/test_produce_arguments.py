"""Arguments that cannot be meant are refused before anything is sent."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from mtgr.errors import InputError
from stream.cli import cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "5", "--log-speed"], "exclude each other"),
        (["--speedup", "5"], "--speedup is for --log-speed"),
        (["--rate", "nan"], "nan is not a finite number"),
        (["--log-speed", "--speedup", "inf"], "inf is not a finite number"),
        (["--mapping", "user=u"], "video must be given"),
        (["-"], "standard input"),
    ],
)
def test_wrong_arguments_name_themselves(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Paces that exclude each other, half a mapping, standard input beside a file."""
    log = tmp_path / "log.jsonl"
    log.write_text('{"type":"like","event_id":"e","user_id":"u","video_id":"v","timestamp_ms":1}\n')
    with pytest.raises((click.UsageError, InputError), match=message):
        cli.main(["produce", str(log), *arguments], standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name logs of events, or videos by --videos"),
        (
            ["--videos", "videos.csv"],
            "--videos needs a topic to send them to, such as --set topics.videos=videos",
        ),
    ],
)
def test_what_is_missing_is_told(arguments: list[str], message: str) -> None:
    """Neither events nor videos, and videos without a topic."""
    with pytest.raises(click.UsageError, match=message):
        cli.main(["produce", *arguments], standalone_mode=False)


@pytest.mark.parametrize("with_log", [True, False])
def test_a_wrong_file_of_videos_is_told_before_kafka_is_waited_for(tmp_path: Path, with_log: bool) -> None:
    """A mistyped path of videos, and a mistyped log beside them: nothing is sent of either."""
    log, videos = tmp_path / "log.jsonl", tmp_path / "videos.csv"
    log.write_text('{"type":"like","event_id":"e","user_id":"u","video_id":"v","timestamp_ms":1}\n')
    videos.write_text("video_id,tag\nv,cats\n")
    (log if with_log else videos).unlink()
    nobody = ["kafka.bootstrap_servers=127.0.0.1:1", "kafka.connect_timeout_seconds=0.1", "topics.videos=v"]
    options = [word for each in nobody for word in ("--set", each)]
    with pytest.raises(InputError, match="there is no such file"):
        cli.main(["produce", str(log), "--videos", str(videos), *options], standalone_mode=False)


@pytest.mark.parametrize(("content", "message"), [(None, "there is no such file"), ("", "holds nothing")])
def test_a_wrong_file_is_told_before_kafka_is_waited_for(
    tmp_path: Path, content: str | None, message: str
) -> None:
    """A mistyped path is not kept from the user until a broker has answered, or not answered, for a minute."""
    log = tmp_path / "log.csv"
    if content is not None:
        log.write_text(content)
    nobody = ["--set", "kafka.bootstrap_servers=127.0.0.1:1", "--set", "kafka.connect_timeout_seconds=0.1"]
    with pytest.raises(InputError, match=message):
        cli.main(["produce", str(log), *nobody], standalone_mode=False)
