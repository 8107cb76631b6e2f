"""One evaluation of a checkpoint on a log, from the split to the report."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, structs

from mtgr.additions import encode_additions
from mtgr.checkpoint import Checkpoint
from mtgr.errors import InputError
from mtgr.evaluation.baselines.launch import check_environment
from mtgr.evaluation.evaluation import Evaluation, SystemResult
from mtgr.evaluation.fitted import fit_baselines
from mtgr.evaluation.impressions import HeadResult, impressions_after, judge_heads
from mtgr.evaluation.popularity import PopularityScorer
from mtgr.evaluation.protocol import PARTS, Part, Protocol, Split, TimeSplit
from mtgr.evaluation.rankings import OnProgress, Rankings, Scorer, rank_all, rank_lists
from mtgr.evaluation.report import EvaluationReport, LogFacts
from mtgr.evaluation.served import ReferenceScorer, compare_lists
from mtgr.reference import ReferenceRecommender
from mtgr.requests import AddedVideos, NewVideo
from mtgr.serving.options import EngineOptions
from mtgr.training.log import EventLog
from schemas.lists import ModelVersion

Lists = Literal["reference", "vllm", "both"]
"""Who makes the lists: the reference model, vLLM, or both of them, compared."""

Progress = Callable[[str, int], AbstractContextManager[OnProgress]]
"""Shows how far a step is: its name and its number of cases give what is to be told of each."""

REFERENCE: Final = "this model"
VLLM: Final = "this model on vLLM"
POPULARITY: Final = "most popular"

_NEEDED: Final[tuple[Part, ...]] = ("test",)
_EXAMPLES: Final = 3

_Ranker = Callable[[OnProgress], Rankings]


class EvaluationOptions(Struct, frozen=True, kw_only=True):
    """How a checkpoint is evaluated."""

    ks: tuple[int, ...] = (5, 10)
    """Lengths of lists."""
    lists: Lists = "reference"
    cold_items: Annotated[int, Meta(ge=0)] = 5
    """Videos that fewer users know before the test are cold."""
    cold_users: Annotated[int, Meta(ge=0)] = 10
    """Users with fewer events before the test are cold."""
    seed: int = 0
    """Of the bootstrap, and of the baselines."""
    engine: EngineOptions = EngineOptions(checkpoint=Path())
    """How vLLM is run, where it makes lists; of the checkpoint that is evaluated, whatever is named here."""
    baselines: tuple[str, ...] = ()
    """Those of `mtgr.evaluation.baselines` that are fitted on the same split and judged beside the model."""
    times: bool = True
    """Whether timestamps are times and not only an order; baselines that go by time have use of it."""


def examples(video_ids: Sequence[str]) -> str:
    """The first few ids, as messages show them."""
    return ", ".join(repr(video) for video in video_ids[:_EXAMPLES])


class CheckpointEvaluation:
    """A checkpoint, the catalog it has here, and the cases it is tested on.

    Making one splits the log and takes new videos in; `run` ranks.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        log: EventLog,
        protocol: Protocol,
        options: EvaluationOptions,
        new_videos: Sequence[NewVideo] = (),
    ) -> None:
        """InputError if the log cannot be split, the checkpoint is wrong or knows no target, or the baselines have no
        environment.

        new_videos: those not in the catalog yet join it, as far as it has spare places; `added` says how many.
        """
        self._checkpoint: Final = checkpoint
        self._log: Final = log
        self._protocol: Final = protocol
        self._options: Final = options
        self._new_videos: Final = new_videos
        if options.baselines:
            check_environment()
        self._split: Final[Split] = protocol.split(log, PARTS if options.baselines else _NEEDED)
        self._recommender: Final = None if options.lists == "vllm" else ReferenceRecommender(checkpoint)
        self.added: Final[AddedVideos] = (
            encode_additions(new_videos, checkpoint.catalog, checkpoint.config)[1]
            if self._recommender is None
            else self._recommender.add_videos(new_videos)
        )
        self.evaluation: Final = Evaluation(
            self._split,
            checkpoint.catalog.video_ids,
            options.ks,
            cold_items=options.cold_items,
            cold_users=options.cold_users,
            seed=options.seed,
        )
        if self.evaluation.missing_targets == len(self.evaluation.cases):
            raise InputError(
                f"none of the {len(self.evaluation.cases):,} targets is in the catalog of {checkpoint.directory}: "
                f"they are such as {examples(self.evaluation.missing_videos)}, where its videos are such as "
                f"{examples(checkpoint.catalog.video_ids)}; name a log with the ids that it was trained with"
            )

    @property
    def judges_heads(self) -> bool:
        """Whether `run` says how well the ranking heads do: the model has some, and the split is by time."""
        return bool(self._checkpoint.config.ranking) and isinstance(self._protocol, TimeSplit)

    def run(
        self, progress: Progress = lambda name, cases: nullcontext(lambda done: None)
    ) -> EvaluationReport:
        """Rank all cases by the model, by popularity and by the baselines, and judge them.

        Raises InputError if the model gives scores that are none, a generator refuses a case or a baseline fails,
        and EngineFailed if vLLM breaks.
        """
        evaluation = self.evaluation
        made: dict[str, Rankings] = {}
        systems: list[SystemResult] = []
        for name, rank in self._rankers().items():
            began = monotonic()
            with progress(name, len(evaluation.cases)) as on_progress:
                made[name] = rank(on_progress)
            systems.append(evaluation.judge(name, made[name], monotonic() - began))
        systems += self._baselines(progress)
        known = self._split.known
        return EvaluationReport(
            model=ModelVersion(self._checkpoint.name, self._checkpoint.version),
            protocol=self._protocol,
            ks=evaluation.ks,
            seed=self._options.seed,
            cold_items=self._options.cold_items,
            cold_users=self._options.cold_users,
            log=LogFacts(
                users=len(self._log.histories),
                events=len(self._log),
                videos=len(evaluation.items),
                known_events=sum(len(history) for history in known.values()),
            ),
            catalog=evaluation.items.catalog_size,
            missing_targets=evaluation.missing_targets,
            cases=evaluation.table,
            systems=systems,
            differences={
                other.name: evaluation.difference(systems[0], other)
                for other in systems[1:]
                if other.name != VLLM
            },
            comparison=compare_lists(made[VLLM], made[REFERENCE]) if self._options.lists == "both" else None,
            heads=self._heads(progress) if self.judges_heads else {},
        )

    def _rankers(self) -> dict[str, _Ranker]:
        checkpoint, evaluation = self._checkpoint, self.evaluation
        rankers: dict[str, _Ranker] = {}
        if self._recommender is not None:
            scorer = ReferenceScorer(
                self._recommender,
                checkpoint.config,
                checkpoint.catalog,
                exclude_seen=self._protocol.exclude_seen,
                profiles=self._log.profiles,
            )
            rankers[REFERENCE] = partial(self._ranked_by, scorer)
        if self._options.lists != "reference":
            rankers[VLLM] = self._ranked_by_vllm
        popularity = PopularityScorer(evaluation.popularity[: evaluation.items.catalog_size])
        rankers[POPULARITY] = partial(self._ranked_by, popularity)
        return rankers

    def _ranked_by(self, scorer: Scorer, on_progress: OnProgress) -> Rankings:
        evaluation = self.evaluation
        return rank_all(
            evaluation.cases,
            scorer,
            evaluation.items.index_of,
            evaluation.items.catalog_size,
            evaluation.ks[-1],
            exclude_seen=self._protocol.exclude_seen,
            on_progress=on_progress,
        )

    def _ranked_by_vllm(self, on_progress: OnProgress) -> Rankings:
        from mtgr.evaluation.engine import rank_by_engine

        ranking = rank_by_engine(
            self.evaluation.cases,
            structs.replace(self._options.engine, checkpoint=self._checkpoint.directory),
            self._checkpoint,
            self.evaluation.items.index_of,
            self.evaluation.ks[-1],
            profiles=self._log.profiles,
            new_videos=self._new_videos,
            on_progress=on_progress,
        )
        return asyncio.run(ranking)

    def _baselines(self, progress: Progress) -> list[SystemResult]:
        chosen, evaluation = self._options.baselines, self.evaluation
        if not chosen:
            return []
        done = 0
        with progress("baselines", len(chosen)) as on_progress:

            def count(event: dict[str, Any]) -> None:
                nonlocal done
                if event["event"] == "fitted":
                    done += 1
                    on_progress(done)

            fitted = fit_baselines(
                self._split,
                self._protocol,
                chosen,
                k=evaluation.ks[-1],
                seed=self._options.seed,
                times=self._options.times,
                on_event=count,
            )
        results = []
        for baseline in fitted:
            lists = [baseline.lists.get(case.user_id, []) for case in evaluation.cases]
            rankings = rank_lists(evaluation.cases, lists, None, evaluation.items.index_of, evaluation.ks[-1])
            results.append(evaluation.judge(f"RecTools {baseline.model}", rankings, baseline.seconds))
        return results

    def _heads(self, progress: Progress) -> dict[str, HeadResult]:
        from mtgr.evaluation.candidates import CandidateScorer

        assert isinstance(self._protocol, TimeSplit)
        heads = self._checkpoint.config.ranking
        shown = impressions_after(self._log, self._split.known, self._protocol.cut_ms, heads)
        with progress("ranking heads", len(shown)) as on_progress:
            scores = CandidateScorer(self._checkpoint, self._log.profiles).scores(shown, on_progress)
        return judge_heads(shown, scores, heads, seed=self._options.seed)
