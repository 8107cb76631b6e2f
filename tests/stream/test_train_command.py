"""Promises of `mtgr-stream train` and `mtgr-stream models`: a log in, a checkpoint out, and one line where not."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from events import watch

from mtgr import presets
from mtgr.checkpoint import open_checkpoint
from mtgr.datasets import read_events
from mtgr.errors import InputError
from mtgr.model.mtgr import parameter_counts
from mtgr.presets import PRESETS
from mtgr.training import trainer
from mtgr.training.hooks import Hooks, Progress
from mtgr.training.metrics import read_metrics
from mtgr.training.options import TrainingOptions
from mtgr.training.trainer import Trained, TrainingInputs
from mtgr.training.validation import Accuracy
from schemas.codecs import JSON, encode_event
from schemas.events import Event
from stream.commands import evaluate, models, train
from stream.settings import KafkaSettings
from stream.tools import training_inputs
from stream.tools.training_progress import TrainingBar


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A small event log as JSON lines."""
    chance = random.Random(0)
    path = tmp_path / "log.jsonl"
    with path.open("wb") as file:
        for number in range(600):
            event = watch(
                f"u{number % 30}", str(number), video_id=f"v{chance.randrange(50)}", timestamp_ms=number
            )
            file.write(encode_event(event, JSON) + b"\n")
    return path


def _train(*arguments: object) -> Result:
    return CliRunner().invoke(train.command, [str(argument) for argument in arguments], terminal_width=200)


def test_a_log_becomes_a_checkpoint(log: Path, tmp_path: Path) -> None:
    """The command trains, prints accuracy beside the baseline, and names the checkpoint that then loads."""
    out = tmp_path / "out"
    result = _train("--events", log, "--out", out, "--epochs", 2, "--name", "demo", "--device", "cpu")
    assert result.exit_code == 0, result.output
    checkpoint = open_checkpoint(out)
    assert checkpoint.name == "demo"
    assert checkpoint.config == PRESETS["tiny"].replace(n_items=50)
    checkpoint.load_model()
    assert "of 600 events of 30 users and 50 videos: 2.0 epochs" in result.stdout
    for line in (
        "next new video of 30 users (validation)",
        "HR@10",
        "NDCG@10",
        "this model",
        "known to most",
    ):
        assert line in result.stdout
    assert f"{out} (demo, version {checkpoint.version})" in result.stdout
    assert "times as many" in result.stdout
    assert f"curves: mtgr-stream plot {out}.training" in result.stdout
    assert list(read_metrics(tmp_path / "out.training" / "metrics.jsonl"))
    assert "100%" in result.stderr
    assert "tokens/s" in result.stderr


@pytest.mark.parametrize(("popularity", "told"), [(0.0, 0), (1.0, 1)])
def test_a_model_no_better_than_popularity_is_told(
    popularity: float, told: int, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line on standard error, with what would help; the checkpoint is written all the same."""

    def beside(inputs: TrainingInputs, hooks: Hooks) -> Trained:
        accuracy = Accuracy(30, 0.5, 0.4)
        return replace(
            trainer.train(inputs, hooks), accuracy=accuracy, popularity=Accuracy(30, popularity, popularity)
        )

    monkeypatch.setattr(train, "train", beside)
    result = _train("--events", log, "--out", tmp_path / "out", "--epochs", 1)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if "no better than what is known to most" in line]
    assert len(lines) == told
    assert all("more --epochs would help" in line for line in lines)
    open_checkpoint(tmp_path / "out")


def test_several_logs_are_one(log: Path, tmp_path: Path) -> None:
    """Files may follow --events or come each with its own, as shells expand them; duplicates change nothing."""
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(log.read_bytes())
    for arguments in (("--events", log, copy), ("--events", log, "--events", copy)):
        result = _train(*arguments, "--out", tmp_path / "out", "--epochs", 1)
        assert "of 600 events of 30 users" in result.stdout, result.output


def test_what_is_no_event_is_told_or_counted(log: Path, tmp_path: Path) -> None:
    """A bad line stops training unless it is to be skipped; then it is counted and the first is shown."""
    with log.open("ab") as file:
        file.write(b'{"type": "watch"}\n')
    out = tmp_path / "out"
    with pytest.raises(InputError, match="601"):
        CliRunner().invoke(train.command, ["--events", str(log), "--out", str(out)], catch_exceptions=False)
    assert not list(tmp_path.glob("out*"))
    result = _train("--events", log, "--out", out, "--epochs", 1, "--skip-invalid")
    assert result.exit_code == 0
    assert "skipped 1 records that are no events, the first: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "tinny"), "unknown preset 'tinny'; did you mean tiny"),
        (("--events", "nowhere.csv"), "nowhere.csv: there is no such file"),
        (("--out", "."), "which is no part of a checkpoint"),
    ],
)
def test_a_wrong_argument_is_told_before_the_work(
    log: Path, arguments: tuple[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preset, files and target are checked before a long training, not after it."""
    monkeypatch.chdir(log.parent)
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("training began"))
    with pytest.raises(InputError) as caught:
        CliRunner().invoke(
            train.command, ["--events", str(log), "--out", "out", *arguments], catch_exceptions=False
        )
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--lr", "0"),
        ("--lr", "nan"),
        ("--batch-tokens", "0"),
        ("--max-seconds", "0"),
        ("--max-seconds", "nan"),
        ("--max-seconds", "inf"),
    ],
)
def test_an_option_out_of_bounds_is_a_usage_error(log: Path, option: str, value: str) -> None:
    """Zero of anything, and what is no number, is refused by the option's own name."""
    result = _train("--events", log, "--out", log.parent / "out", option, value)
    assert result.exit_code == 2
    assert option in result.stderr


