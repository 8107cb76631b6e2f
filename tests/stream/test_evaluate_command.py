"""Promises of `mtgr-stream evaluate`: figures with their bounds, and one line where there can be none."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from checkpoints import ITEMS, MAX_EVENTS, tiny_checkpoint
from click.testing import CliRunner, Result
from events import watch
from serving import random_checkpoint

from mtgr.checkpoint import open_checkpoint
from mtgr.config import CategoricalAttribute
from mtgr.errors import InputError
from mtgr.evaluation.baselines import BaselineLists
from mtgr.evaluation.intervals import Interval
from mtgr.evaluation.protocol import Protocol, Split
from mtgr.evaluation.report import read_report
from schemas.codecs import JSON, encode_event
from stream.commands import evaluate

USERS = 40
EVENTS = 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights for the videos v0 to v299, of 32 events and up to 48."""
    return tiny_checkpoint(tmp_path_factory.mktemp("evaluate") / "checkpoint")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users with 20 events each, one of them with 80; the last target of one is in no catalog."""
    chance = random.Random(0)
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    with path.open("wb") as file:
        for number in range(USERS * EVENTS + 60):
            user = f"u{number % USERS if number < USERS * EVENTS else 0}"
            video = "elsewhere" if number == USERS * EVENTS - 1 else f"v{chance.randrange(ITEMS)}"
            event = watch(
                user,
                str(number),
                video,
                timestamp_ms=1000 * number,
                watch_seconds=20.0,
                watch_ratio=number % 3 / 2,
            )
            file.write(encode_event(event, JSON) + b"\n")
    return path


def _evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(
        evaluate.command,
        [str(argument) for argument in arguments],
        terminal_width=200,
        catch_exceptions=False,
    )


def test_a_checkpoint_is_judged_beside_popularity(checkpoint: Path, log: Path, tmp_path: Path) -> None:
    """Tables show every system with intervals, a miss for want of a catalog is told, and JSON holds the ranks."""
    out = tmp_path / "out.json"
    result = _evaluate("--checkpoint", checkpoint, "--events", log, "--json", out, "--k", 5, "--k", 50)
    assert result.exit_code == 0
    assert result.stderr == (
        f"1 of the {USERS} targets are not in the catalog of {checkpoint}, such as 'elsewhere': they count as misses\n"
    )
    for text in (
        "random (version ",
        "on 860 events of 40 users, 816 of them before the test; 300 videos ranked",
        "last new watched video of 40 users",
        "HR@5",
        "NDCG@50",
        "MRR@50",
        "coverage@50",
        "this model - most popular: HR@50 ",
    ):
        assert text in result.stdout

    report = read_report(out)
    assert [system.name for system in report.systems] == ["this model", "most popular"]
    assert (report.log.users, report.log.events, report.log.known_events) == (40, 860, 816)
    assert len(report.cases.user_ids) == len(report.systems[0].ranks) == USERS
    assert report.systems[0].ranks[report.cases.video_ids.index("elsewhere")] is None
    hits = sum(rank is not None and rank <= 50 for rank in report.systems[0].ranks)
    found = report.systems[0].slices["all"].metrics["HR@50"]
    assert found.value == pytest.approx(hits / USERS)
    assert f"{found.value:.4f}"[1:] in result.stdout
    opened = open_checkpoint(checkpoint)
    assert (report.model.name, report.model.version) == (opened.name, opened.version)


def test_the_same_seed_gives_the_same_figures(checkpoint: Path, log: Path, tmp_path: Path) -> None:
    """Bounds are drawn, and drawn alike; another seed moves them and not the value."""
    found: list[Interval] = []
    for seed in (1, 1, 2):
        _evaluate("--checkpoint", checkpoint, "--events", log, "--json", tmp_path / "out", "--seed", seed)
        found.append(read_report(tmp_path / "out").systems[0].slices["all"].metrics["MRR"])
    assert found[0] == found[1] != found[2]
    assert found[0].value == found[2].value


def test_a_time_split_tests_what_came_after_the_cut(checkpoint: Path, log: Path, tmp_path: Path) -> None:
    """The first long views after the cut are predicted, from frozen histories or from live ones."""
    cut = "1970-01-01T00:10"
    for histories, events in (("frozen", 15), ("live", 15)):
        result = _evaluate(
            *("--checkpoint", checkpoint, "--events", log, "--split", "time", "--cut", cut),
            *("--target", "long-view", "--histories", histories, "--json", tmp_path / "out"),
        )
        assert "first new long view of 40 users" in result.stdout
        report = read_report(tmp_path / "out")
        assert report.log.known_events == 600
        assert min(report.cases.history_events) == events
        assert min(report.cases.timestamps_ms) == 600_000


@pytest.fixture(scope="module")
def open_checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with room for one more video, that knows videos by their tag and users by their city."""
    return random_checkpoint(
        tmp_path_factory.mktemp("evaluate") / "open",
        max_events=MAX_EVENTS,
        n_items=ITEMS,
        spare_items=1,
        video_categories=(CategoricalAttribute("tag", 64, 2),),
        user_categories=(CategoricalAttribute("city", 8),),
        ranking=("watch_through", "like"),
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attributes of a known video, and of two new ones."""
    path = tmp_path_factory.mktemp("videos") / "videos.csv"
    path.write_text("video_id,tag\nv1,food\nelsewhere,food\nother,music\n")
    return path


def test_new_videos_join_the_catalog(
    open_checkpoint_dir: Path, log: Path, videos: Path, tmp_path: Path
) -> None:
    """A video that the model was not trained with is ranked by its attributes, as far as there is room."""
    result = _evaluate(
        *(
            "--checkpoint",
            open_checkpoint_dir,
            "--events",
            log,
            "--videos",
            videos,
            "--json",
            tmp_path / "out",
        )
    )
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        f"{videos}: new videos that join the catalog of {ITEMS}: 1; no place for 1 more (spare_items is 1)",
        "the ranking heads are judged by what users were shown after a moment: --split time",
    ]
    report = read_report(tmp_path / "out")
    assert (report.catalog, report.missing_targets) == (ITEMS + 1, 0)
    assert report.systems[0].ranks[report.cases.video_ids.index("elsewhere")] is not None


def test_lists_of_new_videos_are_split(open_checkpoint_dir: Path, log: Path, tmp_path: Path) -> None:
    """A cell of several texts is what it would be in a format that has lists."""
    ranks = []
    for name, text, more in (
        ("a.csv", "video_id,tag\nelsewhere,food;music\n", ("--video-list", "tag=semicolon")),
        ("a.jsonl", '{"video_id": "elsewhere", "tag": ["food", "music"]}\n', ()),
        ("b.csv", "video_id,tag\nelsewhere,food;music\n", ()),
    ):
        (tmp_path / name).write_text(text)
        arguments = ("--checkpoint", open_checkpoint_dir, "--events", log, "--videos", tmp_path / name, *more)
        assert _evaluate(*arguments, "--json", tmp_path / "out").exit_code == 0
        ranks.append(read_report(tmp_path / "out").systems[0].ranks)
    assert ranks[0] == ranks[1] != ranks[2]


def test_what_is_known_of_users_counts(open_checkpoint_dir: Path, log: Path, tmp_path: Path) -> None:
    """Attributes of users come from a file, and change the lists of those users alone."""
    users = tmp_path / "users.csv"
    users.write_text("user_id,city\nu3,Rome\n")
    ranks = []
    for more in ((), ("--users", users)):
        _evaluate("--checkpoint", open_checkpoint_dir, "--events", log, "--json", tmp_path / "out", *more)
        report = read_report(tmp_path / "out")
        ranks.append(dict(zip(report.cases.user_ids, report.systems[0].ranks, strict=True)))
    assert [user for user in ranks[0] if ranks[0][user] != ranks[1][user]] == ["u3"]


def test_ranking_heads_are_judged_by_what_was_shown(
    open_checkpoint_dir: Path, log: Path, tmp_path: Path
) -> None:
    """GAUC stands in a table of its own; a head whose outcome never came says so."""
    result = _evaluate(
        *("--checkpoint", open_checkpoint_dir, "--events", log, "--json", tmp_path / "out"),
        *("--split", "time", "--cut", "1970-01-01T00:10"),
    )
    assert result.exit_code == 0
    heads = read_report(tmp_path / "out").heads
    assert list(heads) == ["watch_through", "like"]
    assert heads["like"].gauc is None
    assert "like: no user has both outcomes" in result.stdout.splitlines()
    head = heads["watch_through"]
    assert head.gauc is not None
    assert 0 <= head.gauc.low <= head.gauc.value <= head.gauc.high <= 1
    assert head.impressions > head.users > 0
    assert "ranking head" in result.stdout
    assert f"watch_through  {head.gauc.value:.4f}".replace("0.", ".") in result.stdout


def test_baselines_stand_in_the_same_table(
    checkpoint: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is judged on the same users by its lists, and the model is compared with it."""
    asked: dict[str, Any] = {}

    def fit(split: Split, protocol: Protocol, models: Sequence[str], **options: Any) -> list[BaselineLists]:
        asked.update(options, models=models)
        lists = {case.user_id: list(dict.fromkeys((case.video_id, "v0", "v1"))) for case in split.test}
        return [BaselineLists(model, 0, 1.0, {}, "cpu", lists, {}) for model in models]

    monkeypatch.setattr("mtgr.evaluation.run.fit_baselines", fit)
    monkeypatch.setattr("mtgr.evaluation.run.check_environment", lambda: None)
    chosen = ("--baseline", "sasrec", "--baseline", "item-knn")
    result = _evaluate("--checkpoint", checkpoint, "--events", log, *chosen, "--json", tmp_path / "out")
    assert result.exit_code == 0
    report = read_report(tmp_path / "out")
    names = [system.name for system in report.systems]
    assert names == ["this model", "most popular", "RecTools sasrec", "RecTools item-knn"]
    assert report.systems[2].slices["all"].metrics["HR@5"].value == 1.0
    assert list(report.differences) == names[1:]
    assert "RecTools sasrec" in result.stdout
    assert asked == {"models": ("sasrec", "item-knn"), "k": 10, "seed": 0, "times": True, "on_event": ANY}


def test_without_their_environment_baselines_are_refused_at_once(
    checkpoint: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is ranked before it is told how to make it."""
    monkeypatch.setenv("MTGR_BASELINES", str(tmp_path))
    monkeypatch.setattr("mtgr.evaluation.run.rank_all", lambda *_, **__: pytest.fail("something was ranked"))
    with pytest.raises(InputError, match="`make baselines` makes it"):
        _evaluate("--checkpoint", checkpoint, "--events", log, "--baselines")


@pytest.mark.vllm
def test_lists_of_vllm_are_those_of_the_reference(
    open_checkpoint_dir: Path, log: Path, videos: Path, tmp_path: Path
) -> None:
    """Both make the same lists, also of a video that has joined, and for a user whose history a daemon has cut."""
    out = tmp_path / "out"
    result = _evaluate(
        *("--checkpoint", open_checkpoint_dir, "--events", log, "--videos", videos, "--lists", "both"),
        *("--json", out, "--k", 5, "--k", 200),
    )
    assert result.exit_code == 0, result.output
    assert "vLLM and reference: 0 of 40 lists differ" in result.stdout
    report = read_report(out)
    assert [system.name for system in report.systems] == ["this model", "this model on vLLM", "most popular"]
    ours, served, _ = report.systems
    assert served.ranks == [rank if rank is not None and rank <= 200 else None for rank in ours.ranks]
    assert list(report.differences) == ["most popular"]
    assert report.comparison is not None
    assert report.comparison.largest_score_difference < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split", "time"), "--split time needs --cut TIME"),
        (("--cut", "2022-05-06"), "--cut goes with --split time"),
        (("--split", "time", "--cut", "yesterday"), "'yesterday' is no ISO 8601 time"),
        (("--histories", "live"), "--histories goes with --split time"),
        (("--include-seen", "--lists", "both"), "--include-seen needs --lists reference"),
        (("--k", "0"), "Invalid value for '--k'"),
        (("--json", "nowhere/out.json"), "is no writable directory"),
    ],
)
def test_options_that_contradict_each_other_are_told(
    checkpoint: Path, log: Path, arguments: tuple[str, ...], message: str
) -> None:
    """What does not go together is refused before anything is read, with exit code 2."""
    result = _evaluate("--checkpoint", checkpoint, "--events", log, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint", "nowhere"), "nowhere: no such checkpoint directory"),
        (("--events", "nowhere.csv"), "nowhere.csv: there is no such file"),
        (("--videos", "nowhere.csv"), "nowhere.csv: there is no such file"),
        (
            ("--split", "time", "--cut", "2022-05-06"),
            "cut: 2022-05-06T00:00:00+00:00 is not within the log, which goes from 1970-01-01T00:00:00+00:00 to",
        ),
        (("--mapping", "usr=user_id"), "mapping: 'usr' is not a field"),
    ],
)
def test_bad_input_is_one_line(checkpoint: Path, log: Path, arguments: tuple[str, ...], message: str) -> None:
    """Files, splits and mappings that are wrong are named."""
    with pytest.raises(InputError) as caught:
        _evaluate("--checkpoint", checkpoint, "--events", log, *arguments)
    assert message in str(caught.value)


def test_a_log_of_one_user_and_a_log_of_nothing_new_are_told(checkpoint: Path, tmp_path: Path) -> None:
    """There is nothing to test, and the line says why."""
    path = tmp_path / "log.jsonl"
    lines = [encode_event(watch("u", str(n), f"v{n}"), JSON) for n in range(9)]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match="the event log has 1 user, where at least 2 are wanted"):
        _evaluate("--checkpoint", checkpoint, "--events", path)
    lines = [encode_event(watch(f"u{n % 2}", str(n), "v1"), JSON) for n in range(9)]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(
        InputError, match="the test part is empty: none of the 2 users has two new watched videos"
    ):
        _evaluate("--checkpoint", checkpoint, "--events", path)


def test_a_log_of_other_videos_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Zeros would look like a bad model: what the ids are like, and what they should be like, stands in one line."""
    path = tmp_path / "log.jsonl"
    lines = [encode_event(watch(f"u{n % 4}", str(n), f"item-{n}"), JSON) for n in range(20)]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError) as caught:
        _evaluate("--checkpoint", checkpoint, "--events", path)
    assert str(caught.value) == (
        f"none of the 4 targets is in the catalog of {checkpoint}: they are such as 'item-16', 'item-17', 'item-18', "
        "where its videos are such as 'v0', 'v1', 'v2'; name a log with the ids that it was trained with"
    )


def test_what_is_no_event_is_counted_where_it_may_be_skipped(
    checkpoint: Path, log: Path, tmp_path: Path
) -> None:
    """A bad line ends the evaluation, unless it is to be passed over."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(log.read_bytes() + b'{"type": "watch"}\n')
    with pytest.raises(InputError, match="861"):
        _evaluate("--checkpoint", checkpoint, "--events", path)
    result = _evaluate("--checkpoint", checkpoint, "--events", path, "--skip-invalid")
    assert result.exit_code == 0
    assert "skipped 1 records that are no events, the first: " in result.stderr
