"""The tests that every connector must pass: subclass `ConnectorTests` in a test of yours.

    class TestAcme(ConnectorTests):
        connector = AcmeConnector

        def payments(self, instruction): ...
        def findings(self, instruction): ...

pytest runs them then. The extra `testing` installs pytest and hypothesis.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, ClassVar, TypeVar

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payswitch.instants import LEDGER_ENDS_MS
from payswitch.money import MAX_CENTS, Total
from payswitch.processors.connector import (
    Connector,
    ConnectorSettings,
    Instruction,
    NotUnderstoodError,
    Request,
    Response,
)
from payswitch.processors.outcomes import (
    Declined,
    FindOutcome,
    Found,
    HealthReport,
    Missing,
    Paid,
    PayOutcome,
    Pending,
    Unclear,
)

T = TypeVar("T")

_LONGEST_TEXT = 255
"""Characters of a reference or a code, which stand in records, logs and tables."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_PATH = re.compile(r"(/|https?://)[\x21-\x7e]*")
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection"})
"""Headers that Payswitch sends."""

_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | _TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner),
    max_leaves=10,
)
_METADATA = st.dictionaries(_TEXT, _TEXT | st.integers(-(2**53), 2**53)).map(orjson.dumps)
_STRANGE: Sequence[Any] = (
    *(None, True, False, -1, 0, 0.5, 1e300, 2**63, [], {}, [[]], "", "x" * 300),
    *("NaN", "-Infinity", "1e999999", "a\r\nb", "\x00", "é"),
    *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
)
"""Values that no provider should send, and some did."""

EXAMPLE = Instruction(
    "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3",
    1990,
    1_767_225_600_123,
    b'{"note":"a\\r\\nb: \xc3\xa9"}',
)
"""One payment."""
INSTRUCTIONS = st.builds(
    Instruction,
    st.uuids().map(str),
    st.integers(1, MAX_CENTS),
    st.integers(1_500_000_000_000, 2_500_000_000_000),
    st.none() | _METADATA,
)
"""Payments as Payswitch makes them."""

_for_any_connector = settings(
    # The same tests run for every connector, and how long an example takes is no matter.
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    deadline=None,
)