def test_the_last_checkpoint_stays_where_training_diverges(log: Path, tmp_path: Path) -> None:
    """What was there before is kept whole, and the error says what went wrong."""
    out = tmp_path / "out"
    assert _train("--events", log, "--out", out, "--epochs", 1).exit_code == 0
    version = open_checkpoint(out).version
    with pytest.raises(InputError, match=r"training diverged: .* with learning rate 1e"):
        CliRunner().invoke(
            train.command,
            ["--events", str(log), "--out", str(out), "--lr", "1e30", "--option", "batch_tokens=100"],
            catch_exceptions=False,
        )
    assert open_checkpoint(out).version == version


def test_attributes_and_overrides_shape_the_model(log: Path, tmp_path: Path) -> None:
    """Attributes named by flags become part of the config, sized by what is there; --set changes any field, and
    videos that nobody watched are in the catalog.
    """
    videos = tmp_path / "videos.csv"
    rows = [f"v{number},{'ab'[number % 2]},{number}" for number in range(60)]
    videos.write_text("\n".join(["video_id,author,seconds", *rows]) + "\n")
    users = tmp_path / "users.jsonl"
    users.write_text("".join(f'{{"user_id": "u{number}", "country": "se"}}\n' for number in range(30)))
    out = tmp_path / "out"
    result = _train(
        "--events", log, "--out", out, "--epochs", 1, "--spare-items", 7, "--set", "n_layers=1",
        "--set", 'ranking=["like"]', "--set", "mask=mixed", "--videos", videos, "--video-categories", "author",
        "--video-numbers", "seconds", "--users", users, "--user-categories", "country",
        "--weight", "like=2", "--weight", "skip=0.5", "--half-life-days", 3, "--negatives", "all",
        "--condition-on", "skip", "--condition-on", "watch",
        "--average-decay", 0.9, "--option", "schedule=cosine",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    config = open_checkpoint(out).config
    assert (config.n_items, config.spare_items, config.n_layers, config.mask) == (60, 7, 1, "mixed")
    assert config.ranking == ("like",)
    assert [(one.name, one.size) for one in config.video_categories] == [("author", 64)]
    assert [(one.name, one.mean) for one in config.video_numbers] == [("seconds", 29.5)]
    assert [(one.name, one.size) for one in config.user_categories] == [("country", 32)]
    open_checkpoint(out).load_model()


def test_a_column_of_lists_is_learnt_as_lists(tmp_path: Path) -> None:
    """A cell such as Action|Comedy is two texts, each with an embedding of its own: users who keep to one genre are
    then told from those who keep to another, by videos of which each has two.
    """
    chance = random.Random(0)
    genres = {f"v{number}": sorted({number % 4, 4 + number % 3}) for number in range(60)}
    videos = tmp_path / "movies.csv"
    rows = [f"{video},{'|'.join(f'genre {one}' for one in found)}" for video, found in genres.items()]
    videos.write_text("\n".join(["video_id,genres", *rows]) + "\n")
    log = tmp_path / "log.jsonl"
    with log.open("wb") as file:
        for user in range(60):
            liked = [video for video in genres if user % 4 in genres[video]]
            for place, video in enumerate(chance.sample(liked, 12)):
                event = watch(f"u{user}", f"{user}-{place}", video_id=video, timestamp_ms=60 * place + user)
                file.write(encode_event(event, JSON) + b"\n")
    out = tmp_path / "out"
    result = _train(
        "--events", log, "--out", out, "--videos", videos, "--video-list", "genres=pipe",
        "--video-categories", "genres", "--epochs", 6, "--negatives", "all", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (genre,) = open_checkpoint(out).config.video_categories
    assert (genre.name, genre.size, genre.values) == ("genres", 128, 2)
    ours, theirs = (
        float(line.split()[-2]) for line in result.stdout.splitlines() if line.startswith(("this", "known"))
    )
    assert ours > 2 * theirs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--video-list", "genre=pipe"),
            "movies.csv: there is no attribute 'genre' to be read as a list; did you mean g",
        ),
        (("--user-list", "city=pipe"), "--user-list needs --users FILE"),
        (("--video-list", "genres"), "'genres' is not COLUMN=SEPARATOR, such as genres=pipe"),
        (("--video-list", "genres=|", "--video-list", "genres=comma"), "'genres' is given twice"),
    ],
)
def test_lists_that_are_none_are_told(log: Path, arguments: tuple[str, ...], message: str) -> None:
    """A column that is not there, a file that is not named, and what has no separator."""
    videos = log.parent / "movies.csv"
    videos.write_text("video_id,genres\nv1,Action|Comedy\n")
    result = _train("--events", log, "--out", log.parent / "out", "--videos", videos, *arguments)
    assert result.exit_code
    assert message in (str(result.exception) if isinstance(result.exception, InputError) else result.stderr)


