"""What vLLM loads in each of its processes, so that it knows our config, model and attention."""

from __future__ import annotations

from mtgr.checkpoint import ARCHITECTURE, MODEL_TYPE


def register() -> None:
    """Register the config, the model and the attention backend with vLLM; calling it again changes nothing.

    The entry point of `vllm.general_plugins`. The model and the backend are named, not imported: a process
    that runs no model of ours pays next to nothing.
    """
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from mtgr.serving.hf_config import MTGRConfig

    AutoConfig.register(MODEL_TYPE, MTGRConfig, exist_ok=True)
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "mtgr.serving.model:MTGRForRecommendation")
    register_backend(AttentionBackendEnum.CUSTOM, "mtgr.serving.attention.SiluAttentionBackend")
