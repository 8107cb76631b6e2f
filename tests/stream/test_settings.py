"""Promises of stream.settings: who wins, what is refused, and what a message tells."""

from __future__ import annotations

import pickle
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect, structs

from mtgr.errors import InputError
from stream.settings import (
    GeneratorSettings,
    KafkaSettings,
    Secret,
    Settings,
    TopicSettings,
    load_settings,
    render,
    settings_options,
)

SASL = ["kafka.security_protocol=SASL_SSL", "kafka.sasl_mechanism=PLAIN", "kafka.sasl_username=me"]

TOKEN = ["kafka.security_protocol=SASL_SSL", "kafka.sasl_mechanism=OAUTHBEARER"]


def refused(*overrides: str, path: Path | None = None, environ: dict[str, str] | None = None) -> str:
    """The message with which settings are refused."""
    with pytest.raises(InputError) as caught:
        load_settings(path, environ or {}, overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def toml(tmp_path: Path, text: str) -> Path:
    """A settings file."""
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_word_the_defaults_are_in_force() -> None:
    """A daemon needs no settings to start with."""
    assert load_settings(None, {}, ()) == Settings()


def test_file_below_environment_below_flags(tmp_path: Path) -> None:
    """The source nearest to the user's fingers wins, setting by setting; of flags, the last."""
    path = toml(tmp_path, '[kafka]\ngroup_id = "file"\nclient_id = "file"\n[http]\nport = 1\n')
    environ = {"MTGR_STREAM__KAFKA__CLIENT_ID": "environment", "MTGR_STREAM__HTTP__PORT": "2"}
    settings = load_settings(path, environ, ["http.port=3", "http.port=4"])
    assert settings.kafka.group_id == "file"
    assert settings.kafka.client_id == "environment"
    assert settings.http.port == 4


def test_variables_of_other_programs_are_let_be() -> None:
    """Only names that start with MTGR_STREAM__ are ours: Kubernetes sets MTGR_STREAM_PORT and more by itself."""
    environ = {"MTGR_STREAM_PORT": "tcp://10.0.0.1:8080", "PATH": "/bin", "KAFKA_HOME": "/opt"}
    assert load_settings(None, environ, ()) == Settings()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("kafka.group_id=plain", "plain"),
        ("kafka.group_id='quoted # whole'", "quoted # whole"),
        ("kafka.group_id=12345", "12345"),
        ("kafka.group_id=true", "true"),
        ("kafka.group_id=a=b c", "a=b c"),
        ("http.port=0x1F", 31),
        ("stream.max_owed_requests=1_000", 1_000),
        ("stream.drain_deadline_seconds=5", 5.0),
        ("topics.changelog=", None),
        ("state.max_events=", None),
        ("model.checkpoint=a b/c", Path("a b/c")),
        ("model.checkpoint=~/model", Path("~/model").expanduser()),
    ],
)
def test_values_of_flags_are_toml_or_plain_text(override: str, value: object) -> None:
    """A flag is read as the setting needs it: quotes only where TOML would be meant otherwise, empty for unset."""
    group, field = override.partition("=")[0].split(".")
    assert getattr(getattr(load_settings(None, {}, ["topics.changelog=c", override]), group), field) == value


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("kafka.group=x", "kafka.group_id"),
        ("kafka.bootstrap_server=x", "kafka.bootstrap_servers"),
        ("kafak.client_id=x", "kafka.client_id"),
        ("quiet_period_ms=5", "trigger.quiet_period_ms"),
        ("stream.quiet_period_ms=5", "stream.commit_interval_ms"),
        ("tigger=5", "trigger"),
    ],
)
def test_unknown_setting_is_refused_with_the_nearest(override: str, nearest: str) -> None:
    """A typing mistake is never ignored, and the message holds the cure."""
    message = refused(override)
    assert f'unknown setting "{override.partition("=")[0]}"' in message
    assert nearest in message