def test_the_split_and_the_part_are_chosen(log: Path, tmp_path: Path) -> None:
    """By time, or nothing held out; the validation part learnt too, or not."""
    out = tmp_path / "out"
    cut = ("--split", "time", "--cut", "1970-01-01T00:00:00.500", "--option", "epochs=1")
    result = _train("--events", log, "--out", out, *cut, "--part", "known")
    assert "(test)" in result.stdout, result.output
    assert "trained on 500 of 600 events" in result.stdout
    days = ("--validation-days", 100 / 86_400_000)
    result = _train("--events", log, "--out", out, *cut, *days)
    assert "(validation)" in result.stdout, result.output
    assert "trained on 400 of 600 events" in result.stdout
    result = _train("--events", log, "--out", out, "--split", "none", "--epochs", 1)
    assert "trained on 600 of 600 events" in result.stdout
    assert "HR@10" not in result.stdout


def test_a_test_on_what_was_learnt_is_told(log: Path, tmp_path: Path) -> None:
    """The checkpoint keeps how its log was split, and evaluate warns where its own split tests what was learnt."""
    out = tmp_path / "out"

    def warnings(*split: object) -> str:
        arguments = map(str, ("--checkpoint", out, "--events", log, *split))
        return CliRunner().invoke(evaluate.command, list(arguments), catch_exceptions=False).stderr

    _train("--events", log, "--out", out, "--split", "none", "--epochs", 1)
    assert "30 of the 30 targets are no later than what" in warnings()
    assert "was trained on (--split none --target watch)" in warnings()
    _train("--events", log, "--out", out, "--epochs", 1)
    assert warnings() == ""
    assert "--split leave-one-out" in warnings("--include-seen")
    cut = ("--split", "time", "--cut", "1970-01-01T00:00:00.500")
    assert "no later than what" in warnings(*cut)
    _train("--events", log, "--out", out, *cut, "--part", "known", "--epochs", 1, "--validation-days", 1e-6)
    assert warnings(*cut) == ""
    found = open_checkpoint(out).learnt
    assert found is not None
    assert (found.split, found.cut_ms, found.part, found.last_ms) == ("time", 500, "known", 599)


