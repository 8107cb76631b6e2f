"""One quantisation of a checkpoint, from its directory to the other."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from mtgr.checkpoint import Checkpoint, check_target, open_checkpoint, save_checkpoint
from mtgr.errors import InputError
from mtgr.evaluation.served import held_history
from mtgr.history import History
from mtgr.model.layer import HSTULayer
from mtgr.quantization.awq import quantise_layer
from mtgr.quantization.calibration import input_moments
from mtgr.quantization.codes import int8_tensors
from mtgr.quantization.scheme import Method, Quantization, linear_shapes
from mtgr.training.log import EventLog

CALIBRATION_TOKENS: Final = 32_768
"""Events that the scales are searched on; more have changed no figure."""


def quantize_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    method: Method,
    log: EventLog | None = None,
    *,
    tokens: int = CALIBRATION_TOKENS,
    seed: int = 0,
    device: torch.device | None = None,
    on_layer: Callable[[int], None] = lambda done: None,
) -> Checkpoint:
    """Write the quantised checkpoint of another and return it; catalog, name and everything but linears stay.

    log: what awq is calibrated on, by histories drawn from it until they have so many tokens. Raises InputError if the
    checkpoint is wrong or quantised already, its widths do not fit the method, or awq has no events.
    """
    checkpoint = open_checkpoint(source)
    if checkpoint.quantization is not None:
        raise InputError(
            f"{checkpoint.directory}: is quantised by {checkpoint.quantization.method} already; name the checkpoint it "
            "was made of"
        )
    quantization = Quantization.of(method, checkpoint.config)
    check_target(Path(target))
    model = checkpoint.load_model()
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if method == "int8":
        for name in linear_shapes(checkpoint.config):
            state |= int8_tensors(name, state.pop(f"{name}.weight"))
    else:
        histories = calibration_histories(log, checkpoint, tokens, seed)
        model.to(device)
        moments = input_moments(model, checkpoint.catalog, histories, quantization.group_size)
        with torch.inference_mode():
            for index, layer in enumerate(model.layers):
                assert isinstance(layer, HSTULayer)
                changed = quantise_layer(layer, f"layers.{index}", moments, quantization.group_size)
                state |= {name: tensor.cpu() for name, tensor in changed.items()}
                on_layer(index + 1)
        for name in linear_shapes(checkpoint.config):
            del state[f"{name}.weight"]
    return save_checkpoint(
        target,
        checkpoint.name,
        checkpoint.config,
        checkpoint.catalog,
        state,
        quantization,
        checkpoint.learnt,
    )


def calibration_histories(
    log: EventLog | None, checkpoint: Checkpoint, tokens: int, seed: int
) -> list[tuple[History, Mapping[str, Any]]]:
    """Histories of a log, drawn until they have so many tokens, as a daemon would hold them, with their profiles.

    Raises InputError if there are none.
    """
    if log is None or not len(log):
        raise InputError("awq has no events to calibrate on: name an event log")
    users = sorted(log.histories)
    random.Random(seed).shuffle(users)
    chosen: list[tuple[History, Mapping[str, Any]]] = []
    left = tokens
    for user in users:
        history = held_history(log.histories[user], checkpoint.config)
        chosen.append((history, log.profiles.at(user, int(history.records["timestamp_ms"][-1]))))
        left -= 1 + len(history)
        if left <= 0:
            break
    return chosen
