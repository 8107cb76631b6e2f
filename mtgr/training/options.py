"""How to train: the settings of one training, with the reasons for their defaults. Importable without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from mtgr.evaluation.targets import Target
from mtgr.plain_data import parse_struct
from mtgr.training.feedback import Feedback

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]

WindowNegatives = Literal["none", "later", "all"]


_LEAST_STEPS: Final = 32  # of an epoch
_EPOCHS: Final = 6  # of a log that is not small

MAY_CHANGE: Final = (
    "epochs",
    "min_steps",
    "learning_rate",
    "average_decay",
    "evaluate_every",
    "patience",
    "max_seconds",
    "save_minutes",
    "device",
)
"""Options of which a training that is resumed may have others than it began with: how long and how fast it goes on,
and where. All others say what is learnt, and from what."""


class TrainingOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one training; a preset may come with its own, and the command line overrides them."""

    # what is learnt
    part: Literal["training", "known"] = "training"
    """training: learn what lies before the validation cases, and keep the weights that do best on these. known:
    learn those too, for as many epochs as are asked for, and tell how the test cases went."""
    target: Target = "watch"
    weights: dict[Feedback, Annotated[float, Meta(ge=0)]] = {}
    """How much a target counts by the strongest thing the user did with it; 1 where nothing is said."""
    conditioned_on: tuple[Feedback, ...] = ()
    """Kinds of feedback that training is told of at their targets, so that these teach what users watch without
    teaching to list it: for what users leave at once. See `mtgr.training.conditions`."""
    half_life_days: Positive | None = None
    """Targets count half as much for each such time before the end of what is learnt; without it all alike."""

    # the loss
    negatives: Count | Literal["all"] = 1024
    """Videos drawn for each batch, from which a target is to be told apart; all takes the catalog, which is
    exact, and as fast for one that is small or on a GPU. No more are drawn than there are videos."""
    uniform_share: Share = 0.5
    """Share of the draws that are uniform; the others come by how often a video is a target. Popular videos are
    the hard negatives, but without uniform ones nothing pushes rare videos down."""
    in_batch: bool = False
    """Whether the targets of the batch's other windows stand in for the draws by frequency: no further videos to
    embed, but few windows make few and like negatives, so that this is for large batches."""
    window_negatives: WindowNegatives = "later"
    """Which of a window's own videos may be negatives of a target: none, those that come later, or all. Lists
    choose among what is not yet seen, and so does the loss: with the catalog as negatives, Recall@10 on
    KuaiRand-Pure was .006 higher where seen videos were left out."""
    ranking_candidates: Count = 8
    """Watched videos of a window, at most, that the ranking heads learn from, each as a candidate at its place."""
    ranking_weight: Annotated[float, Meta(ge=0)] = 1.0
    """Of the ranking heads' loss, where the config has such heads; the next-item loss has 1."""

    # what is shown
    unknown_share: Share = 0.02
    """Share of the events that show a video as an unknown one, so that unknown videos mean something."""
    cold_share: Share = 0.05
    """Share of the events, and of the catalog's videos at each step, that are shown as videos which have joined
    after training, where videos have attributes or spare places: it is what makes a new video mean something."""
    bare_share: Share = 0.05
    """Share of the windows whose last events are shown as a slate shows videos: by themselves."""
    max_bare: Count = 8
    """Most videos at the end of such a window that are shown so."""

    # the steps
    epochs: Count | None = None
    """Without it 6, or as many as it takes to come to `min_steps`: the epochs of a small log are few steps."""
    min_steps: Annotated[int, Meta(ge=0)] = 1_000
    """Steps a training makes at least, unless epochs or time are limited; before them `patience` does not count. In
    its first steps, with the learning rate still rising, a model is no better than popularity for several epochs
    of a small log, and then learns fast."""
    batch_tokens: Count | None = None
    """Tokens of a batch; without it four of the longest sequences: many small steps learn more in the same time
    than few large ones. A log that would then have fewer than 32 steps an epoch gets smaller batches."""
    learning_rate: Positive | None = None
    """Of AdamW after the warm-up; without it, 0.004 at width 64 and falling with the root of the width."""
    warm_up_steps: Annotated[int, Meta(ge=0)] = 100
    """Steps in which the learning rate rises, but no more than a tenth of all: AdamW knows no scale before."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls from the warm-up to the end, be that the last epoch or the time limit."""
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    """Of AdamW, on matrices and embeddings; norms, biases and positions have none."""
    gradient_norm: Positive = 1.0
    """Longer gradients are cut to this: a rare batch then moves the weights no further than the others."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Of tokens and of what each layer adds; none, as short trainings do not see a log often enough to learn it
    by heart."""
    average_decay: Annotated[float, Meta(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, which then is what is validated and kept: 0.998 looks
    back over some 500 steps. Without it the weights are taken as the last step left them."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 computes the layers in it, with weights, norms and logits in float32; auto does so on CUDA."""

    # the course
    evaluate_every: Count = 1
    """Epochs between validations."""
    patience: Count | None = 3
    """Validations without a better NDCG@10, all of them after `min_steps`, that end training; None for all epochs."""
    max_cases: Count = 10_000
    """Most cases that are evaluated, drawn from all: the error of NDCG@10 is some 0.002 then."""
    max_seconds: Positive | None = None
    """Time for reading, training and testing together; the learning rate then falls with the time."""
    save_minutes: Positive = 10.0
    """Time between two states of a run that can be resumed."""
    seed: Annotated[int, Meta(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if len(set(self.conditioned_on)) < len(self.conditioned_on):
            raise ValueError(
                f"conditioned_on is {', '.join(self.conditioned_on)}, where each kind is wanted once"
            )

    def tokens_a_batch(self, max_length: int, tokens: int) -> int:
        """The tokens of a batch, for a model with sequences of up to so many and an epoch of so many tokens.

        A small log has smaller batches, down to one sequence: a recipe made for a large one would take a step
        an epoch there, and learn nothing before its epochs are through.
        """
        wanted = self.batch_tokens or 4 * max_length
        return min(wanted, max(max_length, tokens // _LEAST_STEPS))

    def epochs_of(self, steps: int) -> int:
        """The epochs to train for, where one has so many steps."""
        return self.epochs or max(_EPOCHS, math.ceil(self.min_steps / steps))

    def peak_rate(self, d_model: int) -> float:
        """The learning rate after the warm-up, for a model of this width."""
        return self.learning_rate or 0.004 * math.sqrt(64 / d_model)

    def draws(self, n_items: int) -> int | None:
        """Negatives to draw for a batch from so many videos; None where all of them are negatives."""
        return None if self.negatives == "all" or self.negatives >= n_items else self.negatives

    def replace(self, source: str = "training options", **changes: Any) -> TrainingOptions:
        """These options with some changed; InputError names the source, the field and what would be right."""
        return parse_options({**msgspec.to_builtins(self), **changes}, source)


def parse_options(data: Mapping[str, Any], source: str = "training options") -> TrainingOptions:
    """Read options from plain data; InputError names the source, the field and what would be right."""
    return parse_struct(data, TrainingOptions, source)
