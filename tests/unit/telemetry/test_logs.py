"""Log lines: their form, and the rules that every call of a logger keeps."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.instants import parse_instant_ms
from payswitch.local.screen import Screen
from payswitch.telemetry import logs
from tests.documented import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "logs.md"
FIELDS = {
    *("address", "by", "entry", "error", "function", "host", "job", "keys", "payment", "percent"),
    *("port", "processor", "queue", "reason", "risk", "state", "variables", "what"),
}
"""What a line may have beside its wording: nothing of a payment but its id."""


@dataclass(frozen=True)
class Call:
    """A call of a logger in the source."""

    where: str
    level: str
    arguments: list[ast.expr]

    @property
    def wording(self) -> Any:
        return ast.literal_eval(self.arguments[0])

    @property
    def fields(self) -> set[str]:
        """The keys of the dict after the wording."""
        [values] = self.arguments[1:] or [ast.Dict([], [])]
        assert isinstance(values, ast.Dict), self.where
        return {ast.literal_eval(key) for key in values.keys if key is not None}


def calls() -> Iterator[Call]:
    """All calls of loggers but those of the chaos run, which is no part."""
    paths = [*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "workers").glob("*.py")]
    for path in sorted(path for path in paths if "chaos" not in path.parts):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="logger" | "_logger"))):
                    assert isinstance(node.func, ast.Attribute)
                    level = "error" if node.func.attr == "exception" else node.func.attr
                    yield Call(f"{path.name}:{node.lineno}", level, node.args)


CALLS = list(calls())


def record(wording: object, *values: object, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("payswitch.x", level, "x.py", 1, str(wording), values, None)


def parsed(line: str) -> dict[str, Any]:
    assert line.isascii()
    assert line.isprintable()
    document = json.loads(line)
    assert isinstance(document, dict)
    return document


def written(*configuration: str, program: str) -> list[str]:
    """What a process of its own writes to standard error."""
    start = "import logging\nfrom payswitch.telemetry import logs\n"
    source = f"{start}logs.configure{configuration}\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


# The rules.


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.where)
def test_a_line_is_a_constant_wording_and_the_values_that_it_names(call: Call) -> None:
    assert isinstance(call.wording, str)
    assert set(re.findall(r"%\((\w+)\)", call.wording)) == call.fields
    assert call.wording == call.wording.strip()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.where)
def test_a_line_has_nothing_of_a_payment_but_its_id(call: Call) -> None:
    assert call.fields <= FIELDS


def test_the_document_lists_every_event_with_its_level() -> None:
    rows = re.findall(r"^\| (\w+) \| `(.+?)` \|", DOCUMENT.read_text(), re.MULTILINE)
    events = [row for row in rows if row[0] in {call.level for call in CALLS}]
    assert len(set(events)) == len(events)
    granians = ("error", "Application callable raised an exception")
    assert set(events) == {granians, *((call.level, call.wording) for call in CALLS)}


# JSON.


def test_a_json_line_has_the_wording_and_its_values() -> None:
    line = logs.JsonFormatter("worker").format(
        record("dead letter: %(payment)s: %(reason)s", {"payment": "a-b", "reason": "refused"})
    )
    document = parsed(line)
    assert abs(parse_instant_ms(document.pop("time")) / 1000 - record("").created) < 60
    assert document.pop("pid") > 0
    assert document == {
        "level": "info",
        "part": "worker",
        "logger": "payswitch.x",
        "message": "dead letter: a-b: refused",
        "event": "dead letter: %(payment)s: %(reason)s",
        "payment": "a-b",
        "reason": "refused",
    }


def test_a_value_takes_no_field_of_the_line_itself() -> None:
    fields = {"level": "none", "message": "none", "other": "some"}
    document = parsed(logs.JsonFormatter("worker").format(record("%(level)s", fields)))
    assert (document["level"], document["message"], document["other"]) == ("info", "none", "some")
    assert document["event"] == "%(level)s"


def test_the_lines_of_others_are_json_as_well() -> None:
    document = parsed(logs.JsonFormatter("worker").format(record("job %s expired", "a-b")))
    assert (document["message"], document["event"]) == ("job a-b expired", "job %s expired")


def test_a_traceback_is_in_the_line() -> None:
    lines = written(
        *("info", "json", "worker"),
        program="try: 1 / 0\nexcept Exception: logging.exception('it failed')",
    )
    [document] = map(parsed, lines)
    assert document["message"] == "it failed"
    assert document["exception"].startswith("Traceback")
    assert document["exception"].endswith("ZeroDivisionError: division by zero")


def test_what_ends_the_process_is_in_the_line() -> None:
    [document] = map(parsed, written("info", "json", "worker", program="1 / 0"))
    assert (document["level"], document["part"]) == ("critical", "worker")
    assert "ZeroDivisionError" in document["exception"]


def test_a_warning_of_python_is_in_the_line() -> None:
    program = "import warnings; warnings.warn('beware')"
    [document] = map(parsed, written("info", "json", "worker", program=program))
    assert (document["level"], document["logger"]) == ("warning", "py.warnings")
    assert "beware" in document["message"]


@given(text=st.text(), value=st.one_of(st.text(), st.integers(), st.binary()))
def test_whatever_is_logged_is_one_line_of_json(text: str, value: object) -> None:
    made = record("%(reason)s: %(entry)r", {"reason": text, "entry": value})
    document = parsed(logs.JsonFormatter("worker").format(made))
    assert document["reason"] == text
    assert document["message"] == f"{text}: {value!r}"


@given(text=st.text(st.characters(categories=["Cs"]), min_size=1))
def test_what_no_encoding_knows_is_json_too(text: str) -> None:
    assert parsed(logs.JsonFormatter("worker").format(record("%(error)s", {"error": text})))


# Text.


@given(text=st.text())
def test_whatever_is_logged_is_one_printable_line_of_text(text: str) -> None:
    line = logs.TextFormatter().format(record("redis is away: %(error)s", {"error": text}))
    assert line.isprintable()
    assert re.match(r"\d\d:\d\d:\d\d INFO    redis is away: ", line)


def test_a_traceback_follows_its_line_and_moves_no_cursor() -> None:
    lines = written(
        *("info", "text", "worker"),
        program="try: raise ValueError('\\x1b[2J')\nexcept ValueError: logging.exception('failed')",
    )
    assert lines[0].endswith("ERROR   failed")
    assert lines[-1] == r"ValueError: \x1b[2J"


def test_granians_traceback_follows_its_line() -> None:
    lines = written(
        *("info", "text", "ingress"),
        program="logging.getLogger('_granian.x').error("
        "'it raised\\nTraceback (most recent call last):\\n  File 1\\nValueError: \\x1b[2J')",
    )
    assert lines[0].endswith("ERROR   it raised")
    assert lines[1:] == ["Traceback (most recent call last):", "  File 1", r"ValueError: \x1b[2J"]


# Levels.


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("debug", ["d", "i", "w", "e", "arq w", "arq e"]),
        ("info", ["i", "w", "e", "arq w", "arq e"]),
        ("warning", ["w", "e", "arq w", "arq e"]),
        ("error", ["e", "arq e"]),
    ],
)
def test_the_level_holds_for_us_and_for_arq(level: str, seen: list[str]) -> None:
    program = """
