"""What holds of every command: its help has an example that can be parsed, and the reference
(docs/commands.md) names it with all its options."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from payswitch.cli.arguments import signed
from payswitch.cli.main import main
from tests.commands import examples, parse, walk
from tests.documented import REPOSITORY

COMMANDS = dict(walk())
REFERENCE = (REPOSITORY / "docs" / "commands.md").read_text()
SECTIONS = {
    tuple(words.split()): text
    for words, text in re.findall(
        r"^##+ `payswitch ?([a-z -]*)`\n(.*?)(?=^##|\Z)", REFERENCE, re.MULTILINE | re.DOTALL
    )
}

every_command = pytest.mark.parametrize(
    "path", COMMANDS, ids=lambda path: " ".join(path) or "payswitch"
)


@every_command
def test_its_help_has_an_example_that_can_be_parsed(path: tuple[str, ...]) -> None:
    ended = CliRunner().invoke(main, [*path, "--help"], prog_name="payswitch")
    assert ended.exit_code == 0
    found = examples(ended.output)
    assert found
    for example in found:
        assert parse(example)[: len(path)] == path


@every_command
def test_its_help_says_what_it_does_in_a_line_of_the_list(path: tuple[str, ...]) -> None:
    assert COMMANDS[path].get_short_help_str(200).endswith((".", "..."))


@every_command
def test_the_reference_has_a_section_with_all_its_options(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    options = {
        option
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    named = set(re.findall(r"`(--?[a-z-]+)", SECTIONS[path]))
    assert named == options


def test_the_reference_names_no_command_that_there_is_not() -> None:
    assert SECTIONS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("block", re.findall(r"^\$ payswitch (.+)$", REFERENCE, re.MULTILINE))
def test_what_the_reference_says_to_run_can_be_parsed(block: str) -> None:
    [example] = examples(f"Example: payswitch {block}")
    parse(example)


@pytest.mark.parametrize("user", ["m\udcfcller", "x" * 300, "\x1b[2J"])
def test_a_users_name_that_can_not_be_written_keeps_nobody_from_ordering(
    monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    monkeypatch.setenv("LOGNAME", user)

    @click.command()
    @signed
    def order(by: str, reason: str | None) -> None:
        click.echo(by)

    ended = CliRunner().invoke(order, [])
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert ended.stdout.strip().isprintable()
