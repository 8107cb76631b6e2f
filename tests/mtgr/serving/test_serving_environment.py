"""What vLLM reads from the environment: what the user has set stays, and the engines share the cores."""

from __future__ import annotations

import logging
import os

import pytest

from mtgr.errors import InputError
from mtgr.serving.environment import prepare_vllm
from mtgr.serving.quiet import quieten

pytestmark = pytest.mark.vllm

NAMES = ("OMP_NUM_THREADS", "GOMP_CPU_AFFINITY", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_NO_USAGE_STATS")


@pytest.fixture(autouse=True)
def _environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in NAMES:
        os.environ.pop(name, None)


def test_a_core_is_left_to_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one core the engine has that one."""
    for cores, threads in ((1, "1"), (2, "1"), (8, "7")):
        monkeypatch.setattr("vllm.utils.torch_utils.available_cpu_count", lambda cores=cores: cores)
        os.environ.pop("OMP_NUM_THREADS", None)
        prepare_vllm()
        assert os.environ["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize("cores", ["0-3,8", "2", "auto", "nobind"])
def test_what_the_user_has_set_stays(cores: str) -> None:
    """vLLM's own variables keep their meaning, and OpenMP's go before ours."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores
    os.environ["VLLM_NO_USAGE_STATS"] = "0"
    prepare_vllm()
    bound = {"0-3,8": ("5", "0-3,8"), "2": ("1", "2")}
    if cores in bound:
        assert (os.environ["OMP_NUM_THREADS"], os.environ["GOMP_CPU_AFFINITY"]) == bound[cores]
    assert os.environ["VLLM_NO_USAGE_STATS"] == "0"
    os.environ["OMP_NUM_THREADS"] = "3"
    prepare_vllm()
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that compute at once: those of an engine on several ranks, and the replicas of one."""
    monkeypatch.setattr("vllm.utils.torch_utils.available_cpu_count", lambda: 9)
    prepare_vllm(workers=4)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0-1|2-3"
    prepare_vllm(workers=2)
    with pytest.raises(InputError, match="VLLM_CPU_OMP_THREADS_BIND"):
        prepare_vllm(workers=3)


@pytest.mark.parametrize("cores", ["0-1|2-3", "all", "", "1-"])
def test_cores_that_are_none_are_named(cores: str) -> None:
    """The variable is vLLM's, which knows more ways to write it."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores
    with pytest.raises(InputError, match=r"VLLM_CPU_OMP_THREADS_BIND is .* where cores are wanted"):
        prepare_vllm()


def test_harmless_warnings_are_left_out_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never an error, nor a warning that is not known."""
    kept: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: kept.append(record.getMessage()))
    logger = logging.getLogger("vllm.renderers.base")
    monkeypatch.setattr(logger, "handlers", [handler])
    quieten()
    quieten()
    logger.warning("Chat template warmup failed", exc_info=True)
    logger.error("Chat template warmup failed for good")
    logger.warning("Something else failed")
    assert kept == ["Chat template warmup failed for good", "Something else failed"]
