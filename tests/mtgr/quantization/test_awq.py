"""AWQ by calibration data: what a linear gives changes less, and what is folded into norms changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from histories import interactions
from quantized import WIDTHS, calibration_log
from serving import MODELS, random_checkpoint

from mtgr.checkpoint import open_checkpoint
from mtgr.errors import InputError
from mtgr.features import RowEncoder
from mtgr.model.jagged import Layout
from mtgr.quantization import run
from mtgr.quantization.awq import best_clip, best_scale, diagonal_blocks, output_error, rounded
from mtgr.quantization.calibration import Moments, input_moments
from mtgr.quantization.codes import group_codes, group_scales
from mtgr.quantization.run import calibration_histories, quantize_checkpoint
from mtgr.training.log import EventLog

GROUP = 32


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that has everything."""
    return random_checkpoint(tmp_path_factory.mktemp("source") / "model", **(MODELS["everything"] | WIDTHS))


def uneven_inputs(tokens: int = 500, width: int = 2 * GROUP) -> torch.Tensor:
    """Inputs of which a few are much larger than the others, as activations are."""
    torch.manual_seed(0)
    return torch.randn(tokens, width) * torch.logspace(-1, 1.5, width)[torch.randperm(width)]


def moments_of(x: torch.Tensor) -> Moments:
    return Moments(x.abs().sum(0), x.T @ x)


def test_errors_are_those_of_the_output() -> None:
    """Computed from second moments, they are what the outputs on the data differ by."""
    x, error = uneven_inputs(), torch.randn(8, 2 * GROUP)
    assert output_error(error, x.T @ x) == pytest.approx(float((x @ error.T).square().sum()), rel=1e-4)
    blocks = diagonal_blocks(x.T @ x, GROUP)
    assert torch.allclose(blocks[1], x[:, GROUP:].T @ x[:, GROUP:])


def test_scales_and_clips_make_the_output_change_less() -> None:
    """Each more than the step before, where some inputs are larger than others."""
    x = uneven_inputs()
    weight = torch.randn(48, x.shape[1])
    moments = moments_of(x)
    plain = output_error(rounded(weight, GROUP) - weight, moments.product)
    scale = best_scale(weight, moments, len(x), GROUP)
    scaled = output_error(rounded(weight * scale, GROUP) / scale - weight, moments.product)
    product = moments.product / torch.outer(scale, scale)
    clip = best_clip(weight * scale, diagonal_blocks(product, GROUP), GROUP)
    grouped = (weight * scale).view(len(weight), -1, GROUP)
    step, zero = group_scales(grouped, clip)
    clipped = ((group_codes(grouped, step, zero) - zero) * step).flatten(1) / scale
    assert scaled < 0.7 * plain
    assert output_error(clipped - weight, moments.product) < scaled


def test_moments_are_those_of_all_inputs(source: Path) -> None:
    """Whatever the batches, and block by block for the linear that no scale is searched for."""
    checkpoint = open_checkpoint(source)
    model = checkpoint.load_model()
    histories = calibration_histories(calibration_log(5, 40), checkpoint, 10_000, 0)
    moments = input_moments(model, checkpoint.catalog, histories, GROUP)
    assert moments.tokens == sum(1 + len(history) for history, _ in histories)
    inputs: dict[str, list[torch.Tensor]] = {"layers.1.out": [], "layers.1.mlp_down": []}
    for name, seen in inputs.items():
        model.get_submodule(name).register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
    encoder = RowEncoder(checkpoint.config, checkpoint.catalog)
    with torch.inference_mode():
        for history, profile in histories:
            encoded = encoder.encode_batch([history], [profile])
            model(torch.from_numpy(encoded.rows), Layout.of(np.asarray(encoded.lengths)))
    x = torch.cat(inputs["layers.1.out"])
    assert torch.allclose(moments.of["layers.1.out"].product, x.T @ x, rtol=1e-3, atol=1e-3)
    assert torch.allclose(moments.of["layers.1.out"].size, x.abs().sum(0), rtol=1e-4)
    x = torch.cat(inputs["layers.1.mlp_down"])
    assert torch.allclose(
        moments.of["layers.1.mlp_down"].product, diagonal_blocks(x.T @ x, GROUP), rtol=1e-3, atol=1e-3
    )


def test_what_is_folded_changes_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights kept whole, the scales in the norms and in the weights undo each other."""
    whole: dict[str, torch.Tensor] = {}

    def keep(name: str, weight: torch.Tensor, *_: Any) -> dict[str, torch.Tensor]:
        whole[f"{name}.weight"] = weight.float()
        return {}

    saved: dict[str, torch.Tensor] = {}
    monkeypatch.setattr("mtgr.quantization.awq.awq_tensors", keep)
    monkeypatch.setattr(run, "save_checkpoint", lambda *given: saved.update(given[4]))
    quantize_checkpoint(source, tmp_path / "out", "awq", calibration_log())
    checkpoint = open_checkpoint(source)
    model, folded = checkpoint.load_model(), checkpoint.load_model()
    folded.load_state_dict(saved | whole)
    changed = [
        name for name, tensor in model.state_dict().items() if not tensor.equal(folded.state_dict()[name])
    ]
    assert any(".norm_in." in name for name in changed)
    histories = calibration_histories(calibration_log(3), checkpoint, 200, 1)
    encoded = RowEncoder(checkpoint.config, checkpoint.catalog).encode_batch(
        [history for history, _ in histories], [profile for _, profile in histories]
    )
    rows, layout = torch.from_numpy(encoded.rows), Layout.of(encoded.lengths)
    with torch.inference_mode():
        assert torch.allclose(model(rows, layout), folded(rows, layout), atol=1e-4, rtol=1e-4)


def test_awq_wants_events(source: Path, tmp_path: Path) -> None:
    """Before anything is written; and a checkpoint is quantised once."""
    with pytest.raises(InputError, match="awq has no events to calibrate on"):
        quantize_checkpoint(source, tmp_path / "none", "awq", EventLog.collect([]))
    assert not (tmp_path / "none").exists()
    made = quantize_checkpoint(source, tmp_path / "int8", "int8")
    with pytest.raises(InputError, match="is quantised by int8 already"):
        quantize_checkpoint(made.directory, tmp_path / "twice", "int8")


def test_calibration_histories_are_as_a_daemon_holds_them(source: Path) -> None:
    """Drawn by the seed, up to so many tokens, and cut where they pass the model's capacity."""
    checkpoint = open_checkpoint(source)
    log = EventLog.collect([event for user in range(9) for event in interactions(user, 90, f"u{user}")])
    chosen = calibration_histories(log, checkpoint, 150, seed=3)
    assert sum(1 + len(history) for history, _ in chosen[:-1]) < 150
    assert all(len(history) <= checkpoint.config.capacity for history, _ in chosen)
    again = calibration_histories(log, checkpoint, 150, seed=3)
    assert [one.video_ids for one, _ in chosen] == [one.video_ids for one, _ in again]
