"""Log lines on standard error, as text for people or as JSON.

A logger is called with a constant wording and a dict of the values named in it, so that JSON has
both; `docs/logs.md` lists the wordings. Of a payment a line holds only the id.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from payswitch.instants import format_instant
from payswitch.text import printable

logger = logging.getLogger(__name__)

_OTHERS = ("arq", "httpx", "httpcore", "asyncio", "urllib3")
_TRACEBACK = "\nTraceback (most recent call last):"


class TextFormatter(logging.Formatter):
    """A line for people, safe for a terminal; a traceback follows."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return _printable_lines(super().formatException(ei))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: the common fields, then the values that the wording names."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        fields = record.args if isinstance(record.args, Mapping) else {}
        document: dict[str, Any] = {
            "time": format_instant(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "part": self._part,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
            "event": str(record.msg),
        }
        exception = self.formatException(record.exc_info) if record.exc_info else record.exc_text
        if exception:
            document["exception"] = exception
        return json_line(document | {k: v for k, v in fields.items() if k not in document})


class _GranianTracebacks(logging.Filter):
    """Moves the traceback that Granian writes into the message to its own field."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("_granian"):
            record.msg, mark, rest = record.getMessage().partition(_TRACEBACK)
            record.args = ()
            record.exc_text = _printable_lines(f"{mark}{rest}".strip()) or None
        return True


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def json_line(document: Mapping[str, Any]) -> str:
    """A JSON object in one line of ASCII."""
    return json.dumps(document, default=str)


def configure(level: str, form: str, part: str) -> None:
    """Write lines from this level on, in this form (`text` or `json`).

    arq and httpx log from warnings on: their lines per job and call would slow the hot path and
    put payments into logs.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_GranianTracebacks())
    handler.setFormatter(JsonFormatter(part) if form == "json" else TextFormatter())
    least = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(handlers=[handler], level=least, force=True)
    logging.captureWarnings(True)
    for name in _OTHERS:
        logging.getLogger(name).setLevel(max(least, logging.WARNING))
    if form == "json":
        sys.excepthook = _log_uncaught


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if not issubclass(kind, Exception):  # such as Ctrl-C
        sys.__excepthook__(kind, error, traceback)
        return
    logger.critical("an error ends this process", exc_info=(kind, error, traceback))
