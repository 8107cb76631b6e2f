"""The `mtgr-stream` command: a table of sub-commands, each imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Final

import click

from mtgr.errors import InputError
from mtgr.suggestions import did_you_mean

# name -> module with a click command of the name `command`, and its line in the help
_COMMANDS: Final = {
    "run": ("stream.commands.run", "Run the daemon: events in, recommendation lists out."),
    "serve": ("stream.commands.serve", "Serve a checkpoint by vLLM to daemons on other processes."),
    "train": ("stream.commands.train", "Train a model from event logs."),
    "evaluate": ("stream.commands.evaluate", "Say how good a checkpoint's lists are on an event log."),
    "quantize": ("stream.commands.quantize", "Write a checkpoint with its weights in 8 or 4 bits."),
    "plot": ("stream.commands.plot", "Draw the curves of trainings."),
    "models": ("stream.commands.models", "List the model presets with their parameter counts."),
    "produce": ("stream.commands.produce", "Send an event log to Kafka."),
    "simulate": ("stream.commands.simulate", "Write the events of simulated users."),
    "tail": ("stream.commands.tail", "Show recommendation lists as they come."),
    "topics": ("stream.commands.topics", "Create or check the topics."),
    "state": ("stream.commands.state", "Inspect, export, import or forget what is kept of users."),
    "replay": ("stream.commands.replay", "Send repaired dead letters back to their topic."),
    "demo": ("stream.commands.demo", "Train, stream and show lists on one machine."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            if not cmd_name.startswith("-"):  # else click names the option
                ctx.fail(f"unknown command {cmd_name}{did_you_mean(cmd_name, _COMMANDS)}")
            return None
        command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # the help texts stand in the table, so that --help imports no command (torch alone takes seconds)
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mtgr-stream")
def cli() -> None:
    """Fresh recommendation lists from a stream of events: Kafka in, Kafka out, MTGR on vLLM between.

    A command's own options: mtgr-stream COMMAND --help.
    """


def main() -> None:
    """Run the command line: one line on stderr and exit code 2 for wrong input, 1 for what went wrong on the way."""
    try:
        code = cli.main(prog_name="mtgr-stream", standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that went away is still met in silence
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except InputError as error:
        _fail(str(error), 2)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "vllm":
            raise
        _fail("vllm is not installed: install mtgr-stream[cpu] or mtgr-stream[cuda]", 2)
    except (click.Abort, KeyboardInterrupt):
        _fail("stopped", 130)
    except BrokenPipeError:
        # what is left in the buffer has no reader either: let the interpreter's own flush go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    click.echo(f"mtgr-stream: {' '.join(message.split())}", err=True)
    sys.exit(code)
