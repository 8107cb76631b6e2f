"""vLLM's own quantised linears serve what the reference computes with the weights that the codes stand for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from histories import interactions, scattered
from quantized import WIDTHS, calibration_log
from serving import MODELS, list_request, random_checkpoint

from mtgr.checkpoint import Checkpoint, open_checkpoint
from mtgr.quantization.run import quantize_checkpoint
from mtgr.quantization.scheme import Method
from mtgr.reference import ReferenceRecommender
from mtgr.requests import ListOutcome, ListRequest, ListResult
from mtgr.serving.environment import prepare_vllm
from mtgr.serving.options import EngineOptions, engine_arguments
from mtgr.serving.prompts import PromptBuilder

pytestmark = pytest.mark.vllm


@contextmanager
def served(checkpoint: Checkpoint, **changes: Any) -> Iterator[Any]:
    """A function that makes lists on a vLLM engine within this process."""
    options = EngineOptions(checkpoint=checkpoint.directory, kv_cache_gib=0.05, scheduling="vllm", **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        prepare_vllm()
        from vllm import LLM

        llm = LLM(**engine_arguments(options, checkpoint))
    builder = PromptBuilder(checkpoint)

    def recommend(requests: list[ListRequest]) -> list[ListOutcome]:
        prompts, _ = builder.build(requests)
        outputs = llm.generate([p.rows for p in prompts], [p.params for p in prompts], use_tqdm=False)
        return [builder.read(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]

    yield recommend
    llm.llm_engine.engine_core.shutdown()


def requests_of_users() -> list[ListRequest]:
    """Histories from one event to the model's capacity."""
    return [
        list_request(scattered(interactions(100 + place, length, f"u{place}"), random.Random(place)))
        for place, length in enumerate((1, 80, 16, 40))
    ]


@pytest.mark.parametrize(
    ("method", "dtype", "shared", "worst"), [("int8", "float32", 9, 0.1), ("awq", "bfloat16", 7, 0.3)]
)
def test_the_engine_serves_a_quantised_checkpoint(
    tmp_path: Path, method: Method, dtype: str, shared: int, worst: float
) -> None:
    """As far as the rounding of activations allows, to 8 bits with int8 and to the digits of its type with awq."""
    source = random_checkpoint(tmp_path / "source", **(MODELS["everything"] | WIDTHS))
    quantized = quantize_checkpoint(source, tmp_path / method, method, calibration_log())
    requests = requests_of_users()
    wanted = ReferenceRecommender(quantized).recommend(requests)
    with served(quantized, dtype=dtype) as recommend:
        for ours, theirs in zip(recommend(requests), wanted, strict=True):
            assert isinstance(ours, ListResult)
            assert isinstance(theirs, ListResult)
            assert len(set(ours.video_ids) & set(theirs.video_ids)) >= shared
            assert max(abs(a - b) for a, b in zip(ours.scores, theirs.scores, strict=True)) < worst


def test_the_engine_quantises_to_fp8_as_it_loads(tmp_path: Path) -> None:
    """Any checkpoint, by the layers' own loading, to nearly the same lists."""
    source = open_checkpoint(random_checkpoint(tmp_path / "source", **(MODELS["everything"] | WIDTHS)))
    requests = requests_of_users()
    with served(source, dtype="bfloat16", quantization="fp8_per_channel") as recommend:
        outcomes = recommend(requests)
    for ours, theirs in zip(outcomes, ReferenceRecommender(source).recommend(requests), strict=True):
        assert isinstance(ours, ListResult)
        assert isinstance(theirs, ListResult)
        assert len(set(ours.video_ids) & set(theirs.video_ids)) >= 7
        assert max(abs(a - b) for a, b in zip(ours.scores, theirs.scores, strict=True)) < 0.3