class ConnectorTests:
    """The contract of a connector as tests. Each list holds responses with what they mean."""

    connector: ClassVar[type[Connector]]
    connector_settings: ClassVar[ConnectorSettings] = ConnectorSettings("tested", token="token")

    def payments(self, instruction: Instruction) -> Sequence[tuple[Response, PayOutcome]]:
        """Responses to `pay`, at least one of each outcome that the connector has words for."""
        raise NotImplementedError("a subclass says which responses there are")

    def findings(self, instruction: Instruction) -> Sequence[tuple[Response, FindOutcome]]:
        """Responses to `find`, among them one that is `Found` and one that is `Missing`."""
        raise NotImplementedError("a subclass says which responses there are")

    def reports(self) -> Sequence[tuple[Response, HealthReport | None]]:
        """Responses to `health`; none if the connector asks for none."""
        return ()

    def totals(self) -> Sequence[tuple[Response, Total]]:
        """Responses to `total`; none if the connector asks for none."""
        return ()

    def fees(self) -> Sequence[tuple[Response, Decimal]]:
        """Responses to `fee`; none if the connector asks for none."""
        return ()

    # Responses.

    @_for_any_connector
    @given(INSTRUCTIONS)
    def test_each_response_means_what_the_list_says(self, instruction: Instruction) -> None:
        connector = self._new()
        for response, outcome in self.payments(instruction):
            _require_equal(connector.read_payment(instruction, response), outcome, response)
        for response, finding in self.findings(instruction):
            _require_equal(connector.read_finding(instruction, response), finding, response)
        for response, report in self.reports():
            _require_equal(connector.read_health(response), report, response)
        for response, total in self.totals():
            _require_equal(connector.read_total(response), total, response)
        for response, fee in self.fees():
            _require_equal(connector.read_fee(response), fee, response)

    @_for_any_connector
    @given(INSTRUCTIONS)
    def test_the_lists_hold_what_matters(self, instruction: Instruction) -> None:
        connector = self._new()
        assert _statuses(self.payments(instruction), Paid, Pending), "no payment is paid"
        for kind in (Found, Missing):
            assert _statuses(self.findings(instruction), kind), f"no finding is {kind.__name__}"
        assert connector.health() is None or self.reports(), "there is no report of health"
        assert connector.total(0, 0) is None or self.totals(), "there is no total"
        assert connector.fee() is None or self.fees(), "there is no fee"

    @_for_any_connector
    @given(INSTRUCTIONS, st.data())
    def test_any_response_is_read_without_an_error(
        self, instruction: Instruction, data: st.DataObject
    ) -> None:
        bodies = st.binary(max_size=50) | _JSON.map(orjson.dumps)
        statuses = st.sampled_from([*self._statuses(instruction)]) | st.integers(100, 599)
        pause = st.none() | st.integers(0, 10**9)
        response = data.draw(st.builds(Response, statuses, bodies, retry_after_ms=pause))
        self._require_sane(self._new(), instruction, response)

    def test_a_response_with_one_strange_value_is_read_without_an_error(self) -> None:
        connector, read = self._new(), set()
        for response in self._responses(EXAMPLE):
            for body in _changed(response.body):
                if (response.status, body) not in read:
                    read.add((response.status, body))
                    self._require_sane(connector, EXAMPLE, response._replace(body=body))

    def test_a_body_with_another_status_decides_nothing(self) -> None:
        connector = self._new()
        for body in {response.body for response in self._responses(EXAMPLE)}:
            for status in range(100, 600):
                self._require_sane(connector, EXAMPLE, Response(status, body))

    @_for_any_connector
    @given(INSTRUCTIONS)
    def test_a_body_that_is_cut_off_means_nothing(self, instruction: Instruction) -> None:
        for response, outcome in self.payments(instruction):
            if isinstance(outcome, Paid | Pending):
                for cut in _cut_off(response):
                    self._require_undecided(instruction, cut)
        for response, finding in self.findings(instruction):
            if isinstance(finding, Found | Pending | Missing):
                for cut in _cut_off(response):
                    self._require_unclear(instruction, cut)

    @_for_any_connector
    @given(INSTRUCTIONS, st.sampled_from([b"<html>welcome</html>", b"OK", b"\xff\xfe"]))
    def test_a_page_in_place_of_an_answer_means_nothing(
        self, instruction: Instruction, page: bytes
    ) -> None:
        for status in {200, *_statuses(self.payments(instruction), Paid)}:
            self._require_undecided(instruction, Response(status, page))
        for status in {200, *_statuses(self.findings(instruction), Found)}:
            self._require_unclear(instruction, Response(status, page))

    @_for_any_connector
    @given(INSTRUCTIONS, st.uuids().map(str))
    def test_another_payments_answer_means_nothing(
        self, instruction: Instruction, other_id: str
    ) -> None:
        other = replace(instruction, correlation_id=other_id)
        for response in _only_of(self.payments(other), self.payments(instruction), Paid):
            self._require_undecided(instruction, response)
        for response in _only_of(self.findings(other), self.findings(instruction), Found):
            self._require_unclear(instruction, response)

    @_for_any_connector
    @given(INSTRUCTIONS)
    def test_another_amount_is_not_taken_for_this_one(self, instruction: Instruction) -> None:
        other = replace(instruction, cents=instruction.cents + 1)
        for response in _only_of(self.payments(other), self.payments(instruction), Paid):
            self._require_undecided(instruction, response)
        for response in _only_of(self.findings(other), self.findings(instruction), Found):
            finding = self._new().read_finding(instruction, response)
            assert not isinstance(finding, Found) or finding.cents == other.cents, (
                f"{finding} by {response}"
            )

    # Requests.

    @_for_any_connector
    @given(INSTRUCTIONS)
    def test_the_same_payment_makes_the_same_request(self, instruction: Instruction) -> None:
        """However often, in whichever process, and whatever was answered meanwhile: so two tries
        have the effect of one."""
        connector = self._new()
        first = connector.pay(instruction), connector.find(instruction)
        for response, _ in self.payments(instruction):
            connector.read_payment(instruction, response)
        for response, _ in self.findings(instruction):
            connector.read_finding(instruction, response)
        for each in (connector, self._new()):
            again = each.pay(instruction), each.find(instruction)
            assert again == first, f"{first} at first, then {again}"

    @_for_any_connector
    @given(INSTRUCTIONS, INSTRUCTIONS)
    def test_another_id_makes_another_request(
        self, instruction: Instruction, other: Instruction
    ) -> None:
        other = replace(instruction, correlation_id=other.correlation_id)
        if instruction != other:
            connector = self._new()
            assert connector.pay(instruction) != connector.pay(other), "the id makes no difference"
            assert connector.find(instruction) != connector.find(other), "nor to the look-up"

    @_for_any_connector
    @given(INSTRUCTIONS)
    def test_another_amount_makes_another_request(self, instruction: Instruction) -> None:
        other = replace(instruction, cents=instruction.cents + 1)
        connector = self._new()
        assert connector.pay(instruction) != connector.pay(other), "the amount makes no difference"

    @_for_any_connector
    @given(INSTRUCTIONS, st.integers(0, LEDGER_ENDS_MS))
    def test_every_request_is_well_formed(self, instruction: Instruction, at_ms: int) -> None:
        """Nothing that a client sends, such as its metadata, adds a header or a request."""
        connector = self._new()
        for request in (
            connector.pay(instruction),
            connector.find(instruction),
            connector.health(),
            connector.prepare(at_ms),
            connector.total(at_ms, at_ms + 1),
            connector.fee(),
        ):
            if request is not None:
                _require_well_formed(request)

    @_for_any_connector
    @given(INSTRUCTIONS)
    def test_eligible_depends_on_the_payment_alone(self, instruction: Instruction) -> None:
        connector = self._new()
        eligible = connector.eligible(instruction)
        assert type(eligible) is bool, f"{eligible!r} is neither True nor False"
        for response, _ in self.payments(instruction):
            connector.read_payment(instruction, response)
        later = replace(instruction, requested_at=instruction.requested_at + 1)
        for each in (connector.eligible(instruction), self._new().eligible(later)):
            assert each is eligible, "the answer changes"

    def _new(self) -> Connector:
        return self.connector(self.connector_settings)

    def _responses(self, instruction: Instruction) -> list[Response]:
        """All responses of the lists."""
        lists: tuple[Sequence[tuple[Response, object]], ...] = (
            *(self.payments(instruction), self.findings(instruction)),
            *(self.reports(), self.totals(), self.fees()),
        )
        return [response for listed in lists for response, _ in listed]

    def _statuses(self, instruction: Instruction) -> set[int]:
        return {response.status for response in self._responses(instruction)}

    def _require_sane(
        self, connector: Connector, instruction: Instruction, response: Response
    ) -> None:
        """Whatever the response holds, the connector reads it without an error, and only a status
        of the lists decides about a payment. Else a gateway's answer could pay, end or move it."""
        outcome = connector.read_payment(instruction, response)
        assert isinstance(outcome, PayOutcome), f"{outcome!r} is no outcome of a payment"
        finding = connector.read_finding(instruction, response)
        assert isinstance(finding, FindOutcome), f"{finding!r} is no finding"
        for read, listed in (
            (outcome, self.payments(instruction)),
            (finding, self.findings(instruction)),
        ):
            _require_presentable(read)
            if isinstance(read, Paid | Declined | Found | Missing):
                assert response.status in _statuses(listed, type(read)), (
                    f"{read} with status {response.status}; list such a response if that is right"
                )
        report = connector.read_health(response)
        assert report is None or report.min_response_ms >= 0, f"an absurd report: {report}"
        total = _understood(connector.read_total, response)
        assert total is None or total.count >= 0, f"an absurd total: {total}"
        fee = _understood(connector.read_fee, response)
        assert fee is None or 0 <= fee <= 1, f"an absurd fee: {fee}"
        _understood(lambda given: connector.read_preparation(given, 0), response)

    def _require_undecided(self, instruction: Instruction, response: Response) -> None:
        outcome = self._new().read_payment(instruction, response)
        assert not isinstance(outcome, Paid | Pending | Declined), f"{outcome} by {response}"

    def _require_unclear(self, instruction: Instruction, response: Response) -> None:
        finding = self._new().read_finding(instruction, response)
        assert isinstance(finding, Unclear), f"{finding} by {response}"


