"""Promises of the `mtgr-stream` command itself: quick help, one-line errors, honest exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
import types
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import click
import pytest

from mtgr.errors import InputError
from stream import cli

EXECUTABLE = Path(sys.executable).with_name("mtgr-stream")


def run(*arguments: str, command: tuple[str, ...] = (str(EXECUTABLE),)) -> subprocess.CompletedProcess[str]:
    """Run the installed command."""
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Callable[[], object]], tuple[int, str]]:
    """Run a function as the body of a sub-command: the exit code and what was written to stderr."""

    def call_body(body: Callable[[], object]) -> tuple[int, str]:
        module = types.ModuleType("stream.commands.models")
        module.command = click.command("models")(body)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(sys, "argv", ["mtgr-stream", "models"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err  # type: ignore[return-value]

    return call_body


@pytest.mark.parametrize(
    "command", [(str(EXECUTABLE),), (sys.executable, "-m", "stream")], ids=["script", "module"]
)
def test_both_ways_to_start_are_the_same(command: tuple[str, ...]) -> None:
    """The console script and `python -m stream` are one program."""
    assert run("--version", command=command).stdout.startswith("mtgr-stream, version ")


def test_help_imports_no_command() -> None:
    """--help is quick: it loads neither torch nor vllm, and lists every command."""
    script = (
        "import sys, click.testing, stream.cli as c; print(click.testing.CliRunner().invoke(c.cli, ['-h']).output);"
        "sys.exit(bool({'torch', 'vllm', 'aiokafka', 'polars'} & sys.modules.keys()))"
    )
    result = run("-c", script, command=(sys.executable,))
    assert result.returncode == 0, result.stderr
    for name in cli._COMMANDS:
        assert f"\n  {name} " in result.stdout


def test_tools_import_no_model_and_no_server() -> None:
    """What only talks to Kafka or writes a file starts at once: nothing slow is imported that it does not use."""
    script = (
        "import importlib, sys\n"
        "for name in ('produce', 'simulate', 'tail', 'topics', 'replay'):\n"
        "    importlib.import_module(f'stream.commands.{name}')\n"
        "print(sorted({'torch', 'vllm', 'aiohttp', 'polars'} & sys.modules.keys()))"
    )
    assert run("-c", script, command=(sys.executable,)).stdout == "[]\n"


@pytest.mark.parametrize("name", list(cli._COMMANDS))
def test_every_command_of_the_table_is_there(name: str) -> None:
    """What the help lists can be called, and its own help starts with a sentence."""
    command = import_module(cli._COMMANDS[name][0]).command
    assert isinstance(command, click.Command)
    assert command.help


def test_no_command_shows_the_help() -> None:
    """Called without a word it says what there is, on several lines, and fails."""
    result = run()
    assert result.returncode == 2
    assert result.stderr.startswith("Usage: mtgr-stream ")
    assert "\n  produce " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prodcue"], "mtgr-stream: unknown command prodcue; did you mean produce?"),
        (["qqq"], "mtgr-stream: unknown command qqq; known are run, serve, "),
        (["--versoin"], "mtgr-stream: No such option '--versoin'. "),
        (["topics", "--chekc"], "mtgr-stream: No such option '--chekc'. "),
        (["topics", "--set", "kafka.grp=1"], 'mtgr-stream: --set: unknown setting "kafka.grp"; did you mean'),
        (["topics", "--config", "/none.toml"], "mtgr-stream: /none.toml: cannot read the settings file"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    """A mistake on the command line is told in one line that holds the cure."""
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1


def test_wrong_input_is_one_line(call: Callable[..., tuple[int, str]]) -> None:
    """An InputError of any depth becomes one line, even if its cause spoke on several."""

    def body() -> None:
        raise InputError("events.csv: line 3:\n  user_id is missing")

    assert call(body) == (2, "mtgr-stream: events.csv: line 3: user_id is missing\n")


def test_what_fails_on_the_way_is_not_taken_for_wrong_input(call: Callable[..., tuple[int, str]]) -> None:
    """A script can tell a broker that refused from a command that was called wrongly."""

    def body() -> None:
        raise click.ClickException("topic user-events: Kafka took no events for 60 seconds")

    assert call(body) == (1, "mtgr-stream: topic user-events: Kafka took no events for 60 seconds\n")


def test_missing_vllm_says_what_to_install(call: Callable[..., tuple[int, str]]) -> None:
    """Without an extra there is no vLLM; that is the user's choice, not a crash."""

    def body() -> None:
        raise ModuleNotFoundError("No module named 'vllm.v1'", name="vllm.v1")

    code, message = call(body)
    assert code == 2
    assert "mtgr-stream[cpu]" in message


def test_programming_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is not dressed up as a user's mistake."""

    def body() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    module = types.ModuleType("stream.commands.models")
    module.command = click.command("models")(body)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "argv", ["mtgr-stream", "models"])
    with pytest.raises(ModuleNotFoundError):
        cli.main()


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3), ("text", 0)])
def test_exit_code_is_what_the_command_returns(
    call: Callable[..., tuple[int, str]], returned: object, code: int
) -> None:
    """A command that returns a number ends with it; any other value is success."""
    assert call(lambda: returned) == (code, "")


def test_interrupt_ends_with_130_and_no_traceback() -> None:
    """Ctrl-C ends any command at once, as shells expect."""
    script = (
        "import sys, time, types, click; from stream import cli\n"
        "module = types.ModuleType('stream.commands.models'); sys.modules[module.__name__] = module\n"
        "@click.command()\n"
        "def command(): print('ready', flush=True); time.sleep(60)\n"
        "module.command = command; sys.argv = ['mtgr-stream', 'models']; cli.main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == "mtgr-stream: stopped"


def test_reader_that_goes_away_is_met_in_silence() -> None:
    """`mtgr-stream ... | head` ends without a word."""
    with subprocess.Popen(
        [EXECUTABLE, "topics", "--print-config"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == 1
