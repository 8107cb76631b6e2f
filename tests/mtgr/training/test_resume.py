"""Promises of a training that is stopped: resumed, it ends as if it had never been stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from training import CONFIG, QUICK, series

from mtgr.errors import InputError
from mtgr.evaluation.protocol import LeaveOneOut
from mtgr.training import loop
from mtgr.training.hooks import Hooks, TrainingStopped
from mtgr.training.metrics import EvaluationMetrics, StepMetrics, read_metrics
from mtgr.training.options import TrainingOptions
from mtgr.training.run import STATE_FILE, RunDirectory
from mtgr.training.trainer import Trained, TrainingInputs, train
from schemas.events import Event

OPTIONS: dict[str, Any] = {
    **QUICK,
    "batch_tokens": 100,
    "epochs": 4,
    "dropout": 0.1,
    "average_decay": 0.9,
    "weight_decay": 0.01,
    "conditioned_on": ["watch"],
    "cold_share": 0.2,
    "bare_share": 0.2,
}


def _train(hooks: Hooks, events: list[Event] | None = None, **options: Any) -> Trained:
    config = CONFIG.replace(spare_items=2, item_bias=True, ranking=["like"])
    return train(
        TrainingInputs(
            events=events or series(40),
            config=config,
            options=TrainingOptions(**{**OPTIONS, **options}),
            protocol=LeaveOneOut(),
        ),
        hooks,
    )


def _stopped_after(steps: int, run: RunDirectory, *, resume: bool = False, **options: Any) -> str:
    made = []
    hooks = Hooks(
        on_step=lambda progress: made.append(progress.step),
        stop=lambda: len(made) == steps,
        run=run,
        resume=resume,
    )
    with pytest.raises(TrainingStopped) as caught:
        _train(hooks, **options)
    return str(caught.value)


def test_a_training_that_is_stopped_and_resumed_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    """In the midst of an epoch, at an epoch's end, and again: weights, best evaluation and figures agree."""
    whole, parts = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "parts")
    expected = _train(Hooks(run=whole))
    assert expected.steps // 4 > 2
    message = _stopped_after(2, parts)
    assert message == f"stopped at step 2; --resume goes on from the state in {parts.path}"
    _stopped_after(expected.steps // 4 - 2, parts, resume=True)
    _stopped_after(4, parts, resume=True)
    found = _train(Hooks(run=parts, resume=True))
    assert found.steps == expected.steps
    assert found.best == expected.best
    assert (found.tokens, found.padded_tokens) == (expected.tokens, expected.padded_tokens)
    weights = expected.model.state_dict()
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    evaluations = [
        [(line.step, line.ndcg) for line in read_metrics(run.metrics) if isinstance(line, EvaluationMetrics)]
        for run in (whole, parts)
    ]
    assert evaluations[0] == evaluations[1]
    assert len(evaluations[0]) == 4
    assert {path.name for path in parts.path.iterdir()} == {"metrics.jsonl"}


def test_a_state_is_saved_now_and_then_and_lines_beyond_it_are_dropped(tmp_path: Path) -> None:
    """A run that is cut off goes on from its last save; figures of steps that are made again are not told twice."""
    run = RunDirectory(tmp_path)
    seen: list[int] = []

    def cut_off() -> bool:
        if len(seen) == 6:
            raise RuntimeError("power failure")
        return False

    hooks = Hooks(on_step=lambda progress: seen.append(progress.step), stop=cut_off, run=run)
    with pytest.raises(RuntimeError):
        _train(hooks, save_minutes=1e-9)
    assert (tmp_path / STATE_FILE).exists()
    assert len(list(tmp_path.glob("state-*.safetensors"))) == 1
    expected = _train(Hooks())
    with run.metrics.open("ab") as file:
        file.write(b'{"kind":"evaluation","step":99,"epoch":9,"seconds":1,"cases":1,"hit_rate":1,"ndcg":1}\n')
    found = _train(Hooks(run=run, resume=True))
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, expected.model.state_dict()[name])
    lines = list(read_metrics(run.metrics))
    assert [line.step for line in lines] == sorted(line.step for line in lines)
    assert lines[-1].step == expected.steps
    assert any(isinstance(line, StepMetrics) and line.ranking_loss is not None for line in lines)


