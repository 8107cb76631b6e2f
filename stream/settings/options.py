"""The options by which a command takes its settings."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from stream.settings.loading import load_settings
from stream.settings.rendering import render


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --config, --set and --print-config, and hand it the loaded `settings`."""

    @click.option(
        "--config",
        "-c",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Settings as TOML; the environment (MTGR_STREAM__GROUP__KEY) and --set come above it.",
    )
    @click.option(
        "--set",
        "overrides",
        metavar="GROUP.KEY=VALUE",
        multiple=True,
        help="One setting, above file and environment; repeatable.",
    )
    @click.option(
        "--print-config", is_flag=True, help="Print the settings in force as TOML, secrets masked, and exit."
    )
    @click.pass_context
    @functools.wraps(command)
    def with_settings(
        context: click.Context,
        /,
        *args: Any,
        config: Path | None,
        overrides: tuple[str, ...],
        print_config: bool,
        **kwargs: Any,
    ) -> Any:
        settings = load_settings(config, os.environ, overrides)
        if print_config:
            click.echo(render(settings), nl=False)
            context.exit()
        return command(*args, settings=settings, **kwargs)

    return with_settings
