"""What the tests of serving share. Modules that import vLLM are imported in tests: it takes ten seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import MODELS, random_checkpoint

from mtgr.checkpoint import Checkpoint, open_checkpoint
from mtgr.reference import ReferenceRecommender


@pytest.fixture(scope="session", autouse=True)
def _no_compiler() -> Iterator[None]:
    """An engine within this process would wait for the compiler as no engine process does."""
    with pytest.MonkeyPatch.context() as patch:
        if "TORCH_COMPILE_DISABLE" not in os.environ:
            patch.setenv("TORCH_COMPILE_DISABLE", "1")
        yield


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """A checkpoint of each of MODELS: two layers, 500 videos and sequences of up to 80 events."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        name: open_checkpoint(random_checkpoint(root / name, **changes)) for name, changes in MODELS.items()
    }


@pytest.fixture(scope="session")
def references(checkpoints: dict[str, Checkpoint]) -> dict[str, ReferenceRecommender]:
    """The plain torch generator of each, over a catalog of its own."""
    return {name: ReferenceRecommender(checkpoint.directory) for name, checkpoint in checkpoints.items()}


@pytest.fixture(scope="session")
def checkpoint(checkpoints: dict[str, Checkpoint]) -> Checkpoint:
    """The checkpoint that has nothing to it."""
    return checkpoints["plain"]


@pytest.fixture(scope="session")
def reference(references: dict[str, ReferenceRecommender]) -> ReferenceRecommender:
    """The plain torch generator of the same checkpoint."""
    return references["plain"]


@pytest.fixture(scope="session")
def damaged_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of which one byte of the weights has changed."""
    directory = random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "damaged")
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return directory
