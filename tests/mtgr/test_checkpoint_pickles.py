"""Nothing that could run code is ever read of a checkpoint."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest
import torch
from checkpoints import tiny_checkpoint

from mtgr.checkpoint import open_checkpoint
from mtgr.errors import InputError

ROOT = Path(__file__).parents[2]


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> object:
        return (Path.touch, (self._mark,))


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_in_the_weights_place_is_refused_unread(tmp_path: Path, legacy: bool) -> None:
    """A pickle, bare or as torch saves it, is no safetensors file, whatever its name, and is not run."""
    directory = tiny_checkpoint(tmp_path / "tiny")
    mark = tmp_path / "ran"
    weights = directory / "model.safetensors"
    if legacy:
        weights.write_bytes(pickle.dumps(Payload(mark)))
    else:
        torch.save({"weight": Payload(mark)}, weights)
    with pytest.raises(InputError, match=r"model\.safetensors: not a whole safetensors file"):
        open_checkpoint(directory)
    assert not mark.exists()
    with weights.open("rb") as file:  # the payload is a real one
        if legacy:
            pickle.load(file)
            assert mark.exists()


def test_pickles_beside_the_weights_are_let_be(tmp_path: Path) -> None:
    """Files that other loaders would take for weights are never opened."""
    directory = tiny_checkpoint(tmp_path / "tiny")
    mark = tmp_path / "ran"
    for name in ("pytorch_model.bin", "model.pt", "consolidated.pth", "model.pkl"):
        (directory / name).write_bytes(pickle.dumps(Payload(mark)))
    open_checkpoint(directory).load_model()
    assert not mark.exists()


def test_no_code_of_ours_reads_pickles() -> None:
    """No module imports pickle, calls torch.load, or lets numpy unpickle; vLLM is told to take safetensors only."""
    offenders = []
    for path in (
        path for package in ("schemas", "mtgr", "stream") for path in (ROOT / package).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names) if {name.name for name in names} & {"pickle", "dill", "joblib"}:
                    offenders.append((path, node.lineno))
                case ast.ImportFrom(module="pickle" | "joblib"):
                    offenders.append((path, node.lineno))
                case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
                    offenders.append((path, node.lineno))
                case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                    offenders.append((path, node.value.lineno))
    assert not offenders
    assert '"safetensors"' in (ROOT / "mtgr/serving/options.py").read_text()
