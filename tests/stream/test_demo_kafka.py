"""Which Kafka is taken, and what is said where there is none."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mtgr.errors import InputError
from stream.demo.broker import broker_properties, container_environment, free_port
from stream.demo.kafka import local_kafka
from stream.demo.maven_broker import find_java, kafka_jars


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A path without any program, in an empty working directory; returns the folder of the path."""
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "JAVA_HOME"):
        monkeypatch.delenv(name, raising=False)
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.chdir(tmp_path)
    return programs


def _program(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def test_given_servers_are_taken_as_they_are(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KAFKA_BOOTSTRAP_SERVERS goes before everything, and nothing is started."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "one:9092,two:9092")
    said: list[str] = []
    with local_kafka(bare_machine / "kafka", said.append) as servers:
        assert servers == "one:9092,two:9092"
    assert said == ["Kafka at one:9092,two:9092, from KAFKA_BOOTSTRAP_SERVERS"]
    assert not (bare_machine / "kafka").exists()


def test_machine_without_docker_and_java_is_told_what_is_missing(bare_machine: Path) -> None:
    """One sentence names both things that are missing and the three ways out."""
    with pytest.raises(InputError) as error, local_kafka(bare_machine / "kafka", print):
        pass
    assert str(error.value) == (
        "no Kafka: Docker is not installed, and Java 17 or later is not installed. "
        "Start Docker, or install Java 17 or later and Maven, or set KAFKA_BOOTSTRAP_SERVERS"
    )


def test_silent_engine_old_java_and_failing_maven_are_named(bare_machine: Path) -> None:
    """What is there but of no use is told apart from what is not installed."""
    _program(bare_machine, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    _program(bare_machine, "java", """echo 'openjdk version "11.0.2" 2019-01-15' >&2""")
    with pytest.raises(InputError, match=r"no Docker engine answers, and .*11\.0\.2.* not 17 or later"):
        local_kafka(bare_machine / "kafka", print).__enter__()
    _program(bare_machine, "java", """echo 'openjdk version "21.0.1" 2023-10-17' >&2""")
    with pytest.raises(InputError, match=r"Maven \(mvn\) is not installed"):
        local_kafka(bare_machine / "kafka", print).__enter__()
    _program(bare_machine, "mvn", "echo '[ERROR] Could not transfer artifact'; exit 1")
    with pytest.raises(InputError, match=r"Maven could not fetch Kafka 4.*Could not transfer artifact"):
        local_kafka(bare_machine / "kafka", print).__enter__()


def test_engine_without_the_image_is_asked_to_pull_it(bare_machine: Path) -> None:
    """An image that cannot be pulled is named with the engine's own reason."""
    _program(
        bare_machine,
        "docker",
        'case "$1" in version) exit 0;; image) exit 1;; pull) echo "no such host" >&2; exit 1;; esac',
    )
    said: list[str] = []
    with pytest.raises(InputError, match=r"no image apache/kafka:\S+ and cannot pull it \(no such host\)"):
        local_kafka(bare_machine / "kafka", said.append).__enter__()
    assert said[0].startswith("pulling apache/kafka:")


def test_java_home_goes_before_the_path(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Java that the user has named is the one that runs Kafka."""
    home = bare_machine / "jdk"
    (home / "bin").mkdir(parents=True)
    for folder in (bare_machine, home / "bin"):
        _program(folder, "java", """echo 'openjdk version "17.0.15" 2025-04-15' >&2""")
    assert find_java() == str(bare_machine / "java")
    monkeypatch.setenv("JAVA_HOME", str(home))
    assert find_java() == str(home / "bin" / "java")


def test_jars_that_are_there_are_not_fetched_again(bare_machine: Path) -> None:
    """Maven fills the folder once; without Maven it is still of use."""
    _program(
        bare_machine,
        "mvn",
        'for word in "$@"; do case "$word" in -DoutputDirectory=*) /bin/mkdir -p "${word#*=}";; esac; done',
    )
    jars = kafka_jars(Path(".kafka"))
    assert jars.is_absolute()
    assert jars.is_dir()
    (bare_machine / "mvn").unlink()
    assert kafka_jars(Path(".kafka")) == jars


def test_ports_are_below_those_of_outgoing_connections() -> None:
    """A client that reconnects to a stopped broker can never hold the broker's own port."""
    ports = {free_port() for _ in range(50)}
    assert all(20_000 <= port < 32_768 for port in ports)
    with socket.socket() as taken:
        taken.bind(("", ports.pop()))


def test_properties_are_the_same_in_a_container() -> None:
    """Each broker property becomes the variable by which the image takes it."""
    properties = broker_properties(
        listen="0.0.0.0:9092", controller="localhost:9093", advertised="127.0.0.1:21000"
    )
    variables = container_environment(properties)
    assert variables["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://127.0.0.1:21000"
    assert variables["KAFKA_CONTROLLER_QUORUM_VOTERS"] == "1@localhost:9093"
    assert variables["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert {key.removeprefix("KAFKA_") for key in variables} >= {
        key.upper().replace(".", "_") for key in properties
    }
