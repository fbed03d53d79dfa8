"""A payment processor for development and tests: it behaves as the challenge's real processor does.

Slots, delays and windows are the real one's; payments are kept in memory. `Book` and
`HealthWindows` decide without I/O; `Simulator` serves them over HTTP, in one of the `DIALECTS`,
with the faults that an admin call sets (`faults`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from http import HTTPStatus
from math import ceil
from urllib.parse import parse_qs

import orjson

from payswitch.http.server import Exchange, Listener, Reply, message, reply
from payswitch.reasons import reason
from payswitch.simulator.book import (
    Book,
    BookEntry,
    HealthWindows,
    Standing,
    json_object,
    parse_instant,
)
from payswitch.simulator.charges import ChargesDialect
from payswitch.simulator.dialect import Dialect, RejectedError, SimulatorConfig
from payswitch.simulator.faults import (
    Faults,
    HealthFault,
    HealthLots,
    Misfortune,
    PaymentFault,
    PaymentLots,
    broken_answer,
    deliberate,
    gateway_answer,
    milliseconds,
    parse_faults,
    truth,
)
from payswitch.simulator.journal import Journal, JournalStep
from payswitch.simulator.rinha import RinhaDialect
from payswitch.simulator.streams import Stream, send_stream

DIALECTS: dict[str, type[Dialect]] = {"rinha": RinhaDialect, "charges": ChargesDialect}

RUNNING_SLOTS = 800
WAITING_SLOTS = 500
HEALTH_CALLS_WAITING = 2
_RELISTEN_S = 0.1

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_FAILING = message(HTTPStatus.INTERNAL_SERVER_ERROR, "the payment processor is failing")
_NO_SLOT = message(HTTPStatus.TOO_MANY_REQUESTS, "too many requests at once", b"Retry-After: 5")
_NOT_FOUND = reply(HTTPStatus.NOT_FOUND)
_UNAUTHORIZED = reply(HTTPStatus.UNAUTHORIZED)
_NO_CONTENT = reply(HTTPStatus.NO_CONTENT)
_PURGED = message(HTTPStatus.OK, "All payments purged.")

_LINES = b"application/x-ndjson"

_ENTERED: dict[Standing, JournalStep] = {
    Standing.SUCCEEDED: "committed",
    Standing.PENDING: "pending",
    Standing.FAILED: "declined",
}

_Methods = dict[bytes, Callable[[Exchange], None]]

_logger = logging.getLogger(__name__)


class Simulator:
    """A payment processor on the running loop.

    Only `_settle` decides about a payment, and only `_report_health` about a health report. Faults
    leave the ordinary path there, `close` in `_begin`. After `close` it may be started again: it
    keeps its book and its settings.
    """

    def __init__(self, config: SimulatorConfig, dialect: type[Dialect] = RinhaDialect) -> None:
        self.config = config
        self.book = Book()
        self.dialect = dialect(config, self.book)
        self.journal = Journal()
        self._faults = Faults()
        self._payment_lots: PaymentLots | None = None
        self._health_lots: HealthLots | None = None
        self._windows = HealthWindows(config.rate_limit_s)
        self._health_calls: deque[Exchange] = deque()
        self._health_timer: asyncio.TimerHandle | None = None
        self._running: dict[Exchange, asyncio.TimerHandle] = {}
        self._under_way: set[str] = set()
        self._late: set[asyncio.TimerHandle] = set()
        self._waiting: deque[Exchange] = deque()
        self._listener = Listener(self._route)
        self._address = ("", 0)
        self._absence: asyncio.Task[None] | None = None
        self._look_up: _Methods = {b"GET": self._take_slot}
        at_pay_path: _Methods = {b"POST": self._take_slot}
        if self.dialect.pay_path == self.dialect.find_prefix:
            at_pay_path |= self._look_up
        self._routes: dict[bytes, _Methods] = {
            self.dialect.pay_path: at_pay_path,
            self.dialect.health_path: {b"GET": self._ask_health},
            **{
                path: {b"GET": _answering(answer)}
                for path, answer in self.dialect.questions.items()
            },
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
        self._under_way.clear()
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
        if methods is None and exchange.path.startswith(self.dialect.find_prefix):
            methods = self._look_up
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
            exchange.answer(self.dialect.find(exchange))
            return
        try:
            entry = self.dialect.parse(exchange)
        except RejectedError as error:
            exchange.answer(error.outcome)
            return
        if entry.correlation_id in self._under_way and (busy := self.dialect.busy(entry)):
            exchange.answer(busy)
            return
        lot = self._payment_lots.draw() if self._payment_lots is not None else None
        if self.journal.on:
            self.journal.note("arrived", entry, lot.mode if lot is not None else None)
        if lot is not None and lot.mode is PaymentFault.CLOSE:
            self._hang_up(exchange, entry, lot.mode)
        elif self.config.delay_ms:
            loop = asyncio.get_running_loop()
            delay_s = self.config.delay_ms / 1000
            self._under_way.add(entry.correlation_id)
            self._running[exchange] = loop.call_later(delay_s, self._end, exchange, entry, lot)
        else:
            self._settle(exchange, entry, lot)

    def _end(self, exchange: Exchange, entry: BookEntry, lot: Misfortune | None) -> None:
        del self._running[exchange]
        self._under_way.discard(entry.correlation_id)
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
        thought = deliberate(self._faults, entry.correlation_id)
        if self.config.failing:
            event, outcome = "failed", _FAILING
        elif self.book.record(entry, thought.first):
            event, outcome = _ENTERED[thought.first], self.dialect.recorded(entry)
            if thought.last is not thought.first:
                self._later(thought.after_ms, lambda: self._decide(entry, thought.last))
        else:
            event, outcome = "known", self.dialect.known(entry)
        self.journal.note(event, entry, fault)
        return outcome

    def _decide(self, entry: BookEntry, standing: Standing) -> None:
        if self.book.decide(entry, standing):
            self.journal.note(_ENTERED[standing], entry)

    def _misbehave(self, exchange: Exchange, entry: BookEntry, lot: Misfortune) -> None:
        """Do what a fault does; the payment has waited out its delay."""
        fault = lot.mode
        if fault is PaymentFault.CLOSE_COMMIT:
            self._hang_up(exchange, entry, fault)
        processed = self.dialect.processed(entry)
        truth = self._commit(entry, fault) if lot.commits else processed
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
                self._answer(exchange, entry, self.dialect.refused(entry), fault)
            case _ if lot.status is not None:
                said = gateway_answer(lot.status)
                after_ms = lot.later_ms if fault is PaymentFault.GATEWAY_LATE else 0
                self._later(after_ms, lambda: self._answer(exchange, entry, said, fault))
            case _:
                broken = broken_answer(fault, processed, exchange.separator)
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
        if lots is None or fault is None:
            truth = self.dialect.report(self.config.failing, self.config.delay_ms)
            exchange.answer(reply(HTTPStatus.OK, truth))
        elif fault is HealthFault.LIE:
            lie = self.dialect.report(not self.config.failing, lots.slowness_ms())
            exchange.answer(reply(HTTPStatus.OK, lie))
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
            _answering(administer)(exchange)

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
        if faults.decisions and not self.dialect.deliberates:
            raise ValueError("this protocol has no declined or pending payments")
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


def _answering(answer: Callable[[Exchange], Reply]) -> Callable[[Exchange], None]:
    """Handles a request by its answer, or by a 400 that says why there is none."""

    def handle(exchange: Exchange) -> None:
        try:
            outcome = answer(exchange)
        except ValueError as error:
            outcome = message(HTTPStatus.BAD_REQUEST, str(error))
        exchange.answer(outcome)

    return handle


def _changed(setting: str, was: object, now: object) -> Reply:
    body = {"config": setting, "was": was, "is": now}
    return reply(HTTPStatus.OK, orjson.dumps(body))


async def serve(
    config: SimulatorConfig, host: str, port: int, dialect: type[Dialect] = RinhaDialect
) -> None:
    """Run a processor until SIGTERM or SIGINT.

    Raises:
        OSError: the address is taken or not this machine's.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    simulator = Simulator(config, dialect)
    await simulator.start(host, port)
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    try:
        await stopped.wait()
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
        await simulator.close()
