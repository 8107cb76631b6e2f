"""A Kafka broker of the project's Maven artifacts on this machine's Java."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from stream.demo.broker import (
    CLUSTER_ID,
    HEAP_OPTIONS,
    JVM_OPTIONS,
    KAFKA_VERSION,
    KafkaUnavailable,
    broker_properties,
    free_port,
    wait_until_started,
)
from stream.demo.processes import Child, ChildFailed

OLDEST_JAVA: Final = 17
DOWNLOAD_SECONDS: Final = 300
_HERE: Final = Path(__file__).parent


class MavenBroker:
    """A broker that keeps its port and its data over kill(), shut_down() and restart().

    Everything it writes is under `directory`. It dies with the process that made it.
    """

    def __init__(
        self,
        directory: Path,
        jars: Path,
        java: str,
        *,
        changes: Mapping[str, str] | None = None,
        format_options: Sequence[str] = (),
    ) -> None:
        """`changes` stand above the broker's own properties, `format_options` go to Kafka's StorageTool."""
        self._port = free_port()
        self._log = directory / "kafka.log"
        self._properties = directory / "server.properties"
        self._java = [java, "-cp", f"{jars}/*", f"-Dlog4j2.configurationFile={_HERE / 'log4j2.properties'}"]
        properties = broker_properties(
            listen=f"127.0.0.1:{self._port}",
            controller=f"localhost:{free_port()}",
            advertised=f"127.0.0.1:{self._port}",
        )
        directory.mkdir(parents=True, exist_ok=True)
        properties |= {"log.dirs": f"{directory}/data", **(changes or {})}
        self._properties.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        format_storage(self._java, self._properties, format_options)
        self._process = self._start()

    @property
    def bootstrap_servers(self) -> str:
        """Where clients reach the broker, the same over restarts."""
        return f"127.0.0.1:{self._port}"

    def kill(self) -> None:
        """SIGKILL: no clean shutdown; the data stays."""
        self._process.kill()

    def shut_down(self, timeout: float = 30) -> None:
        """SIGTERM, then SIGKILL after the timeout; the data stays."""
        self._process.stop(timeout)

    def restart(self) -> None:
        """Start the same broker again, with its data, after kill() or shut_down()."""
        self._process.kill()
        self._process = self._start()

    def pause(self) -> None:
        """Freeze the broker: its connections stay open and nothing answers."""
        self._process.send(signal.SIGSTOP)

    def unpause(self) -> None:
        """Let a paused broker go on."""
        self._process.send(signal.SIGCONT)

    def output(self) -> str:
        """What the broker has logged since it was last started."""
        return self._process.output()

    def _start(self) -> Child:
        options = [*HEAP_OPTIONS.split(), *JVM_OPTIONS.split()]
        process = Child(
            [*self._java, *options, "kafka.Kafka", str(self._properties)],
            self._log,
            name="Kafka",
            death_signal=signal.SIGKILL,
        )
        try:
            wait_until_started(process)
        except BaseException:
            process.kill()
            raise
        return process


def format_storage(java: Sequence[str], properties: Path, options: Sequence[str] = ()) -> None:
    """Format a broker's storage by Kafka's StorageTool; `java` is the program with its class path.

    Raises ChildFailed with what the tool says.
    """
    tool = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(properties), *options]
    done = subprocess.run(
        [*java, "-Xmx128m", *JVM_OPTIONS.split(), *tool],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ChildFailed(f"Kafka's storage could not be formatted:\n{done.stdout}{done.stderr}")


def find_java() -> str:
    """The program `java`, at least OLDEST_JAVA, from JAVA_HOME or the path; raises KafkaUnavailable."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None)
    if java is None:
        raise KafkaUnavailable(f"Java {OLDEST_JAVA} or later is not installed")
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < OLDEST_JAVA:
        raise KafkaUnavailable(
            f"{java} is {told.splitlines()[0] if told else 'broken'}, not {OLDEST_JAVA} or later"
        )
    return java


def kafka_jars(directory: Path) -> Path:
    """The folder of Kafka's jars under `directory`, filled by Maven if need be; raises KafkaUnavailable."""
    directory = directory.absolute()  # Maven would take it from where the pom is
    jars = directory / f"kafka-{KAFKA_VERSION}"
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailable("Maven (mvn) is not installed")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        filled = Path(scratch) / "jars"
        command = [
            maven,
            "--batch-mode",
            "--quiet",
            "--file",
            str(_HERE / "pom.xml"),
            "dependency:copy-dependencies",
        ]
        command += [
            f"-Dkafka.version={KAFKA_VERSION}",
            "-DincludeScope=runtime",
            f"-DoutputDirectory={filled}",
        ]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=DOWNLOAD_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise KafkaUnavailable(f"Maven did not fetch Kafka in {DOWNLOAD_SECONDS} s") from None
        if done.returncode:
            reason = next((line for line in done.stdout.splitlines() if "ERROR" in line), "it gave no reason")
            raise KafkaUnavailable(f"Maven could not fetch Kafka {KAFKA_VERSION}: {reason}")
        try:
            filled.rename(jars)
        except OSError:
            if not jars.is_dir():  # else another process was first
                raise
    return jars


if __name__ == "__main__":  # for scripts: fetch the jars and tell where they are
    try:
        sys.stdout.write(f"{kafka_jars(Path('.kafka'))}\n")
    except KafkaUnavailable as missing:
        sys.exit(f"no Kafka jars: {missing}")