def test_unknown_group_key_and_variable_are_refused_by_their_source(tmp_path: Path) -> None:
    """The message leads to the file or variable to change."""
    path = toml(tmp_path, "[kafk]\n")
    assert refused(path=path) == f"{path}: unknown group [kafk]; did you mean kafka?"
    path = toml(tmp_path, "[http]\nprot = 1\n")
    assert refused(path=path) == f'{path}: unknown setting "http.prot"; did you mean http.port?'
    assert refused(environ={"MTGR_STREAM__HTTP__PROT": "1"}) == (
        "environment: unknown variable MTGR_STREAM__HTTP__PROT; did you mean MTGR_STREAM__HTTP__PORT?"
    )


@pytest.mark.parametrize(
    "override",
    [
        "http.port=-1",
        "http.port=65536",
        "http.port=80.5",
        "http.port=true",
        "http.port=",
        "log.level=verbose",
        "kafka.group_id=",
        "generator.memory_utilization=nan",
        "generator.memory_utilization=0",
        "generator.kv_cache_gib=inf",
        "trigger.min_events=0",
        "topics.lists=a b",
        "topics.lists=" + "x" * 250,
        'topics.lists="a\\n"',
        "state.directory=",
    ],
)
def test_wrong_value_is_refused_with_what_is_right(override: str) -> None:
    """The message names the source, the setting, the value and what would be right."""
    key, _, value = override.partition("=")
    message = refused(override)
    assert message.startswith(f"--set: {key} = ")
    assert ": expected " in message
    assert value[:20].strip('"').split("\\")[0] in message


def test_wrong_value_names_its_file_or_variable(tmp_path: Path) -> None:
    """A value is traced to where it was set."""
    path = toml(tmp_path, '[http]\nport = "80"\n')
    assert refused(path=path) == (
        f'{path}: http.port = "80": expected an integer, at least 0 and at most 65535'
    )
    message = refused(environ={"MTGR_STREAM__LOG__LEVEL": "loud"})
    assert message.startswith(
        'environment variable MTGR_STREAM__LOG__LEVEL: log.level = "loud": expected one of'
    )


