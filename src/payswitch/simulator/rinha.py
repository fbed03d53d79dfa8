"""The protocol `rinha`: statuses, bodies and quirks of the challenge's real processor."""

from __future__ import annotations

from http import HTTPStatus

import orjson

from payswitch.http.server import Exchange, Reply, message, reply
from payswitch.simulator.book import BookEntry, format_instant, parse_entry
from payswitch.simulator.dialect import Dialect, RejectedError

_PROCESSED = message(HTTPStatus.OK, "payment processed successfully")
_NOT_FOUND = reply(HTTPStatus.NOT_FOUND)


class RinhaDialect(Dialect):
    """A known id is 422."""

    pay_path = b"/payments"
    find_prefix = b"/payments/"
    health_path = b"/payments/service-health"
    deliberates = False

    def parse(self, exchange: Exchange) -> BookEntry:
        """400 for anything malformed."""
        try:
            return parse_entry(exchange.body, self.config.currency)
        except ValueError as error:
            raise RejectedError(message(HTTPStatus.BAD_REQUEST, str(error))) from None

    def processed(self, entry: BookEntry) -> Reply:
        """Without anything of the payment."""
        return _PROCESSED

    recorded = processed

    def known(self, entry: BookEntry) -> Reply:
        """422."""
        text = f"CorrelationId already exists: {entry.correlation_id}"
        return message(HTTPStatus.UNPROCESSABLE_ENTITY, text)

    refused = known

    def busy(self, entry: BookEntry) -> Reply | None:
        """The real one serves both; the later commit finds the id known."""
        return None

    def find(self, exchange: Exchange) -> Reply:
        """404 for an unknown id."""
        entry = self.book.find(exchange.path.removeprefix(self.find_prefix).decode("latin-1"))
        if entry is None:
            return _NOT_FOUND
        amount = self.config.currency.format_cents(entry.cents)
        body = (
            f'{{"correlationId":"{entry.correlation_id}","amount":{amount},'
            f'"requestedAt":"{format_instant(entry.requested_at_us)}"}}'
        )
        return reply(HTTPStatus.OK, body.encode())

    def report(self, failing: bool, slowness_ms: int) -> bytes:
        """`failing` and `minResponseTime`."""
        return orjson.dumps({"failing": failing, "minResponseTime": slowness_ms})
