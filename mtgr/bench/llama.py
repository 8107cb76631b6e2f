"""vLLM's own Llama, as wide and as deep as ours and with as many parameters: what a stock engine would take.

Its prompts are token ids, one for each event, without features; its weights are vLLM's dummies.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from mtgr.bench import probe
from mtgr.bench.attempts import attempt
from mtgr.bench.cases import TOP, Case
from mtgr.bench.load import Callers, open_loop, saturate
from mtgr.bench.ours import (
    MAX_SEQS,
    MAX_TOKENS,
    device_time,
    free_gib,
    leave_out,
    load_record,
    memory_record,
    no_room,
)
from mtgr.bench.plan import PROFILED, WARM_UPS, Plan
from mtgr.bench.records import RecordFile, Row, Started, System
from mtgr.bench.timing import run_async, settle, time_batches
from mtgr.bench.users import SyntheticUsers
from mtgr.bench.work import batch_work, llama_shape
from mtgr.config import ModelConfig
from mtgr.model.mtgr import parameter_counts
from mtgr.serving.quiet import quieten

_SYSTEM: Final[System] = "llama"
_GRAIN: Final = 64  # widths of an MLP that matrix units like
_BLOCK_SIZE: Final = {
    "cuda": 16,
    "cpu": 32,
}  # vLLM's own choice, and the smallest that its attention takes on a CPU
_ENVIRONMENT: Final = (
    probe.ALLOW,
    ("VLLM_NO_USAGE_STATS", "1"),
    ("VLLM_CONFIGURE_LOGGING", "0"),
)


def llama_d_ff(config: ModelConfig) -> int:
    """The MLP's width with which a Llama of the same width, depth and vocabulary has the parameters of ours."""
    wanted = parameter_counts(config)[0]
    d, width = config.d_model, config.n_heads * config.d_qk
    without = config.vocab_size * d + d + config.n_layers * (4 * d * width + 2 * d)
    exact = (wanted - without) / (3 * d * config.n_layers)
    return max(_GRAIN, round(exact / _GRAIN) * _GRAIN)


def llama_parameters(config: ModelConfig, d_ff: int) -> int:
    """Parameters of that Llama; head and embedding are one matrix, as in ours."""
    d, width = config.d_model, config.n_heads * config.d_qk
    return config.vocab_size * d + d + config.n_layers * (4 * d * width + 3 * d * d_ff + 2 * d)


