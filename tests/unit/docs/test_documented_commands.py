"""No page shows a command that nobody runs, unless it says here why."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from tests.commands import parse
from tests.documented import (
    ELSEWHERE,
    NOT_RUN,
    REPOSITORY,
    SCENES,
    Command,
    beside_the_blocks,
    commands,
    pages,
)

COMMANDS = [command for page in pages() for command in commands(page)]
MAKEFILE = (REPOSITORY / "Makefile").read_text()

every_page = pytest.mark.parametrize("page", pages())


def words(line: str) -> list[str]:
    """A shell's words of a command, without comments, continuations and what is piped elsewhere."""
    lexer = shlex.shlex(line.replace("\\\n", " "), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    found: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;<>"):
            break
        found.append(word)
    return found


def lines_with(*begin: str) -> list[str]:
    """The pages' commands that begin so, whatever variables stand before."""
    return [
        command.line
        for command in COMMANDS
        if re.match(rf"(?:[A-Z_]+=\S* )*{re.escape(' '.join(begin))}\b", command.line)
    ]


@every_page
def test_every_command_of_a_page_is_run_or_says_why_not(page: str) -> None:
    nobody = [
        command.line
        for command in commands(page)
        if page not in ELSEWHERE and page not in SCENES and command.reason is None
    ]
    assert nobody == [], "give the page a scene, or name a test or a reason in tests/documented.py"


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items())
def test_a_test_that_runs_a_page_reads_it(page: str, test: str) -> None:
    assert page.rpartition("/")[2] in (REPOSITORY / test).read_text()


@pytest.mark.parametrize(
    ("page", "start"), [(page, start) for page, reasons in NOT_RUN.items() for start in reasons]
)
def test_every_reason_is_still_needed(page: str, start: str) -> None:
    assert page not in ELSEWHERE
    assert [command for command in commands(page) if command.line.startswith(start)]


@pytest.mark.parametrize("page", SCENES)
def test_every_scene_has_a_command_to_run(page: str) -> None:
    assert [command for command in commands(page) if command.reason is None]


@every_page
def test_a_command_stands_in_a_block_of_its_kind(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    assert len(re.findall(r"^ *```console$", text, re.M)) == len(
        re.findall(r"^ *```console\n *\$ ", text, re.M)
    )
    assert not re.search(r"^\s*\$ ", beside_the_blocks(page), re.MULTILINE)


@pytest.mark.parametrize("line", lines_with("payswitch"))
def test_a_command_of_payswitch_can_be_parsed(line: str) -> None:
    given = words(line)
    parse(given[given.index("payswitch") + 1 :])


@pytest.mark.parametrize("line", lines_with("make"))
def test_a_target_of_make_is_there(line: str) -> None:
    target = words(line)[1]
    assert re.search(rf"^{re.escape(target)}\b.*:", MAKEFILE, re.MULTILINE) or re.search(
        rf"^[a-z -]*\b{re.escape(target)}\b[a-z -]*:", MAKEFILE, re.MULTILINE
    )


@pytest.mark.parametrize("line", lines_with("docker", "compose"))
def test_a_command_of_compose_names_files_and_services_that_there_are(line: str) -> None:
    given = words(line)[2:]
    name = "compose.yaml"
    if given[0] == "-f":
        _, name, *given = given
    services = yaml.safe_load((REPOSITORY / name).read_text())["services"]
    match given:
        case ["run", "--rm", service, *arguments]:
            assert service in services
            parse(arguments)
        case ["up", *_]:
            pass
        case _:
            pytest.fail(f"unknown: {given}")


def test_a_command_is_read_with_its_continuation_and_what_it_shows() -> None:
    [first, *_] = [each for each in commands("docs/simulator.md") if "faults" in each.line]
    assert first.line.count("\n") == 1
    assert first.shown.startswith('{"config":"faults"')
    assert isinstance(first, Command)
