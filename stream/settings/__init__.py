"""Settings of the daemon and its tools: one TOML file < environment < flags, frozen and typed."""

from stream.settings.groups import (
    GeneratorSettings,
    HttpSettings,
    KafkaSettings,
    LogSettings,
    ModelSettings,
    Settings,
    StateSettings,
    StreamSettings,
    TopicSettings,
    TriggerSettings,
)
from stream.settings.loading import load_settings
from stream.settings.options import settings_options
from stream.settings.rendering import render
from stream.settings.secret import Secret

__all__ = [
    "GeneratorSettings",
    "HttpSettings",
    "KafkaSettings",
    "LogSettings",
    "ModelSettings",
    "Secret",
    "Settings",
    "StateSettings",
    "StreamSettings",
    "TopicSettings",
    "TriggerSettings",
    "load_settings",
    "render",
    "settings_options",
]
