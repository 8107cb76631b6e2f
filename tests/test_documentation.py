"""What README and docs name is there: files, commands, options, settings, make targets, permissions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from stream.cli import cli
from stream.permissions import daemon_permissions
from stream.settings import Settings, load_settings
from stream.transactions import transactional_ids_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GROUPS = Settings.__struct_fields__


def pages(pattern: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Every place where a pattern stands in the documents, with the document's name."""
    for page in PAGES:
        for match in re.finditer(pattern, page.read_text(), re.MULTILINE):
            yield page.name, match


def test_links_lead_somewhere() -> None:
    """Every link to a file of this repository, and every test that is named, is there."""
    linked = [
        (page, target[1])
        for page, target in pages(r"\]\((?!https?:)([^)#\s]+)")
        if not ((ROOT if page == "README.md" else ROOT / "docs") / target[1]).exists()
    ]
    named = [
        (page, path[0])
        for page, path in pages(
            r"(?<![\w/])(?:tests|docs|mtgr|stream|schemas|docker)/[\w/.-]+\.(?:py|md|yaml)"
        )
        if not (ROOT / path[0]).exists()
    ]
    assert not linked + named


def test_make_targets_that_are_named_exist() -> None:
    """`make test` and its like are in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {(page, target[1]) for page, target in pages(r"(?:`|^|&& )make ([a-z-]+)")}
    assert named
    assert not [(page, target) for page, target in named if target not in targets]


def test_settings_that_are_named_exist() -> None:
    """`kafka.group_id` and its like are settings."""
    known = {
        f"{group}.{key}" for group in GROUPS for key in type(getattr(Settings(), group)).__struct_fields__
    }
    named = {
        (page, match[1])
        for page, match in pages(rf"`((?:{'|'.join(GROUPS)})\.[a-z_]+)(?:`| =|=)")
        if match[1]
    }
    assert len(named) > 20
    others = {"trigger.offset", "model.safetensors"}  # a list's field, a checkpoint's file
    modules = {f"stream.{path.stem}" for path in (ROOT / "stream").glob("*.py")}
    assert not [(page, name) for page, name in named if name not in known | others | modules]


def test_commands_and_options_that_are_named_exist() -> None:
    """Every `mtgr-stream` command line in the documents is one that this version takes."""
    unknown = []
    inline = list(pages(r"`mtgr-stream ([a-z]+\b[^`\n|#]*)"))
    for page, block in pages(r"^```\n((?:.|\n)*?)^```"):
        inline += [
            (page, line) for line in re.finditer(r"^mtgr-stream ([a-z]+\b[^\n#]*)", block[1], re.MULTILINE)
        ]
    for page, line in inline:
        command: click.Command = cli
        words = line[1].split()
        context = click.Context(cli)
        while words and isinstance(command, click.Group):
            if words[0] not in command.list_commands(context):
                unknown.append((page, line[0]))
                break
            found = command.get_command(context, words[0])
            assert found is not None
            command, words = found, words[1:]
        else:
            options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
            unknown += [
                (page, line[0])
                for word in words
                if word.startswith("--") and word.split("=")[0] not in options
            ]
    assert not unknown


def test_the_readme_lists_every_command() -> None:
    """The README's table of commands is complete."""
    table = (ROOT / "README.md").read_text().partition("| command | does |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert set(re.findall(r"`([a-z]+)`", " ".join(rows))) == set(cli.list_commands(click.Context(cli)))


def test_settings_files_that_are_shown_are_valid() -> None:
    """Each block of TOML is a settings file as it stands."""
    blocks = [block for _, block in pages(r"^```toml\n((?:.|\n)*?)^```")]
    assert len(blocks) >= 2
    for block in blocks:
        assignments = []
        group = ""
        for line in block[1].splitlines():
            if heading := re.match(r"\[(\w+)\]", line):
                group = heading[1]
            elif line.strip():
                key, _, value = line.partition(" = ")
                if not key.endswith(("_file", "_location")):  # which must be there to be read
                    assignments.append(f"{group}.{key}={value}")
        if any("sasl_username" in one for one in assignments):
            assignments.append("kafka.sasl_password=word")
        load_settings(None, {}, assignments)


@pytest.mark.parametrize("videos", [None, "videos"])
def test_the_list_of_permissions_is_the_daemons_own(videos: str | None) -> None:
    """docs/security.md lists what the daemon asks for, no more and no less."""
    page = (ROOT / "docs/security.md").read_text()
    table = page.partition("| resource | operations |\n|---|---|\n")[2].partition("\n\n")[0]
    listed: dict[str, set[str]] = {}
    for row in table.splitlines():
        resource, operations = (cell.strip() for cell in row.strip("|").split("|"))
        names = re.findall(r"`([^`]+)`", resource)
        if resource.startswith("transactional"):
            assert names[0] == transactional_ids_of("recommendations")
            continue
        name = "videos" if names[0] == "topics.videos" else names[0]
        listed[f"{resource.split()[0]} {name}"] = set(operations.split(", "))
    changes = ["kafka.group_id=recommendations", *([f"topics.videos={videos}"] if videos else [])]
    needed: dict[str, set[str]] = {}
    for one in daemon_permissions(load_settings(None, {}, changes)):
        needed.setdefault(f"{one.resource} {one.name}", set()).add(one.operation)
    if videos is None:
        del listed["topic videos"]
    assert listed == needed
