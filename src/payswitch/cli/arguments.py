"""Arguments of several operators' commands."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import click

from payswitch.cli.durations import parse_duration_ms
from payswitch.payments.payment import InvalidPaymentError, parse_correlation_id
from payswitch.text import printable

_DAY_MS = 86_400_000
_LONGEST_DURATION_DAYS = 30
_LONGEST_AGE_DAYS = 3650
_LONGEST_LINE = 200

_Command = TypeVar("_Command", bound=Callable[..., Any])


def parse_id(_: click.Context, __: click.Parameter, text: str) -> str:
    """A payment's id in canonical form. Raises `click.BadParameter`."""
    try:
        return parse_correlation_id(text)
    except InvalidPaymentError:
        raise click.BadParameter(f"{text!r} is no UUID") from None


def parse_ids(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> list[str]:
    """The ids of several payments. Raises `click.BadParameter`."""
    return [parse_id(ctx, param, text) for text in texts]


def parse_duration(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """The ms of a duration such as `1h30m`, from a second to 30 days. Raises
    `click.BadParameter`."""
    return _parse_span(text, _LONGEST_DURATION_DAYS)


def parse_age(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """The ms of an age such as `36h`, from a second to ten years. Raises `click.BadParameter`."""
    return _parse_span(text, _LONGEST_AGE_DAYS)


def _parse_span(text: str | None, longest_days: int) -> int | None:
    if text is None:
        return None
    try:
        ms = parse_duration_ms(text)
    except ValueError:
        ms = 0
    if not 1000 <= ms <= longest_days * _DAY_MS:
        example = "such as 90s or 1h30m"
        raise click.BadParameter(f"{text!r} is no duration from 1s to {longest_days}d, {example}")
    return ms


def parse_line(_: click.Context, __: click.Parameter, text: str | None) -> str | None:
    """A line of text for other operators. Raises `click.BadParameter`."""
    if text is not None and not (text.isprintable() and len(text) <= _LONGEST_LINE):
        raise click.BadParameter(f"up to {_LONGEST_LINE} printable characters are allowed")
    if text is not None and not text.strip():
        raise click.BadParameter("it must not be empty")
    return text


def signed(command: _Command) -> _Command:
    """Add the options `--by` and `--reason` to an act of an operator."""
    return _signed(command, needs_reason=False)


def signed_with_reason(command: _Command) -> _Command:
    """The same, with a reason that must be given."""
    return _signed(command, needs_reason=True)


def _signed(command: _Command, *, needs_reason: bool) -> _Command:
    by = click.option(
        "--by",
        callback=parse_line,
        default=_who,
        show_default=False,
        help="Who orders it. [default: user@host]",
    )
    reason = click.option(
        "--reason", callback=parse_line, required=needs_reason, help="Why, for others to read."
    )
    return by(reason(command))


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"uid {os.getuid()}"
    return printable(f"{user}@{socket.gethostname()}")[:_LONGEST_LINE]
