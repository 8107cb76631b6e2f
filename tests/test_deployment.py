"""What is shipped beside the code: the image and its compose file give the daemon no more than it needs."""

from __future__ import annotations

import re
import sysconfig
import tomllib
from importlib.metadata import distributions

import pytest
from composed import COMPOSE, OURS, ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from stream.commands.serve import command as serve_command
from stream.settings import HttpSettings


def test_the_image_runs_as_nobody_in_particular() -> None:
    """The last stage ends with a user by number, which is not root, and nothing after it takes root back."""
    final = (ROOT / "docker/Dockerfile").read_text().rpartition("\nFROM ")[2]
    users = re.findall(r"^USER (.+)$", final, re.MULTILINE)
    assert users == ["10001:10001"]
    written = re.findall(r"--owner=(\w+).* (/\S+)", final)
    assert written == [("mtgr", "/var/lib/mtgr-stream")]
    assert "ADD " not in final


@pytest.mark.parametrize("name", OURS)
def test_our_services_have_a_read_only_root_and_no_capabilities(name: str) -> None:
    """Only the state's volume and a temporary file system can be written, and no process gains a privilege."""
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    for volume in service.get("volumes", []):
        assert volume.endswith(":ro") or volume == "state:/var/lib/mtgr-stream"


def test_ports_are_published_to_this_machine_alone() -> None:
    """No service of the compose file can be reached from the network."""
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(str(port).startswith("127.0.0.1:") for port in ports)


def test_http_endpoints_listen_on_loopback_unless_told_otherwise() -> None:
    """Neither the daemon nor an engine server can be reached from the network by default."""
    assert HttpSettings().host == "127.0.0.1"
    (host,) = [option for option in serve_command.params if option.name == "host"]
    assert host.default == "127.0.0.1"


def test_nothing_reaches_the_image_unnamed() -> None:
    """The build context is a list of what may enter, so that no secret beside the code is copied."""
    lines = (ROOT / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    assert not any("env" in line or "secret" in line for line in lines if line.startswith("!"))


def test_every_dependency_is_pinned_and_installed_as_pinned() -> None:
    """What runs is what was audited: each installed package has the version that constraints.txt names."""
    pinned: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        requirement = Requirement(line)
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], line
        assert requirement.url is None
        pinned.setdefault(canonicalize_name(requirement.name), set()).add(
            next(iter(requirement.specifier)).version
        )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    named += [one for extra in project["project"]["optional-dependencies"].values() for one in extra]
    assert not [one for one in named if canonicalize_name(Requirement(one).name) not in pinned]
    # of the environment alone: setuptools, once imported, puts what it brings for itself on the path
    environment = [sysconfig.get_path("purelib")]
    installed = {canonicalize_name(one.name): one.version for one in distributions(path=environment)}
    installed.pop("setuptools", None)  # which venv may bring itself
    assert not {
        name: version for name, version in installed.items() if version not in pinned.get(name, {version})
    }