def test_averaging_may_begin_when_a_training_is_resumed(tmp_path: Path) -> None:
    """Averages then start from the weights that were saved, not from those that a new model begins with."""
    run = RunDirectory(tmp_path)
    _stopped_after(5, run, average_decay=None)
    (state,) = tmp_path.glob("state-*.safetensors")
    saved = load_file(state)
    found: dict[str, torch.Tensor] = {}
    hooks = Hooks(keep=lambda config, catalog, weights: found.update(weights), run=run, resume=True)
    _train(hooks, average_decay=0.999, learning_rate=1e-12)
    weight = "layers.0.uvqk.weight"
    torch.testing.assert_close(found[weight], saved[f"model.{weight}"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditioned_on": []}, r'conditioned_on was \["watch"\] and is \[\]'),
        ({"conditioned_on": ["skip"]}, r'conditioned_on was \["watch"\] and is \["skip"\]'),
        ({"negatives": 63}, "negatives was 64 and is 63"),
        ({"dropout": 0.2}, r"dropout was 0\.1 and is 0\.2"),
        ({"weights": {"like": 2.0}}, r'weights was \{\} and is \{"like":2\.0\}'),
        ({"schedule": "cosine"}, "schedule was linear and is cosine"),
    ],
)
def test_what_is_learnt_must_be_as_it_was(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The option that differs is named, with both its values and the options that may change."""
    run = RunDirectory(tmp_path)
    _stopped_after(1, run)
    with pytest.raises(InputError, match=rf"another training: the option {message}; epochs, "):
        _train(Hooks(run=run, resume=True), **changes)


def test_how_long_and_how_fast_it_goes_on_may_change(tmp_path: Path) -> None:
    """Fewer epochs, another rate, no average and no patience are what the rest of a training then has."""
    run = RunDirectory(tmp_path)
    _stopped_after(2, run)
    changes: dict[str, Any] = {
        "epochs": 2,
        "learning_rate": 1e-4,
        "average_decay": None,
        "patience": None,
        "max_seconds": 1e6,
    }
    trained = _train(Hooks(run=run, resume=True), **changes, evaluate_every=2, save_minutes=1.0)
    assert (trained.epochs, trained.ending) == (2, "epochs")


def test_a_resumed_training_that_diverges_names_what_was_kept_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint that a validation has kept is still the last good one after the training was stopped."""
    run = RunDirectory(tmp_path)
    made: list[int] = []
    hooks = Hooks(
        on_step=lambda progress: made.append(progress.step),
        stop=lambda: len(made) == 20,
        keep=lambda *_: "somewhere",
        run=run,
    )
    with pytest.raises(TrainingStopped):
        _train(hooks)
    evaluations = [line.step for line in read_metrics(run.metrics) if isinstance(line, EvaluationMetrics)]
    monkeypatch.setattr(loop, "learning_rate", lambda *_: 1e30)
    with pytest.raises(InputError, match=r"good checkpoint, of step ([0-9]+), is kept in somewhere") as told:
        _train(Hooks(run=run, resume=True))
    assert any(f"of step {step}, is kept" in str(told.value) for step in evaluations)


def test_other_events_are_another_training(tmp_path: Path) -> None:
    """Also where they differ in nothing but the names of the videos."""
    run = RunDirectory(tmp_path)
    _stopped_after(1, run)
    renamed = [msgspec.structs.replace(event, video_id=f"w{event.video_id}") for event in series(40)]
    with pytest.raises(InputError, match="events, attributes, split and model config must be as they were"):
        _train(Hooks(run=run, resume=True), renamed)


def test_what_cannot_be_resumed_is_told(tmp_path: Path) -> None:
    """No state, another training's, or a damaged one: one line that names the file."""
    run = RunDirectory(tmp_path)
    with pytest.raises(InputError, match=r"state\.json: there is none, so there is nothing to resume"):
        _train(Hooks(run=run, resume=True))
    _stopped_after(1, run)
    with pytest.raises(InputError, match=r"state\.json: is the state of another training"):
        _train(Hooks(run=run, resume=True), series(41))
    with pytest.raises(InputError, match=r"state\.json: is the state of another training"):
        _train(Hooks(run=run, resume=True), seed=1)
    (tensors,) = tmp_path.glob("state-*.safetensors")
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"state-1\.safetensors: cannot be read"):
        _train(Hooks(run=run, resume=True))
    (tmp_path / STATE_FILE).write_bytes(b'{"step": "one"}')
    with pytest.raises(InputError, match=r"state\.json: is no training state"):
        _train(Hooks(run=run, resume=True))
