"""The protocol `charges`, in the style of the big card processors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import orjson

from payswitch.http.server import Exchange, Reply, reply
from payswitch.money import Currency
from payswitch.simulator.book import (
    MAX_AMOUNT,
    BookEntry,
    Standing,
    format_instant,
    json_object,
    parse_instant,
)
from payswitch.simulator.dialect import Dialect, RejectedError

DECLINE_CODE = "card_declined"

_REFERENCE = re.compile(r"[0-9a-z_-]{1,64}", re.ASCII | re.IGNORECASE)
_STATUS = {
    Standing.SUCCEEDED: "succeeded",
    Standing.PENDING: "pending",
    Standing.FAILED: "failed",
}


def _error(status: HTTPStatus, code: str, text: str) -> Reply:
    return reply(status, orjson.dumps({"error": {"code": code, "message": text}}))


_UNAUTHORIZED = _error(HTTPStatus.UNAUTHORIZED, "invalid_token", "the bearer token is not valid")
_IN_USE = _error(HTTPStatus.CONFLICT, "key_in_use", "a call with this key is under way")
_REUSED = _error(
    HTTPStatus.UNPROCESSABLE_ENTITY, "key_reused", "this key came with another charge before"
)


class ChargesDialect(Dialect):
    """The `Idempotency-Key` is the charge's reference: one key, one charge."""

    pay_path = b"/v1/charges"
    find_prefix = b"/v1/charges"
    health_path = b"/v1/health"
    deliberates = True

    @property
    def questions(self) -> Mapping[bytes, Callable[[Exchange], Reply]]:
        """Totals of what succeeded, and the fee."""
        return {b"/v1/totals": self._totals, b"/v1/account": self._account}

    def parse(self, exchange: Exchange) -> BookEntry:
        """401 without the token, 400 for anything malformed."""
        if not self._is_allowed(exchange):
            raise RejectedError(_UNAUTHORIZED)
        try:
            entry = _parse_charge(exchange.body, self.config.currency)
            key = exchange.headers.get(b"idempotency-key", b"").decode("latin-1").lower()
            if key != entry.correlation_id:
                raise ValueError("the Idempotency-Key is not the charge's reference")
        except ValueError as error:
            text = str(error)
            raise RejectedError(_error(HTTPStatus.BAD_REQUEST, "invalid", text)) from None
        return entry

    def processed(self, entry: BookEntry) -> Reply:
        """The charge, succeeded."""
        return _answer(HTTPStatus.CREATED, entry, Standing.SUCCEEDED, self.config.currency)

    def recorded(self, entry: BookEntry) -> Reply:
        """201, 202 or 402 by what was decided."""
        return self._standing(entry, HTTPStatus.CREATED)

    def known(self, entry: BookEntry) -> Reply:
        """The same charge with 200 if it succeeded; 422 if the same key came with another one."""
        if self.book.find(entry.correlation_id) != entry:
            return _REUSED
        return self._standing(entry, HTTPStatus.OK)

    def refused(self, entry: BookEntry) -> Reply:
        """As if the key had come with another charge."""
        return _REUSED

    def busy(self, entry: BookEntry) -> Reply | None:
        """409."""
        return _IN_USE

    def find(self, exchange: Exchange) -> Reply:
        """A list, empty or with one charge."""
        if not self._is_allowed(exchange):
            return _UNAUTHORIZED
        reference = _query(exchange).get("reference", "").lower()
        entry, standing = self.book.find(reference), self.book.standing(reference)
        found = (
            []
            if entry is None or standing is None
            else [_charge(entry, standing, self.config.currency)]
        )
        return reply(HTTPStatus.OK, orjson.dumps({"data": found}))

    def report(self, failing: bool, slowness_ms: int) -> bytes:
        """`status` and `latency_ms`."""
        return orjson.dumps({"status": "down" if failing else "up", "latency_ms": slowness_ms})

    def _is_allowed(self, exchange: Exchange) -> bool:
        return exchange.headers.get(b"authorization") == b"Bearer " + self.config.token.encode()

    def _standing(self, entry: BookEntry, paid: HTTPStatus) -> Reply:
        standing = self.book.standing(entry.correlation_id)
        assert standing is not None
        status = {
            Standing.SUCCEEDED: paid,
            Standing.PENDING: HTTPStatus.ACCEPTED,
            Standing.FAILED: HTTPStatus.PAYMENT_REQUIRED,
        }[standing]
        return _answer(status, entry, standing, self.config.currency)

    def _totals(self, exchange: Exchange) -> Reply:
        if not self._is_allowed(exchange):
            return _UNAUTHORIZED
        query = _query(exchange)
        if not query.keys() >= {"from", "to"}:
            raise ValueError("from and to are missing")
        total = self.book.totals(parse_instant(query["from"]), parse_instant(query["to"]))
        return reply(HTTPStatus.OK, orjson.dumps({"count": total.count, "amount": total.cents}))

    def _account(self, exchange: Exchange) -> Reply:
        if not self._is_allowed(exchange):
            return _UNAUTHORIZED
        account = {"currency": self.config.currency.code, "fee": f"{self.config.fee:f}"}
        return reply(HTTPStatus.OK, orjson.dumps(account))


def _parse_charge(body: bytes | bytearray, currency: Currency) -> BookEntry:
    """Raises `ValueError`."""
    fields = json_object(body)
    amount, reference = fields.get("amount"), fields.get("reference")
    if type(amount) is not int or not 0 < amount < 100 * MAX_AMOUNT:
        raise ValueError("amount is not a whole number of minor units above 0")
    if fields.get("currency") != currency.code:
        raise ValueError(f"currency is not {currency.code}")
    if not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
        raise ValueError("reference is not 1 to 64 letters, digits, _ and -")
    requested_at = fields.get("requested_at")
    if not isinstance(requested_at, str):
        raise ValueError("requested_at is not an ISO-8601 instant")
    if not isinstance(fields.get("metadata", {}), dict):
        raise ValueError("metadata is not an object")
    return BookEntry(reference.lower(), amount, parse_instant(requested_at))


def _charge(entry: BookEntry, standing: Standing, currency: Currency) -> dict[str, Any]:
    charge: dict[str, Any] = {
        "id": f"ch_{entry.correlation_id}",
        "status": _STATUS[standing],
        "amount": entry.cents,
        "currency": currency.code,
        "reference": entry.correlation_id,
        "requested_at": f"{format_instant(entry.requested_at_us)}Z",
    }
    if standing is Standing.FAILED:
        charge["error"] = {"code": DECLINE_CODE}
    return charge


def _answer(status: HTTPStatus, entry: BookEntry, standing: Standing, currency: Currency) -> Reply:
    return reply(status, orjson.dumps(_charge(entry, standing, currency)))


def _query(exchange: Exchange) -> dict[str, str]:
    # A bare + is that of a zone's offset, not a space.
    query = parse_qs(exchange.query.decode("latin-1").replace("+", "%2B"))
    return {name: values[0] for name, values in query.items()}