def llama_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """A config.json for vLLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": dtype,
        "hidden_size": config.d_model,
        "intermediate_size": llama_d_ff(config),
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads,
        "head_dim": config.d_qk,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": _max_length(config),
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }


def run_fresh(plan: Plan, records: RecordFile) -> None:
    """Rows of new users, where prefix caching would only cost."""
    _prepare(plan)
    run_async(_Run(plan, records, plan.fresh, caching=False).measure())


def run_cached(plan: Plan, records: RecordFile) -> None:
    """Rows of known users, with prefix caching."""
    _prepare(plan)
    run_async(_Run(plan, records, plan.cached, caching=True).measure())


def run_load(plan: Plan, records: RecordFile) -> None:
    """The load, through AsyncLLM, which batches by itself."""
    _prepare(plan)
    run_async(_load(plan, records))


def _prepare(plan: Plan) -> None:
    for name, value in _ENVIRONMENT:
        os.environ.setdefault(name, value)
    if plan.device == "cpu":
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")  # as for ours
    quieten()


def _max_length(config: ModelConfig) -> int:
    return config.max_length + 1


def _arguments(plan: Plan, cache_gib: float, caching: bool) -> dict[str, Any]:
    directory = plan.directory / f"llama-{plan.preset}"
    directory.mkdir(parents=True, exist_ok=True)
    (Path(directory) / "config.json").write_text(json.dumps(llama_config(plan.config, plan.dtype)))
    return {
        "model": str(directory),
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "dtype": plan.dtype,
        "max_model_len": _max_length(plan.config),
        "block_size": _BLOCK_SIZE[plan.device],
        "enforce_eager": plan.device == "cpu",
        "kv_cache_memory_bytes": int(cache_gib * 2**30),
        "gpu_memory_utilization": 0.3,
        "max_num_seqs": MAX_SEQS,
        "max_num_batched_tokens": MAX_TOKENS,
        "enable_prefix_caching": caching,
        "generation_config": "vllm",
        "disable_log_stats": True,
    }


def _sampling() -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=1, logprobs=TOP, flat_logprobs=True, detokenize=False)


def _started(plan: Plan, seconds: float, description: str) -> Started:
    d_ff = llama_d_ff(plan.config)
    return Started(plan.setting, _SYSTEM, llama_parameters(plan.config, d_ff), seconds, description)


def _check(output: Any) -> None:
    if len(output.outputs[0].logprobs.token_ids) < TOP:
        raise RuntimeError(f"vLLM's Llama gave {output.outputs[0].logprobs}, where {TOP} ids are wanted")


class _Run:
    def __init__(self, plan: Plan, records: RecordFile, cases: Sequence[Case], *, caching: bool) -> None:
        self.plan = plan
        self.records = records
        possible, self.cache_gib = plan.affordable(free_gib(plan))
        self.cases = [case for case in cases if case in possible]
        leave_out(plan, records, [case for case in cases if case not in possible], _SYSTEM)
        self.caching = caching
        self.shape = llama_shape(plan.config, llama_d_ff(plan.config), plan.number_bytes)
        self.users = SyntheticUsers(plan.config.n_items, seed=2)

    async def measure(self) -> None:
        from vllm import LLM

        if not self.cases:
            return
        plan = self.plan
        began = time.perf_counter()
        self.llm = LLM(**_arguments(plan, self.cache_gib, self.caching))
        self.params = _sampling()
        caching = "with" if self.caching else "without"
        self.records.add(
            _started(
                plan,
                time.perf_counter() - began,
                f"vLLM's LLM.generate on token ids, {caching} prefix caching",
            )
        )
        settle()
        self._ask(probe.reset_memory)
        for case in self.cases:
            await attempt(plan, self.records, f"{_SYSTEM} {case}", self._row(case))
        found = self._ask(probe.memory)[0]
        self.records.add(memory_record(plan, _SYSTEM, found, self.cache_gib))
        for case in self.cases:
            await attempt(plan, self.records, f"{_SYSTEM} {case}, profile", self._profile(case))

    async def _row(self, case: Case) -> None:
        times = await time_batches(
            self._batches(case), self._serve, warm_ups=WARM_UPS, repeats=self.plan.repeats, grows=case.cached
        )
        work = batch_work(self.shape, case)
        self.records.add(Row(self.plan.setting, _SYSTEM, case, times, work.bytes, work.operations))

    def _batches(self, case: Case) -> Callable[[int], list[dict[str, Any]]]:
        profile = self.plan.config.profile_id
        if not case.cached:
            return lambda number: [
                {"prompt_token_ids": user.token_ids(case.events, profile)}
                for user in self.users.draw(case.users, case.events)
            ]
        users = self.users.draw(case.users, case.events + self.plan.appended)
        self._generate([{"prompt_token_ids": user.token_ids(case.events, profile)} for user in users])
        return lambda number: [
            {"prompt_token_ids": user.token_ids(case.events + 1 + number, profile)} for user in users
        ]

    async def _serve(self, prompts: list[dict[str, Any]]) -> None:
        self._generate(prompts)

    def _generate(self, prompts: list[dict[str, Any]]) -> None:
        for output in self.llm.generate(prompts, self.params, use_tqdm=False):
            _check(output)

    async def _profile(self, case: Case) -> None:
        prepare = self._batches(case)
        for number in range(WARM_UPS):
            self._generate(prepare(number))
        batches = [prepare(number) for number in range(WARM_UPS, WARM_UPS + PROFILED)]
        self._ask(probe.start_profile)
        began = time.perf_counter()
        for batch in batches:
            self._generate(batch)
        seconds = time.perf_counter() - began
        found = self._ask(probe.stop_profile)[0]
        self.records.add(device_time(self.plan, _SYSTEM, case, seconds, found))

    def _ask(self, function: Callable[..., Any]) -> list[Any]:
        answers: list[Any] = self.llm.collective_rpc(function, args=(self.plan.device,))
        return answers


async def _load(plan: Plan, records: RecordFile) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    cache_gib = plan.load_gib
    if not plan.load_users:
        return
    if cache_gib > free_gib(plan):
        records.add(no_room(plan, f"{_SYSTEM} load", cache_gib))
        return
    began = time.perf_counter()
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**_arguments(plan, cache_gib, caching=True)))
    try:
        records.add(
            _started(plan, time.perf_counter() - began, "vLLM's AsyncLLM on token ids, with prefix caching")
        )
        params, numbers = _sampling(), itertools.count()
        config = plan.config
        users = SyntheticUsers(config.n_items, seed=3).draw(plan.load_users, config.capacity)
        events = [plan.load_events] * len(users)

        async def one(number: int) -> None:
            prompt = {"prompt_token_ids": users[number].token_ids(events[number], config.profile_id)}
            events[number] += 1
            async for output in llm.generate(prompt, params, str(next(numbers))):
                _check(output)

        async def serve(numbers: Sequence[int]) -> None:
            waiting: list[Awaitable[None]] = [one(number) for number in numbers]
            await asyncio.gather(*waiting)

        await serve(range(len(users)))
        settle()
        callers = Callers(calls=plan.load_users, lists=1)
        rounds = config.capacity - plan.load_events - 1
        most = await saturate(serve, len(users), callers, plan.load_seconds, rounds // 2)
        latencies, served = await open_loop(
            serve, len(users), callers, most / 2, plan.load_seconds, rounds - rounds // 2
        )
        records.add(load_record(plan, _SYSTEM, most, latencies, served))
    finally:
        llm.shutdown()
