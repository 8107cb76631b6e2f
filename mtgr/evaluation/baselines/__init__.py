"""The field's baselines from RecTools, in an environment of their own: their pins and vLLM's exclude each other."""

from mtgr.evaluation.baselines.launch import (
    MODELS,
    BaselineLists,
    BaselineOptions,
    read_lists,
    run_baselines,
    write_task,
)

__all__ = ["MODELS", "BaselineLists", "BaselineOptions", "read_lists", "run_baselines", "write_task"]
