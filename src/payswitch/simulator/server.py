"""A payment processor for development and tests: it behaves as the challenge's real processor does.

Statuses, headers and quirks are the real one's, slots and windows included; payments are kept in
memory. `Book` and `HealthWindows` decide without I/O; `Simulator` serves them over HTTP, with the
faults that an admin call sets (`faults`).
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from http import HTTPStatus
from math import ceil
from typing import Self
from urllib.parse import parse_qs

import orjson

from payswitch.http.server import Exchange, Listener, Reply, message, reply
from payswitch.money import BRL, Currency
from payswitch.reasons import reason
from payswitch.simulator.book import (
    Book,
    BookEntry,
    HealthWindows,
    format_instant,
    json_object,
    parse_entry,
    parse_instant,
)
from payswitch.simulator.faults import (
    Faults,
    HealthFault,
    HealthLots,
    Misfortune,
    PaymentFault,
    PaymentLots,
    broken_answer,
    gateway_answer,
    milliseconds,
    parse_faults,
    truth,
)
from payswitch.simulator.journal import Journal, JournalStep
from payswitch.simulator.streams import Stream, send_stream

RUNNING_SLOTS = 800
WAITING_SLOTS = 500
HEALTH_CALLS_WAITING = 2
_RELISTEN_S = 0.1

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_PROCESSED = message(HTTPStatus.OK, "payment processed successfully")
_FAILING = message(HTTPStatus.INTERNAL_SERVER_ERROR, "the payment processor is failing")
_NO_SLOT = message(HTTPStatus.TOO_MANY_REQUESTS, "too many requests at once", b"Retry-After: 5")
_NOT_FOUND = reply(HTTPStatus.NOT_FOUND)
_UNAUTHORIZED = reply(HTTPStatus.UNAUTHORIZED)
_NO_CONTENT = reply(HTTPStatus.NO_CONTENT)
_PURGED = message(HTTPStatus.OK, "All payments purged.")

_LINES = b"application/x-ndjson"

_Methods = dict[bytes, Callable[[Exchange], None]]

_logger = logging.getLogger(__name__)


@dataclass
class SimulatorConfig:
    """A processor's settings. All but `rate_limit_s` may be changed while it runs.

    `fee` is the part of an amount that the processor keeps, `rate_limit_s` the length in seconds
    of the windows that limit calls for its health (0: no limit), `delay_ms` every payment's delay,
    `token` the `X-Rinha-Token` of its /admin calls.
    """

    name: str
    fee: Decimal = Decimal("0.05")
    token: str = "123"
    rate_limit_s: float = 5.0
    delay_ms: int = 0
    failing: bool = False
    currency: Currency = BRL

    @classmethod
    def from_environment(cls, name: str, environment: Mapping[str, str]) -> Self:
        """Read the real processor's variables, TRANSACTION_FEE, INITIAL_TOKEN and
        RATE_LIMIT_SECONDS, and PAYSWITCH_CURRENCY. Each has its default.

        Raises:
            ValueError: a variable is not a number, negative, or out of all proportion; or the
                currency is unknown.
        """
        code = environment.get("PAYSWITCH_CURRENCY") or BRL.code
        try:
            currency = Currency(code)
        except ValueError:
            raise ValueError(f"PAYSWITCH_CURRENCY is no currency of ISO 4217: {code!r}") from None
        return cls(
            name,
            fee=Decimal(_number(environment, "TRANSACTION_FEE", "0.05")),
            token=environment.get("INITIAL_TOKEN", cls.token),
            rate_limit_s=float(_number(environment, "RATE_LIMIT_SECONDS", "5")),
            currency=currency,
        )


def _number(environment: Mapping[str, str], variable: str, default: str) -> str:
    text = environment.get(variable, default)
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise ValueError(f"{variable} is not a decimal number: {text!r}")
    return text


class Simulator:
    """A payment processor on the running loop.

    Only `_settle` decides about a payment, and only `_report_health` about a health report. Faults
    leave the ordinary path there, `close` in `_begin`. After `close` it may be started again: it
    keeps its book and its settings.
    """

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        self.book = Book()
        self.journal = Journal()
        self._faults = Faults()
        self._payment_lots: PaymentLots | None = None
        self._health_lots: HealthLots | None = None
        self._windows = HealthWindows(config.rate_limit_s)
        self._health_calls: deque[Exchange] = deque()
        self._health_timer: asyncio.TimerHandle | None = None
        self._running: dict[Exchange, asyncio.TimerHandle] = {}
        self._late: set[asyncio.TimerHandle] = set()
        self._waiting: deque[Exchange] = deque()
        self._listener = Listener(self._route)
        self._address = ("", 0)
        self._absence: asyncio.Task[None] | None = None
        self._payment_by_id: _Methods = {b"GET": self._take_slot}
        self._routes: dict[bytes, _Methods] = {
            b"/payments": {b"POST": self._take_slot},
            b"/payments/service-health": {b"GET": self._ask_health},
            b"/admin/payments-summary": {b"GET": self._guarded(self._summary)},
            b"/admin/configurations/token": {b"PUT": self._guarded(self._set_token)},
            b"/admin/configurations/delay": {b"PUT": self._guarded(self._set_delay)},
            b"/admin/configurations/failure": {b"PUT": self._guarded(self._set_failure)},
            b"/admin/configurations/faults": {b"PUT": self._guarded(self._set_faults)},
            b"/admin/payments": {b"GET": self._guarded(self._list_payments)},
            b"/admin/journal": {b"GET": self._guarded(self._list_events)},
            b"/admin/purge-payments": {b"POST": self._guarded(self._purge)},
        }

    @property
    def running(self) -> int:
        """The number of payments in their delay: each holds one of `RUNNING_SLOTS`."""
        return len(self._running)

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port: a free one if `port` is 0.

        Raises:
            OSError: the address is taken or not this machine's.
        """
        bound = await self._listener.start(host, port)
        self._address = (host, bound)
        _logger.info(
            "processor %(processor)s listens on %(host)s:%(port)d",
            {"processor": self.config.name, "host": host, "port": bound},
        )
        return bound

    async def close(self) -> None:
        """Stop at once, as a killed process would: payments under way are not recorded."""
        for timer in (*self._running.values(), *self._late):
            timer.cancel()
        self._running.clear()
        self._late.clear()
        self._waiting.clear()
        self._health_calls.clear()
        if self._health_timer is not None:
            self._health_timer.cancel()
            self._health_timer = None
        if self._absence is not None:
            self._absence.cancel()
            await asyncio.wait([self._absence])
            self._absence = None
        await self._listener.close()

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
        if self._faults.silent:
            return
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
            entry = parse_entry(exchange.body, self.config.currency)
        except ValueError as error:
            exchange.answer(message(HTTPStatus.BAD_REQUEST, str(error)))
            return
        lot = self._payment_lots.draw() if self._payment_lots is not None else None
        self.journal.note("arrived", entry, lot.mode if lot is not None else None)
        if lot is not None and lot.mode is PaymentFault.CLOSE:
            self._hang_up(exchange, entry, lot.mode)
        elif self.config.delay_ms:
            loop = asyncio.get_running_loop()
            delay_s = self.config.delay_ms / 1000
            self._running[exchange] = loop.call_later(delay_s, self._end, exchange, entry, lot)
        else:
            self._settle(exchange, entry, lot)

    def _end(self, exchange: Exchange, entry: BookEntry, lot: Misfortune | None) -> None:
        del self._running[exchange]
        self._settle(exchange, entry, lot)
        while self._waiting and len(self._running) < RUNNING_SLOTS:
            self._begin(self._waiting.popleft())

    def _settle(self, exchange: Exchange, entry: BookEntry, lot: Misfortune | None) -> None:
        """Decide about a payment, and tell the client, which may be gone."""
        if lot is not None and lot.mode in self._faults.payments:
            self._misbehave(exchange, entry, lot)
            return
        self._answer(exchange, entry, self._commit(entry))

    def _commit(self, entry: BookEntry, fault: PaymentFault | None = None) -> Reply:
        """Enter a payment in the book, if possible, and return the true answer."""
        event: JournalStep
        if self.config.failing:
            event, outcome = "failed", _FAILING
        elif self.book.record(entry):
            event, outcome = "committed", _PROCESSED
        else:
            event, outcome = "known", _known(entry)
        self.journal.note(event, entry, fault)
        return outcome

    def _misbehave(self, exchange: Exchange, entry: BookEntry, lot: Misfortune) -> None:
        """Do what a fault does; the payment has waited out its delay."""
        fault = lot.mode
        if fault is PaymentFault.CLOSE_COMMIT:
            self._hang_up(exchange, entry, fault)
        truth = self._commit(entry, fault) if lot.commits else _PROCESSED
        if lot.commits_later:
            self._later(lot.later_ms, lambda: self._commit(entry, fault))
        match fault:
            case PaymentFault.CLOSE_COMMIT:
                pass  # it has hung up
            case PaymentFault.COMMIT_CLOSE:
                self._hang_up(exchange, entry, fault)
            case PaymentFault.COMMIT_LATE:
                late_ms = self._faults.late_ms
                self._later(late_ms, lambda: self._answer(exchange, entry, truth, fault))
            case PaymentFault.UNKNOWN_422:
                self._answer(exchange, entry, _known(entry), fault)
            case _ if lot.status is not None:
                said = gateway_answer(lot.status)
                after_ms = lot.later_ms if fault is PaymentFault.GATEWAY_LATE else 0
                self._later(after_ms, lambda: self._answer(exchange, entry, said, fault))
            case _:
                broken = broken_answer(fault, _PROCESSED, exchange.separator)
                self._answer(exchange, entry, broken, fault)

    def _answer(
        self,
        exchange: Exchange,
        entry: BookEntry,
        outcome: Reply | Stream,
        fault: PaymentFault | None = None,
    ) -> None:
        if exchange.abandoned:
            self.journal.note("hung-up", entry, fault)
        else:
            self.journal.note("answered", entry, fault, outcome.status)
        if isinstance(outcome, Stream):
            send_stream(outcome, exchange, self._later)
        else:
            exchange.answer(outcome)

    def _hang_up(self, exchange: Exchange, entry: BookEntry, fault: PaymentFault) -> None:
        self.journal.note("hung-up", entry, fault)
        exchange.hang_up()

    def _later(self, after_ms: float, act: Callable[[], object]) -> None:
        def run() -> None:
            self._late.discard(timer)
            act()

        timer = asyncio.get_running_loop().call_later(after_ms / 1000, run)
        self._late.add(timer)

    def _find(self, exchange: Exchange) -> Reply:
        entry = self.book.find(exchange.path.removeprefix(b"/payments/").decode("latin-1"))
        if entry is None:
            return _NOT_FOUND
        body = (
            f'{{"correlationId":"{entry.correlation_id}","amount":{self._decimal(entry.cents)},'
            f'"requestedAt":"{format_instant(entry.requested_at_us)}"}}'
        )
        return reply(HTTPStatus.OK, body.encode())

    # Health.

    def _ask_health(self, exchange: Exchange) -> None:
        if self._faults.silent:
            return
        self._forget_abandoned_health_calls()
        if not self._health_calls and self._windows.take():
            self._report_health(exchange)
        elif len(self._health_calls) < HEALTH_CALLS_WAITING:
            self._health_calls.append(exchange)
            self._await_window()
        else:
            exchange.answer(self._too_many_calls())

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
        """Decide about a health report, and send it."""
        lots = self._health_lots
        fault = lots.draw() if lots is not None else None
        health = {"failing": self.config.failing, "minResponseTime": self.config.delay_ms}
        if lots is None or fault is None:
            exchange.answer(reply(HTTPStatus.OK, orjson.dumps(health)))
        elif fault is HealthFault.LIE:
            lie = {"failing": not self.config.failing, "minResponseTime": lots.slowness_ms()}
            exchange.answer(reply(HTTPStatus.OK, orjson.dumps(lie)))
        elif fault is HealthFault.WRONG_TYPES:
            exchange.answer(reply(HTTPStatus.OK, lots.wrong_report()))
        elif fault is HealthFault.TOO_MANY:
            exchange.answer(self._too_many_calls())

    def _too_many_calls(self) -> Reply:
        retry_after = b"Retry-After: %d" % ceil(self.config.rate_limit_s)
        text = "too many calls, try again later"
        return message(HTTPStatus.TOO_MANY_REQUESTS, text, retry_after)

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
        total = self.book.totals(first_us, last_us)
        amount = self._decimal(total.cents)
        body = (
            f'{{"totalRequests":{total.count},"totalAmount":{amount},'
            f'"totalFee":{self.config.fee * amount:f},'
            f'"feePerTransaction":{self.config.fee:f}}}'
        )
        return reply(HTTPStatus.OK, body.encode())

    def _set_token(self, exchange: Exchange) -> Reply:
        token = json_object(exchange.body).get("token")
        if not isinstance(token, str) or not token:
            raise ValueError("token is not a text")
        self.config.token = token
        return _NO_CONTENT

    def _set_delay(self, exchange: Exchange) -> Reply:
        delay = milliseconds("delay", json_object(exchange.body).get("delay"))
        was, self.config.delay_ms = self.config.delay_ms, delay
        return _changed("delay", was, delay)

    def _set_failure(self, exchange: Exchange) -> Reply:
        failure = truth("failure", json_object(exchange.body).get("failure"))
        was, self.config.failing = self.config.failing, failure
        return _changed("failure", was, failure)

    def _set_faults(self, exchange: Exchange) -> Reply:
        faults, gone_ms = parse_faults(exchange.body)
        was, self._faults = self._faults, faults
        self._payment_lots = PaymentLots(faults) if faults.payments else None
        self._health_lots = HealthLots(faults) if faults.health else None
        self.journal.on = faults.journal
        if gone_ms is not None:
            self._leave(exchange, gone_ms / 1000)
        return _changed("faults", was.document(), faults.document())

    def _leave(self, exchange: Exchange, for_s: float) -> None:
        """End the connections, this exchange's after its answer; refuse new ones for so long."""
        exchange.close_after()
        self._listener.break_off(but=exchange)
        self._absence = asyncio.get_running_loop().create_task(self._return(for_s))

    async def _return(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        while True:
            try:
                await self._listener.start(*self._address)
            except OSError as error:  # an outgoing connection may have got the port
                host, port = self._address
                _logger.warning(
                    "can't listen on %(host)s:%(port)d yet: %(error)s",
                    {"host": host, "port": port, "error": reason(error)},
                )
                await asyncio.sleep(_RELISTEN_S)
            else:
                return

    def _list_payments(self, exchange: Exchange) -> Reply:
        lines = "".join(
            f'{{"correlationId":"{entry.correlation_id}","cents":{entry.cents},'
            f'"requestedAtUs":{entry.requested_at_us},"committedAtUs":{committed_at_us}}}\n'
            for entry, committed_at_us in self.book.commits()
        )
        return reply(HTTPStatus.OK, lines.encode(), content_type=_LINES)

    def _list_events(self, exchange: Exchange) -> Reply:
        ids = parse_qs(exchange.query.decode("latin-1")).get("id", [None])
        return reply(HTTPStatus.OK, self.journal.lines(ids[0]), content_type=_LINES)

    def _purge(self, exchange: Exchange) -> Reply:
        self.book.purge()
        self.journal.clear()
        return _PURGED

    def _decimal(self, cents: int) -> Decimal:
        return Decimal(cents).scaleb(-self.config.currency.decimals)


def _known(entry: BookEntry) -> Reply:
    text = f"CorrelationId already exists: {entry.correlation_id}"
    return message(HTTPStatus.UNPROCESSABLE_ENTITY, text)


def _changed(setting: str, was: object, now: object) -> Reply:
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