@pytest.mark.parametrize(
    "text",
    [
        "[kafka",
        "kafka = 5\n",
        "[[kafka]]\n",
        "a = \x00",
        "[kafka]\ngroup_id = {a = 1}\n",
        "x = " + "[" * 5_000,
    ],
)
def test_broken_file_is_one_line(tmp_path: Path, text: str) -> None:
    """A file that is no TOML, or not of the right shape, is named."""
    path = toml(tmp_path, text)
    assert refused(path=path).startswith(str(path))


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file, a directory and a file that is not text are told apart."""
    assert "No such file" in refused(path=tmp_path / "none.toml")
    assert "directory" in refused(path=tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'[kafka]\ngroup_id = "\xe4"\n')
    assert "not valid TOML" in refused(path=tmp_path / "latin.toml")


def test_variable_that_is_not_utf8_is_refused() -> None:
    """Bytes that no topic or file could hold do not get in by the environment."""
    assert "expected a string" in refused(environ={"MTGR_STREAM__KAFKA__GROUP_ID": "a\udcff"})


@pytest.mark.parametrize("override", ["kafka.group_id", "", "="])
def test_flag_without_a_value_is_refused(override: str) -> None:
    """--set wants group.key=value."""
    assert refused(override).startswith("--set")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            ["trigger.quiet_period_ms=501"],
            ["trigger.quiet_period_ms = 501 (--set)", "max_wait_ms = 500 (default)"],
        ),
        (["kafka.session_timeout_ms=90000"], ["kafka.session_timeout_ms", "kafka.rebalance_timeout_ms"]),
        (
            ["stream.delivery=exactly_once", "stream.transaction_timeout_ms=9999"],
            ["kafka.session_timeout_ms = 10000 (default)", "stream.transaction_timeout_ms = 9999 (--set)"],
        ),
        (["stream.drain_deadline_seconds=61"], ["drain_deadline_seconds", "kafka.rebalance_timeout_ms"]),
        (["stream.max_in_flight_mebibytes=1", "stream.max_event_bytes=1048577"], ["stream.max_event_bytes"]),
        (["kafka.bootstrap_servers=localhost"], ["kafka.bootstrap_servers", "host:port"]),
        (["kafka.bootstrap_servers=a:1,b:x"], ["'b:x'"]),
        (["kafka.bootstrap_servers=a:1,"], ["host:port"]),
        (["kafka.bootstrap_servers=a:70000"], ["host:port"]),
        (["topics.lists=user-events"], ["topics.lists", "topics.events"]),
        (["topics.lists=a.b", "topics.events=a_b"], ["topics.lists", "topics.events"]),
        (["topics.changelog=recommendations"], ["topics.changelog", "topics.lists"]),
        (["topics.events=.."], ["topics.events"]),
        (["kafka.group_id=my group"], ["topics.changelog", "kafka.group_id", "my group-changelog"]),
        (["topics.videos=user-events"], ["topics.videos", "topics.events"]),
        (
            ["generator.strategy=slate", "generator.list_length=65"],
            ["generator.list_length = 65 (--set)", "above 64", "generator.strategy = slate (--set)"],
        ),
        (["generator.kind=server"], ["generator.url"]),
        (["generator.url=http://h:1"], ["generator.url", "generator.kind = vllm"]),
        (["generator.kind=server", "generator.url=h:1"], ["http://host:port"]),
        (["generator.kind=server", "generator.url=http://h:99999"], ["http://host:port"]),
        (["kafka.security_protocol=SASL_SSL"], ["kafka.sasl_mechanism"]),
        (["kafka.sasl_username=me"], ["kafka.sasl_username", "SASL_PLAINTEXT"]),
        (SASL, ["kafka.sasl_password", "sasl_password_file"]),
        ([*SASL, "kafka.sasl_password_file=/none/here"], ["sasl_password_file", "No such file"]),
        (
            [*SASL, "kafka.sasl_password=a", "kafka.sasl_password_file=b"],
            ["contradicts", "sasl_password_file"],
        ),
        (["kafka.ssl_ca_location=/etc/hosts"], ["kafka.ssl_ca_location", "SSL"]),
        (
            ["kafka.security_protocol=SSL", "kafka.ssl_ca_location=/none/here"],
            ["kafka.ssl_ca_location", "no such file"],
        ),
        (TOKEN, ["kafka.sasl_oauthbearer_token_file", "kafka.sasl_oauthbearer_provider", "OAUTHBEARER"]),
        ([*TOKEN, "kafka.sasl_username=me"], ["kafka.sasl_username", "not used with"]),
        (
            [*TOKEN, "kafka.sasl_oauthbearer_token_file=t", "kafka.sasl_oauthbearer_provider=a.b:c"],
            ["kafka.sasl_oauthbearer_token_file", "contradicts"],
        ),
        (["kafka.sasl_oauthbearer_provider=a:b"], ["kafka.sasl_oauthbearer_provider", "SASL_PLAINTEXT"]),
        (
            [*SASL, "kafka.sasl_password=p", "kafka.sasl_oauthbearer_provider=a:b"],
            ["kafka.sasl_oauthbearer_provider", "OAUTHBEARER only"],
        ),
        (
            ["kafka.security_protocol=SSL", "kafka.ssl_certificate_location=/etc/hosts"],
            ["kafka.ssl_key_location", "kafka.ssl_certificate_location = /etc/hosts"],
        ),
        (
            ["kafka.security_protocol=SSL", "kafka.ssl_key_location=/etc/hosts"],
            ["kafka.ssl_key_location", "kafka.ssl_certificate_location"],
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: list[str], named: list[str]) -> None:
    """Where two settings do not go together, both are named with where they come from."""
    message = refused(*overrides)
    assert all(part in message for part in named), message


@pytest.mark.parametrize("servers", ["a:9092", "a:1, b:2", "[::1]:9092", "10.0.0.1:65535"])
def test_lists_of_brokers(servers: str) -> None:
    """One broker or several, by name or by address of either kind."""
    assert load_settings(None, {}, [f"kafka.bootstrap_servers={servers}"]).kafka.bootstrap_servers == servers


def test_changelog_topic_follows_the_group() -> None:
    """Two groups on one topic of events keep their states apart by default."""
    assert load_settings(None, {}, ["kafka.group_id=a"]).changelog_topic == "a-changelog"
    assert Settings(topics=TopicSettings(changelog="c")).changelog_topic == "c"


def test_checkpoint_is_required_by_those_who_need_it() -> None:
    """A command that runs the model says how to name one; the others do not care."""
    with pytest.raises(InputError, match=r"model\.checkpoint is not set: .*--set model\.checkpoint="):
        Settings().require_checkpoint()
    assert load_settings(None, {}, ["model.checkpoint=m"]).require_checkpoint() == Path("m")


SECRET = "hunter2-" + "x" * 8


def test_secret_is_never_shown(tmp_path: Path) -> None:
    """No way of printing settings, and no message about them, shows the password; only `reveal` gives it."""
    settings = load_settings(None, {"MTGR_STREAM__KAFKA__SASL_PASSWORD": SECRET}, SASL)
    assert settings.kafka.sasl_password is not None
    assert settings.kafka.sasl_password.reveal() == SECRET
    for shown in (str(settings), repr(settings), render(settings), f"{settings.kafka.sasl_password}"):
        assert SECRET not in shown
    messages = [
        refused(f"kafka.sasl_password={SECRET}"),
        refused(*SASL, f"kafka.sasl_password={SECRET}", f"kafka.sasl_password_file={tmp_path}"),
        refused(path=toml(tmp_path, f"[kafka.sasl_password]\nx = '{SECRET}'\n")),
        refused(path=toml(tmp_path, f"[kafka]\nsasl_password = ['{SECRET}']\n")),
        refused(environ={"MTGR_STREAM__KAFKA__SASL_PASSWORD": SECRET + "\0"}),
        refused(f"kafka.sasl_password:{SECRET}"),
        refused("generator.kind=server", f"generator.url=http://me:{SECRET}@h:1"),
    ]
    assert not [message for message in messages if SECRET in message]


@pytest.mark.parametrize("password", ["12345", "'quoted'", '"a"', "true", "a # b", " blank "])
def test_secret_in_the_environment_is_taken_as_it_stands(password: str) -> None:
    """A password is never read as TOML, whatever it looks like."""
    settings = load_settings(None, {"MTGR_STREAM__KAFKA__SASL_PASSWORD": password}, SASL)
    assert settings.kafka.sasl_password == Secret(password)


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_secret_from_a_file(tmp_path: Path, ending: str) -> None:
    """A mounted secret is read without its line end, and the file, not the password, is printed."""
    file = tmp_path / "password"
    file.write_bytes((SECRET + ending).encode())
    settings = load_settings(None, {}, [*SASL, f"kafka.sasl_password_file={file}"])
    assert settings.kafka.sasl_password == Secret(SECRET)
    assert load_settings(toml(tmp_path, render(settings)), {}, ()) == settings


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb\n", b"\xff"])
def test_file_that_holds_no_password_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty file, several lines or bytes that are not text are a mistake."""
    (tmp_path / "password").write_bytes(content)
    message = refused(*SASL, f"kafka.sasl_password_file={tmp_path / 'password'}")
    assert message.startswith("kafka.sasl_password_file = ")