for name, prefix in (("payswitch.x", ""), ("arq.worker", "arq ")):
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(name), level)(prefix + level[0])
"""
    lines = written(level, "json", "worker", program=program)
    assert [parsed(line)["message"] for line in lines] == seen


# The screen of `payswitch up`.


def test_the_screen_names_the_part_in_each_json_line() -> None:
    stream = io.StringIO()
    screen = Screen(stream, ["worker-1", "redis"], as_json=True)
    line = logs.JsonFormatter("worker").format(record("redis is back"))
    screen.lines("worker-1", [line])
    screen.lines("redis", ["Ready to accept connections", "[1]", '{"half": '])
    screen.say("stopping")
    documents = [parsed(line) for line in stream.getvalue().splitlines()]
    assert documents[0] == parsed(line) | {"part": "worker-1"}
    for document, text in zip(
        documents[1:], ["Ready to accept connections", "[1]", '{"half": ', "stopping"], strict=True
    ):
        assert document["message"] == text
        assert parse_instant_ms(document["time"]) > 0
    assert [document["part"] for document in documents[1:]] == ["redis"] * 3 + ["payswitch"]


def test_the_screen_has_text_as_it_is() -> None:
    stream = io.StringIO()
    Screen(stream, ["redis"]).lines("redis", ['{"a": 1}'])
    assert stream.getvalue() == 'redis     | {"a": 1}\n'