_Listed = Sequence[tuple[Response, PayOutcome]] | Sequence[tuple[Response, FindOutcome]]


def _only_of(other: _Listed, own: _Listed, kind: type) -> list[Response]:
    """The other payment's responses of one kind, without those that tell no payment."""
    of_both = {response.body for response, _ in own}
    return [
        response
        for response, meaning in other
        if isinstance(meaning, kind) and response.body not in of_both
    ]


def _cut_off(response: Response) -> Iterator[Response]:
    """The response with parts of its body."""
    length = len(response.body)
    for part in {1, length // 2, length - 1}:
        if 0 < part < length:
            yield response._replace(body=response.body[:part])


def _statuses(listed: _Listed, *kinds: type) -> set[int]:
    """The statuses of the responses that mean one of these."""
    return {response.status for response, meaning in listed if isinstance(meaning, kinds)}


def _require_equal(read: object, listed: object, response: Response) -> None:
    assert read == listed, f"{response} is read as {read}, and the list says {listed}"


def _changed(body: bytes) -> Iterator[bytes]:
    """A JSON body with one value replaced or left out, in every way."""
    with contextlib.suppress(orjson.JSONDecodeError):
        document = orjson.loads(body)
        yield from map(orjson.dumps, _STRANGE)
        for place in _places(document):
            for value in (_LEFT_OUT, *_STRANGE):
                yield orjson.dumps(_with(document, place, value))


_LEFT_OUT = object()


def _places(document: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value within a document."""
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(document, dict):
        inner = document.items()
    elif isinstance(document, list):
        inner = enumerate(document)
    for key, value in inner:
        yield (*before, key)
        yield from _places(value, (*before, key))


def _with(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of a document with another value at a place."""
    key, *rest = place
    copy = document.copy()
    if rest:
        copy[key] = _with(document[key], tuple(rest), value)
    elif value is _LEFT_OUT:
        del copy[key]
    else:
        copy[key] = value
    return copy


def _understood(read: Callable[[Response], T], response: Response) -> T | None:
    try:
        return read(response)
    except NotUnderstoodError:
        return None


def _require_presentable(outcome: PayOutcome | FindOutcome) -> None:
    """What is kept of an outcome fits into a record and into the ledger."""
    match outcome:
        case Found(cents=cents, requested_at=requested_at):
            for each in (cents, requested_at):
                assert type(each) is int, f"no whole number: {outcome}"
        case Declined(code=code):
            _require_short_text(code)
    if isinstance(outcome, Paid | Found | Pending):
        _require_short_text(outcome.reference)


def _require_short_text(text: str) -> None:
    assert isinstance(text, str), f"no text: {text!r}"
    assert text.isprintable(), f"not printable: {text!r}"
    assert len(text) <= _LONGEST_TEXT, f"too long: {text!r}"


def _require_well_formed(request: Request) -> None:
    assert re.fullmatch("[A-Z]+", request.method), f"no method: {request.method!r}"
    assert _PATH.fullmatch(request.path), f"no path: {request.path!r}"
    names = [name.lower() for name, _ in request.headers]
    assert len({*names}) == len(names), f"a header stands there twice: {names}"
    assert not _OURS & {*names}, f"Payswitch sends {sorted(_OURS & {*names})} itself"
    for name, value in request.headers:
        assert _NAME.fullmatch(name), f"no name of a header: {name!r}"
        assert not value or _VALUE.fullmatch(value), f"no value of a header: {value!r}"
    assert type(request.body) is bytes, f"a body that is no bytes: {request.body!r}"