def test_secrets_compare_and_travel() -> None:
    """A secret is a value: equal by what it holds, fit for a set and for another process."""
    assert Secret("a") == Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1
    assert pickle.loads(pickle.dumps(Secret("a"))) == Secret("a")


def _values(type_: Any) -> st.SearchStrategy[Any]:
    options: list[st.SearchStrategy[Any]] = []
    info = inspect.type_info(type_)
    for part in info.types if isinstance(info, inspect.UnionType) else (info,):
        match part:
            case inspect.LiteralType(values=values):
                options.append(st.sampled_from(values))
            case inspect.IntType(ge=low, le=high):
                options.append(st.integers(low, high))
            case inspect.FloatType(ge=ge, gt=gt, le=high):
                low = gt if ge is None else ge
                options.append(st.floats(low, high, exclude_min=ge is None, allow_nan=False))
            case inspect.StrType(pattern=None):
                options.append(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
            case inspect.StrType():
                options.append(st.text("abcXYZ019._-", min_size=1, max_size=30))
            case inspect.CustomType(cls=cls) if cls is Path:
                options.append(st.text("abc /\\\"'ä\n\t", min_size=1, max_size=10).map(Path))
            case inspect.CustomType():
                options.append(st.text(st.characters(codec="utf-8"), min_size=1, max_size=10).map(Secret))
            case _:
                options.append(st.none())
    return st.one_of(options)


any_settings = st.builds(
    Settings,
    **{
        group.name: st.builds(
            group.type, **{field.name: _values(field.type) for field in structs.fields(group.type)}
        )
        for group in structs.fields(Settings)
    },
)


@given(any_settings)
def test_printed_settings_are_valid_toml_of_the_same_values(settings: Settings) -> None:
    """What --print-config prints is TOML that holds every setting, whatever characters are in it, but no secret."""
    printed = tomllib.loads(render(settings))
    for group in structs.fields(Settings):
        for field in structs.fields(group.type):
            value = getattr(getattr(settings, group.name), field.name)
            shown = printed[group.name].get(field.name)
            if isinstance(value, Secret):
                assert shown in {"********", None}
            else:
                assert shown == (str(value) if isinstance(value, Path) else value)


@given(settings=any_settings)
def test_printed_settings_load_again(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The printed settings are a settings file that means the same."""
    plain = structs.replace(
        settings, kafka=KafkaSettings(), topics=TopicSettings(), generator=GeneratorSettings()
    )
    waits = sorted((plain.trigger.quiet_period_ms, plain.trigger.max_wait_ms))
    consistent = structs.replace(
        plain,
        trigger=structs.replace(plain.trigger, quiet_period_ms=waits[0], max_wait_ms=waits[1]),
        stream=structs.replace(
            plain.stream,
            drain_deadline_seconds=min(plain.stream.drain_deadline_seconds, 60.0),
            transaction_timeout_ms=max(plain.stream.transaction_timeout_ms, 10_000),
            max_event_bytes=min(plain.stream.max_event_bytes, plain.stream.max_in_flight_mebibytes << 20),
        ),
    )
    path = tmp_path_factory.getbasetemp() / "printed.toml"
    path.write_text(render(consistent), encoding="utf-8", newline="")
    assert load_settings(path, {}, ()) == consistent


def test_printed_settings_explain_themselves() -> None:
    """What --print-config prints can be edited without a manual: each setting, set or not, under its sentence."""
    printed = render(Settings())
    for group in structs.fields(Settings):
        table = printed.partition(f"[{group.name}]")[2]
        for field in structs.fields(group.type):
            assert re.search(rf"^# \S.{{15,}}\n(# )?{field.name} =", table, re.MULTILINE), field.name
    assert "\n# changelog =\n" in printed


@pytest.fixture
def command() -> click.Command:
    """A command that takes settings and an option of its own."""

    @click.command()
    @settings_options
    @click.option("--loud", is_flag=True)
    def example(settings: Settings, loud: bool) -> None:
        click.echo(f"{settings.kafka.group_id} {loud}")

    return example


def test_commands_take_settings_from_options(
    command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--config and --set reach the command as one loaded value, beside its own options."""
    path = toml(tmp_path, '[kafka]\ngroup_id = "file"\n')
    monkeypatch.setenv("MTGR_STREAM__KAFKA__CLIENT_ID", "c")
    run = CliRunner().invoke
    assert run(command, []).output == "mtgr-stream False\n"
    assert run(command, ["--config", str(path), "--loud"]).output == "file True\n"
    assert run(command, ["-c", str(path), "--set", "kafka.group_id=flag"]).output == "flag False\n"


def test_print_config_prints_and_does_nothing_else(command: click.Command) -> None:
    """--print-config shows what is in force, as TOML, and the command does not run."""
    result = CliRunner().invoke(command, ["--print-config", "--set", "kafka.group_id=flag"])
    assert result.exit_code == 0
    assert tomllib.loads(result.output)["kafka"]["group_id"] == "flag"
