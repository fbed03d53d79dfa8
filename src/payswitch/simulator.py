"""A payment processor for development and tests: it behaves as the challenge's real processor does.

Statuses, headers and quirks are the real one's, slots and windows included; payments are kept in
memory. `Book` and `HealthWindows` decide without I/O; `Simulator` serves them over HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from http import HTTPStatus
from itertools import accumulate
from math import ceil
from operator import itemgetter, sub
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs

import orjson

from payswitch.simulator_http import Connection, Exchange, Reply, message, reply

RUNNING_SLOTS = 800
WAITING_SLOTS = 500
HEALTH_CALLS_WAITING = 2

_BACKLOG = 4096
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_MAX_AMOUNT = 10**13
_MAX_DELAY_MS = 2**31 - 1
_CENT = Decimal("0.01")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # what the processor shows has no zone
_EARLIEST_US = (datetime.min - _NAIVE_EPOCH) // timedelta(microseconds=1)
_LATEST_US = (datetime.max - _NAIVE_EPOCH) // timedelta(microseconds=1)
_MICROSECOND = timedelta(microseconds=1)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_PROCESSED = message(HTTPStatus.OK, "payment processed successfully")
_FAILING = message(HTTPStatus.INTERNAL_SERVER_ERROR, "the payment processor is failing")
_NO_SLOT = message(HTTPStatus.TOO_MANY_REQUESTS, "too many requests at once", b"Retry-After: 5")
_NOT_FOUND = reply(HTTPStatus.NOT_FOUND)
_UNAUTHORIZED = reply(HTTPStatus.UNAUTHORIZED)
_NO_CONTENT = reply(HTTPStatus.NO_CONTENT)
_PURGED = message(HTTPStatus.OK, "All payments purged.")

_Methods = dict[bytes, Callable[[Exchange], None]]

_logger = logging.getLogger(__name__)


@dataclass
class SimulatorConfig:
    """What a processor is set to. All but `rate_limit_s` may be changed while it runs.

    `fee` is the part of an amount that the processor keeps, `rate_limit_s` the length in seconds
    of the windows that limit calls for its health (0: no limit), `delay_ms` what every payment
    waits, `token` what `X-Rinha-Token` must be on its /admin calls.
    """

    name: str
    fee: Decimal = Decimal("0.05")
    token: str = "123"
    rate_limit_s: float = 5.0
    delay_ms: int = 0
    failing: bool = False

    @classmethod
    def from_environment(cls, name: str, environment: Mapping[str, str]) -> Self:
        """Read the variables that the real processor reads; each has its default.

        They are TRANSACTION_FEE, INITIAL_TOKEN and RATE_LIMIT_SECONDS.

        Raises:
            ValueError: a variable is not a number, negative, or out of all proportion.
        """
        return cls(
            name,
            fee=Decimal(_number(environment, "TRANSACTION_FEE", "0.05")),
            token=environment.get("INITIAL_TOKEN", cls.token),
            rate_limit_s=float(_number(environment, "RATE_LIMIT_SECONDS", "5")),
        )


def _number(environment: Mapping[str, str], variable: str, default: str) -> str:
    text = environment.get(variable, default)
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise ValueError(f"{variable} is not a decimal number: {text!r}")
    return text


class Entry(NamedTuple):
    """A payment as the book has it: the id in lower case, the instant in µs since 1970, UTC."""

    correlation_id: str
    cents: int
    requested_at_us: int


class Totals(NamedTuple):
    """How many payments, and their sum in cents."""

    requests: int
    cents: int


def parse_instant(text: str) -> int:
    """Read an ISO-8601 date, or date and time, in µs since 1970; without a zone it is UTC.

    Raises:
        ValueError: it is none, or lies before the year 1 or after 9999 in UTC.
    """
    if text[10:11] not in ("T", ""):
        raise ValueError("not an ISO-8601 instant")
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    microseconds = (instant - _EPOCH) // _MICROSECOND
    if not _EARLIEST_US <= microseconds <= _LATEST_US:
        raise ValueError("an instant out of range")
    return microseconds


def format_instant(microseconds: int) -> str:
    """Write an instant as the real processor does: UTC without `Z`, no needless zeros."""
    text = (_NAIVE_EPOCH + timedelta(microseconds=microseconds)).isoformat()
    return text.rstrip("0") if "." in text else text


def parse_entry(body: bytes | bytearray) -> Entry:
    """Read the body of a POST /payments. The amount is rounded half up, away from zero.

    That is how the real processor's NUMERIC column rounds; no binary fraction comes between.

    Raises:
        ValueError: it is no JSON object with a UUID, an amount above 0 and an instant.
    """
    fields = _json_object(body)
    correlation_id = fields.get("correlationId")
    if not isinstance(correlation_id, str) or not _UUID.fullmatch(correlation_id):
        raise ValueError("correlationId is not a UUID")
    amount = fields.get("amount")
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise ValueError("amount is not a number")
    if not 0 < amount < _MAX_AMOUNT:
        raise ValueError(f"amount is not above 0 and below {_MAX_AMOUNT}")
    requested_at = fields.get("requestedAt")
    if not isinstance(requested_at, str):
        raise ValueError("requestedAt is not an ISO-8601 instant")
    cents = round(amount * 100)
    if cents / 100 != amount:  # more than two decimals, or more than a float can tell
        exact = Decimal(json.loads(body, parse_float=Decimal)["amount"])
        cents = int(exact.quantize(_CENT, ROUND_HALF_UP).scaleb(2))
    return Entry(correlation_id.lower(), cents, parse_instant(requested_at))


def _json_object(body: bytes | bytearray) -> dict[str, Any]:
    fields = orjson.loads(body)
    if not isinstance(fields, dict):
        raise ValueError("the body is not a JSON object")
    return fields


class Book:
    """The payments that a processor has recorded, and their totals over any window of instants.

    Payments arrive almost in the order of their instants. So recording only appends, and the next
    `totals` merges what came since into running sums: it works on the few that overlap.
    """

    def __init__(self) -> None:
        self.purge()

    def __len__(self) -> int:
        return len(self._payments)

    def purge(self) -> None:
        """Forget every payment."""
        self._payments: dict[str, tuple[int, int]] = {}
        self._cents = 0
        self._unmerged: list[tuple[int, int]] = []
        self._instants: list[int] = []
        self._sums = [0]  # _sums[n] is what the first n of _instants come to

    def record(self, entry: Entry) -> bool:
        """Enter a payment, unless its id is known: then nothing changes and this is False."""
        if entry.correlation_id in self._payments:
            return False
        payment = (entry.requested_at_us, entry.cents)
        self._payments[entry.correlation_id] = payment
        self._unmerged.append(payment)
        self._cents += entry.cents
        return True

    def find(self, correlation_id: str) -> Entry | None:
        """Look a payment up by its id, in upper or lower case."""
        correlation_id = correlation_id.lower()
        payment = self._payments.get(correlation_id)
        if payment is None:
            return None
        requested_at_us, cents = payment
        return Entry(correlation_id, cents, requested_at_us)

    def totals(self, first_us: int | None = None, last_us: int | None = None) -> Totals:
        """Sum up the payments requested from `first_us` to `last_us`, both included.

        If either bound is missing it is all of them: the real processor's rule.
        """
        if first_us is None or last_us is None:
            return Totals(len(self._payments), self._cents)
        self._merge()
        start = bisect_left(self._instants, first_us)
        stop = max(start, bisect_right(self._instants, last_us))
        return Totals(stop - start, self._sums[stop] - self._sums[start])

    def _merge(self) -> None:
        if not self._unmerged:
            return
        keep = bisect_left(self._instants, min(self._unmerged)[0])
        cents = map(sub, self._sums[keep + 1 :], self._sums[keep:])
        tail = sorted([*zip(self._instants[keep:], cents, strict=True), *self._unmerged])
        self._instants[keep:] = map(itemgetter(0), tail)
        self._sums[keep:] = accumulate(map(itemgetter(1), tail), initial=self._sums[keep])
        self._unmerged.clear()


class HealthWindows:
    """Fixed windows of time, back to back from the first call on: one call of each is answered.

    Args:
        length_s: seconds; 0 switches the limit off.
        clock: seconds, never going back.
    """

    def __init__(self, length_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._length_s = length_s
        self._clock = clock
        self._next_at: float | None = None

    def take(self) -> bool:
        """Take the present window's call; False if it is taken already."""
        now = self._clock()
        if self._next_at is None:
            self._next_at = now
        if now < self._next_at:
            return False
        if self._length_s:
            self._next_at += self._length_s * ((now - self._next_at) // self._length_s + 1)
        return True

    def wait_s(self) -> float:
        """Seconds until a call may be taken."""
        return 0.0 if self._next_at is None else max(0.0, self._next_at - self._clock())


class Simulator:
    """A payment processor on the running loop.

    A payment is decided in `_settle` and a health report in `_report_health`, and nowhere else.
    One that was closed may be started again: the book and the settings are kept.
    """

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        self.book = Book()
        self._windows = HealthWindows(config.rate_limit_s)
        self._health_calls: deque[Exchange] = deque()
        self._health_timer: asyncio.TimerHandle | None = None
        self._running: dict[Exchange, asyncio.TimerHandle] = {}
        self._waiting: deque[Exchange] = deque()
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._payment_by_id: _Methods = {b"GET": self._take_slot}
        self._routes: dict[bytes, _Methods] = {
            b"/payments": {b"POST": self._take_slot},
            b"/payments/service-health": {b"GET": self._ask_health},
            b"/admin/payments-summary": {b"GET": self._guarded(self._summary)},
            b"/admin/configurations/token": {b"PUT": self._guarded(self._set_token)},
            b"/admin/configurations/delay": {b"PUT": self._guarded(self._set_delay)},
            b"/admin/configurations/failure": {b"PUT": self._guarded(self._set_failure)},
            b"/admin/purge-payments": {b"POST": self._guarded(self._purge)},
        }

    @property
    def running(self) -> int:
        """How many payments are waiting out their delay: each holds one of `RUNNING_SLOTS`."""
        return len(self._running)

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port: a free one if `port` is 0.

        Raises:
            OSError: the address is taken or not this machine's.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._route, self._connections), host, port, backlog=_BACKLOG
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        _logger.info("processor %s listens on %s:%d", self.config.name, host, bound)
        return bound

    async def close(self) -> None:
        """Stop at once, as a killed process would: payments under way are not recorded."""
        for timer in self._running.values():
            timer.cancel()
        self._running.clear()
        self._waiting.clear()
        self._health_calls.clear()
        if self._health_timer is not None:
            self._health_timer.cancel()
            self._health_timer = None
        if self._server is not None:
            self._server.close()
            for connection in tuple(self._connections):
                connection.abort()
            await self._server.wait_closed()
            self._server = None

    def _route(self, exchange: Exchange) -> None:
        methods = self._routes.get(exchange.path)
        if methods is None and exchange.path.startswith(b"/payments/"):
            methods = self._payment_by_id
        if methods is None:
            exchange.answer(_NOT_FOUND)
        elif exchange.method in methods:
            methods[exchange.method](exchange)
        else:
            allow = b"Allow: " + b", ".join(methods)
            exchange.answer(reply(HTTPStatus.METHOD_NOT_ALLOWED, b"", allow))

    # Payments: a slot, the delay, the outcome.

    def _take_slot(self, exchange: Exchange) -> None:
        if len(self._running) < RUNNING_SLOTS:
            self._begin(exchange)
        elif len(self._waiting) < WAITING_SLOTS:
            self._waiting.append(exchange)
        else:
            exchange.answer(_NO_SLOT)

    def _begin(self, exchange: Exchange) -> None:
        """Serve a request that has a slot; one that ends at once leaves the slot free."""
        if exchange.method == b"GET":
            exchange.answer(self._find(exchange))
            return
        try:
            entry = parse_entry(exchange.body)
        except ValueError as error:
            exchange.answer(message(HTTPStatus.BAD_REQUEST, str(error)))
            return
        if self.config.delay_ms:
            loop = asyncio.get_running_loop()
            delay_s = self.config.delay_ms / 1000
            self._running[exchange] = loop.call_later(delay_s, self._end, exchange, entry)
        else:
            self._settle(exchange, entry)

    def _end(self, exchange: Exchange, entry: Entry) -> None:
        del self._running[exchange]
        self._settle(exchange, entry)
        while self._waiting and len(self._running) < RUNNING_SLOTS:
            self._begin(self._waiting.popleft())

    def _settle(self, exchange: Exchange, entry: Entry) -> None:
        """Decide what becomes of a payment, and tell the client, who may be gone."""
        if self.config.failing:
            exchange.answer(_FAILING)
        elif self.book.record(entry):
            exchange.answer(_PROCESSED)
        else:
            text = f"CorrelationId already exists: {entry.correlation_id}"
            exchange.answer(message(HTTPStatus.UNPROCESSABLE_ENTITY, text))

    def _find(self, exchange: Exchange) -> Reply:
        entry = self.book.find(exchange.path.removeprefix(b"/payments/").decode("latin-1"))
        if entry is None:
            return _NOT_FOUND
        body = (
            f'{{"correlationId":"{entry.correlation_id}","amount":{_decimal(entry.cents)},'
            f'"requestedAt":"{format_instant(entry.requested_at_us)}"}}'
        )
        return reply(HTTPStatus.OK, body.encode())

    # Health.

    def _ask_health(self, exchange: Exchange) -> None:
        self._forget_abandoned_health_calls()
        if not self._health_calls and self._windows.take():
            self._report_health(exchange)
        elif len(self._health_calls) < HEALTH_CALLS_WAITING:
            self._health_calls.append(exchange)
            self._await_window()
        else:
            retry_after = b"Retry-After: %d" % ceil(self.config.rate_limit_s)
            text = "too many calls, try again later"
            exchange.answer(message(HTTPStatus.TOO_MANY_REQUESTS, text, retry_after))

    def _await_window(self) -> None:
        if self._health_timer is None and self._health_calls:
            loop = asyncio.get_running_loop()
            self._health_timer = loop.call_later(self._windows.wait_s(), self._open_window)

    def _open_window(self) -> None:
        self._health_timer = None
        self._forget_abandoned_health_calls()
        if self._health_calls and self._windows.take():
            self._report_health(self._health_calls.popleft())
        self._await_window()

    def _forget_abandoned_health_calls(self) -> None:
        # Unlike a payment, a waiting call gives its place back when its client hangs up.
        self._health_calls = deque(call for call in self._health_calls if not call.abandoned)

    def _report_health(self, exchange: Exchange) -> None:
        """Decide how the processor says that it is, and tell the client."""
        health = {"failing": self.config.failing, "minResponseTime": self.config.delay_ms}
        exchange.answer(reply(HTTPStatus.OK, orjson.dumps(health)))

    # Administration.

    def _guarded(self, administer: Callable[[Exchange], Reply]) -> Callable[[Exchange], None]:
        def handle(exchange: Exchange) -> None:
            if exchange.headers.get(b"x-rinha-token") != self.config.token.encode():
                exchange.answer(_UNAUTHORIZED)
                return
            try:
                outcome = administer(exchange)
            except ValueError as error:
                outcome = message(HTTPStatus.BAD_REQUEST, str(error))
            exchange.answer(outcome)

        return handle

    def _summary(self, exchange: Exchange) -> Reply:
        # A bare + is that of a zone's offset, not a space.
        query = parse_qs(exchange.query.decode("latin-1").replace("+", "%2B"))
        first_us, last_us = (
            parse_instant(query[bound][0]) if bound in query else None for bound in ("from", "to")
        )
        requests, cents = self.book.totals(first_us, last_us)
        body = (
            f'{{"totalRequests":{requests},"totalAmount":{_decimal(cents)},'
            f'"totalFee":{self.config.fee * _decimal(cents):f},'
            f'"feePerTransaction":{self.config.fee:f}}}'
        )
        return reply(HTTPStatus.OK, body.encode())

    def _set_token(self, exchange: Exchange) -> Reply:
        token = _json_object(exchange.body).get("token")
        if not isinstance(token, str) or not token:
            raise ValueError("token is not a text")
        self.config.token = token
        return _NO_CONTENT

    def _set_delay(self, exchange: Exchange) -> Reply:
        delay = _json_object(exchange.body).get("delay")
        if type(delay) is not int or not 0 <= delay <= _MAX_DELAY_MS:
            raise ValueError("delay is not a whole number of milliseconds")
        was, self.config.delay_ms = self.config.delay_ms, delay
        return _changed("delay", was, delay)

    def _set_failure(self, exchange: Exchange) -> Reply:
        failure = _json_object(exchange.body).get("failure")
        if not isinstance(failure, bool):
            raise ValueError("failure is neither true nor false")
        was, self.config.failing = self.config.failing, failure
        return _changed("failure", was, failure)

    def _purge(self, exchange: Exchange) -> Reply:
        self.book.purge()
        return _PURGED


def _decimal(cents: int) -> Decimal:
    return Decimal(cents).scaleb(-2)


def _changed(setting: str, was: int, now: int) -> Reply:
    body = {"config": setting, "was": was, "is": now}
    return reply(HTTPStatus.OK, orjson.dumps(body))


async def serve(config: SimulatorConfig, host: str, port: int) -> None:
    """Run a processor until SIGTERM or SIGINT.

    Raises:
        OSError: the address is taken or not this machine's.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    simulator = Simulator(config)
    await simulator.start(host, port)
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    try:
        await stopped.wait()
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
        await simulator.close()
