"""Requests to vLLM's prompts and its outputs to lists: what is sent to the engine and what comes back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mtgr.admission import admit, check_count, refusal
from mtgr.checkpoint import Checkpoint
from mtgr.errors import RequestRefused
from mtgr.features import RowEncoder
from mtgr.history import History
from mtgr.requests import ListOutcome, ListRefusal, ListRequest, ListResult, Strategy
from mtgr.serving.seen_argument import seen_argument

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams


@dataclass(frozen=True, slots=True)
class Prompt:
    """One admitted request as vLLM takes it."""

    place: int  # of the request in its batch
    rows: dict[str, Any]
    params: SamplingParams
    count: int
    strategy: Strategy
    events: int


class PromptBuilder:
    """Turns requests into prompts, for one checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._config: Final = checkpoint.config
        self._catalog: Final = checkpoint.catalog
        self._encoder: Final = RowEncoder(checkpoint.config, checkpoint.catalog)

    def build(self, requests: Sequence[ListRequest]) -> tuple[list[Prompt], dict[int, ListRefusal]]:
        """Prompts of the requests the model can serve, and by their places the refusals of the others.

        Every request is checked here, since one that fails inside the engine ends it with all the others.
        """
        refusals: dict[int, ListRefusal] = {}
        places: list[int] = []
        histories: list[History] = []
        profiles: list[dict[str, Any]] = []
        for place, request in enumerate(requests):
            try:
                history, profile = admit(request, self._config)
            except RequestRefused as error:
                refusals[place] = refusal(error)
            else:
                places.append(place)
                histories.append(history)
                profiles.append(profile)

        import torch

        encoded = self._encoder.encode_batch(histories, profiles)
        rows = torch.from_numpy(encoded.rows)
        prompts = []
        end = 0
        for place, history, length in zip(places, histories, encoded.lengths.tolist(), strict=True):
            begin, end = end, end + length
            seen = np.unique(encoded.token_ids[begin + 1 : end])
            seen = seen[seen < len(self._catalog)]
            request = requests[place]
            try:
                check_count(request.count, len(seen), len(self._catalog))
            except RequestRefused as error:
                refusals[place] = refusal(error)
                continue
            prompts.append(
                Prompt(
                    place,
                    {"type": "embeds", "prompt_embeds": rows[begin:end]},
                    _sampling(request, seen_argument(seen)),
                    request.count,
                    request.strategy,
                    len(history),
                )
            )
        return prompts, refusals

    def read(self, prompt: Prompt, output: RequestOutput) -> ListOutcome:
        """The list in an output.

        At each step the first log-probability is that of the sampled video, and the best ones follow: a slate is the
        first ones, any other list the best ones of its only step.
        """
        steps = output.outputs[0].logprobs
        if prompt.strategy == "slate":
            places = steps.start_indices[: prompt.count]
            indices = [steps.token_ids[place] for place in places]
            scores = [steps.logprobs[place] for place in places]
        else:
            indices = steps.token_ids[1 : 1 + prompt.count]
            scores = steps.logprobs[1 : 1 + prompt.count]
        if not all(map(math.isfinite, scores)):
            return refusal(RequestRefused("the model's scores are not finite"))
        return ListResult(
            video_ids=[self._catalog.video_id(index) for index in indices],
            scores=scores,
            sequence_length=prompt.events,
            cached_tokens=output.num_cached_tokens or 0,
        )


def refused_by_engine(error: Exception) -> ListRefusal:
    """The refusal of a request that vLLM itself does not take."""
    return refusal(RequestRefused(str(error)))


def _sampling(request: ListRequest, extra: dict[str, bytes]) -> SamplingParams:
    """Greedy steps whose log-probabilities are the list: one, or one for each video of a slate."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    slate = request.strategy == "slate"
    return SamplingParams(
        temperature=0.0,
        max_tokens=request.count if slate else 1,
        logprobs=0 if slate else request.count,
        flat_logprobs=True,
        detokenize=False,
        skip_clone=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=extra,
    )