def test_ctrl_c_saves_and_resume_goes_on(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first Ctrl-C ends with exit code 130 after the step and names the state; the resumed run ends the same
    as one that was left alone.
    """
    arguments = ("--events", log, "--epochs", 3, "--batch-tokens", 200)
    assert _train(*arguments, "--out", tmp_path / "whole").exit_code == 0
    show = TrainingBar.show

    def interrupted(bar: TrainingBar, progress: Progress) -> None:
        if progress.step == 4:
            signal.raise_signal(signal.SIGINT)
        show(bar, progress)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingBar, "show", interrupted)
        result = _train(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert f"stopped at step 4; --resume goes on from the state in {tmp_path}/out.training" in result.stderr
    assert signal.getsignal(signal.SIGINT) == before
    result = _train(*arguments, "--out", tmp_path / "out", "--resume")
    assert result.exit_code == 0, result.output
    assert (
        open_checkpoint(tmp_path / "out").weights_digest == open_checkpoint(tmp_path / "whole").weights_digest
    )


def test_a_training_is_not_resumed_as_another_one(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A condition that joins or leaves is named in one line, by its option and both values."""

    def interrupted(bar: TrainingBar, progress: Progress) -> None:
        signal.raise_signal(signal.SIGINT)

    arguments = ["--events", str(log), "--out", str(tmp_path / "out"), "--epochs", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingBar, "show", interrupted)
        assert _train(*arguments).exit_code == 130
    with pytest.raises(
        InputError, match=r'the option conditioned_on was \[\] and is \["skip"\]; epochs, '
    ) as told:
        CliRunner().invoke(
            train.command, [*arguments, "--resume", "--condition-on", "skip"], catch_exceptions=False
        )
    assert "\n" not in str(told.value)
    result = _train(*arguments, "--resume", "--lr", 0.001, "--max-seconds", 600)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "n_layer=2"), "--set: unknown key 'n_layer'; did you mean n_layers"),
        (
            ("--set", "n_layers=0"),
            "--set: n_layers is 0, where a whole number of at least 1 and at most 512 is wanted",
        ),
        (
            ("--set", "ranking=like"),
            "--set: ranking is 'like', where a list such as [\"like\"] (of like, sha",
        ),
        (("--option", "epoch=2"), "--option: unknown key 'epoch'; did you mean epochs"),
        (
            ("--option", "average_decay=1"),
            "average_decay is 1, where a number above 0 and below 1 or null is wanted",
        ),
        (
            ("--option", "precision=float16"),
            "precision is 'float16', where one of auto, bfloat16, float32 is wanted",
        ),
        (("--split", "time", "--cut", "2030-01-01"), "cut: 2030-01-01T00:00:00+00:00 is not within the log"),
        (("--resume",), "nothing to resume"),
        (("--user-categories", "country"), "the profiles of the events: nothing has an attribute 'country'"),
    ],
)
def test_bad_input_is_one_line(log: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """Of config, options, split and attributes: what is wrong and what would be right."""
    with pytest.raises(InputError) as caught:
        CliRunner().invoke(
            train.command,
            ["--events", str(log), "--out", str(tmp_path / "out"), *arguments],
            catch_exceptions=False,
        )
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split", "time"), "--split time needs --cut TIME"),
        (("--cut", "2022-05-06"), "--cut and --validation-days go with --split time"),
        (("--split", "time", "--cut", "noon"), "'noon' is no ISO 8601 time"),
        (("--weight", "dislike=2"), "'dislike' is none of skip, watch"),
        (("--weight", "like"), "--weight"),
        (("--negatives", "some"), "--negatives"),
        (("--average-decay", "1"), "'--average-decay': 1.0 is not in the range 0<x<1"),
        (("--set", "n_layers"), "'n_layers' is not KEY=VALUE"),
        (("--set", "n_items=5"), "it follows from the events"),
        (("--topic", "user-events"), "name event logs by --events FILE, or one topic"),
        (("--video-numbers", "seconds"), "need --videos FILE"),
        (("--bootstrap-servers", "localhost:9092"), "go with --topic"),
    ],
)
def test_a_wrong_combination_is_a_usage_error(
    log: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Exit code 2 and the option's name, before any event is read."""
    result = _train("--events", log, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_preset_brings_its_own_way_of_training(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe stands above the defaults and below the flags."""
    monkeypatch.setattr(presets, "RECIPES", {"tiny": TrainingOptions(epochs=3, part="known", seed=9)})
    seen: list[TrainingOptions] = []

    def caught(inputs: TrainingInputs, hooks: object) -> None:
        seen.append(inputs.options)
        raise InputError("enough")

    monkeypatch.setattr(train, "train", caught)
    flags = ("--seed", 1, "--option", "schedule=cosine", "--average-decay", 0.5)
    _train("--events", log, "--out", tmp_path / "out", *flags)
    assert seen == [TrainingOptions(epochs=3, part="known", seed=1, schedule="cosine", average_decay=0.5)]


def test_a_topic_is_a_log_too(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The events of a topic are learnt as those of a file are, from the brokers that are named."""
    asked: list[tuple[str, str]] = []

    def topic(kafka: KafkaSettings, name: str, on_invalid: object) -> Iterator[Event]:
        asked.append((kafka.bootstrap_servers, name))
        return read_events([log])

    monkeypatch.setattr(training_inputs, "read_topic", topic)
    result = _train(
        "--topic", "user-events", "--bootstrap-servers", "broker:9092", "--out", tmp_path / "out", "--epochs", 1
    )  # fmt: skip
    assert "of 600 events of 30 users" in result.stdout, result.output
    assert asked == [("broker:9092", "user-events")]


def test_every_preset_is_listed_with_its_true_size() -> None:
    """The table has a line for each preset, with the parameters counted on the model."""
    lines = CliRunner().invoke(models.command).stdout.splitlines()
    for name, config in PRESETS.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert f" {parameter_counts(config)[0]:,} " in line
