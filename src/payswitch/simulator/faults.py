"""The faults of a simulated processor, without any I/O: the admin call that sets them, the seeded
choice of a request's fault, and the broken answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from itertools import accumulate, chain, repeat
from math import fsum
from random import Random
from typing import Any, NamedTuple, TypeVar

from payswitch.http.server import Reply, message, reply
from payswitch.simulator.book import Standing, json_object
from payswitch.simulator.streams import Ending, Stream

_MAX_MS = 2**31 - 1
DRIP_MS = 1000.0
HUGE_BYTES = 10_000_000

_PIECE = b"x" * 65_536
_SLOWEST_LIE_MS = 3000
_ROUNDING = 1e-9
_FIELDS = frozenset(
    {
        *("seed", "payments", "decisions", "health"),
        *("lateMs", "laterMs", "decideMs", "goneMs", "journal", "silent"),
    }
)


class PaymentFault(StrEnum):
    """The faults of a POST /payments; docs/simulator.md says what each does."""

    COMMIT_CLOSE = "commit-close"
    COMMIT_500 = "commit-500"
    COMMIT_LATE = "commit-late"
    CLOSE_COMMIT = "close-commit"
    CLOSE = "close"
    TOO_MANY = "429"
    RETRY_AFTER = "429-retry-after"
    ERROR = "500"
    NOT_JSON = "not-json"
    TRUNCATED = "truncated"
    HUGE = "huge"
    HALF_HEADER = "half-header"
    DRIP = "drip"
    UNKNOWN_422 = "422-unknown"
    GATEWAY_EARLY = "gateway-early"
    GATEWAY_LATE = "gateway-late"
    GATEWAY_COMMIT = "gateway-commit"
    COMMIT_429 = "commit-429"
    BAD_REQUEST = "400"


class Decision(StrEnum):
    """What may come of a payment where the protocol knows more than paid and refused."""

    DECLINE = "decline"
    PENDING = "pending"


class HealthFault(StrEnum):
    """The faults of a GET /payments/service-health."""

    LIE = "lie"
    HANG = "hang"
    TOO_MANY = "429"
    WRONG_TYPES = "wrong-types"


_Mode = TypeVar("_Mode", bound=StrEnum)

GATEWAY_STATUSES = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
"""The answers of a gateway before the processor in its stead."""
_PASSED_ON = frozenset(GATEWAY_STATUSES) - {HTTPStatus.TOO_MANY_REQUESTS}
"""After these the processor may still record the payment; after a gateway's limit it never does."""
_GATEWAY = frozenset(
    {PaymentFault.GATEWAY_EARLY, PaymentFault.GATEWAY_LATE, PaymentFault.GATEWAY_COMMIT}
)
_LATER = frozenset(
    {PaymentFault.CLOSE_COMMIT, PaymentFault.GATEWAY_EARLY, PaymentFault.GATEWAY_LATE}
)

_COMMITTING = frozenset(
    {
        PaymentFault.COMMIT_CLOSE,
        PaymentFault.COMMIT_500,
        PaymentFault.COMMIT_LATE,
        PaymentFault.GATEWAY_COMMIT,
        PaymentFault.COMMIT_429,
    }
)
_BY_COIN = frozenset(
    {
        PaymentFault.NOT_JSON,
        PaymentFault.TRUNCATED,
        PaymentFault.HUGE,
        PaymentFault.HALF_HEADER,
        PaymentFault.DRIP,
        PaymentFault.GATEWAY_LATE,
    }
)

WRONG_REPORTS = (
    b'{"failing":"false","minResponseTime":"0"}',
    b'{"failing":0,"minResponseTime":0}',
    b'{"failing":null,"minResponseTime":null}',
    b'{"failing":false,"minResponseTime":true}',
    b'{"failing":false,"minResponseTime":0.5}',
    b'{"failing":[false],"minResponseTime":{"ms":0}}',
    b'{"failing":false}',
    b'[{"failing":false,"minResponseTime":0}]',
    b'"healthy"',
    b"null",
)
"""JSON that is no report of health, as `wrong-types` sends it."""


@dataclass(frozen=True)
class Faults:
    """A setting: probabilities by mode, the rest to 1 being the ordinary outcome, and times.

    `commit-late` answers `late_ms` after its commit. `close-commit` and `gateway-early` take the
    time until their commit from the range `later_ms`, `gateway-late` the time until its answer. A
    pending payment is decided after a time from the range `decide_ms`. A `silent` processor answers
    neither payments nor questions, and records no payment.
    """

    seed: int = 0
    payments: Mapping[PaymentFault, float] = field(default_factory=dict)
    decisions: Mapping[Decision, float] = field(default_factory=dict)
    health: Mapping[HealthFault, float] = field(default_factory=dict)
    late_ms: int = 11_000
    later_ms: tuple[int, int] = (200, 8000)
    decide_ms: tuple[int, int] = (200, 2000)
    journal: bool = False
    silent: bool = False

    def document(self) -> dict[str, object]:
        """The setting as the admin call writes it."""
        return {
            "seed": self.seed,
            "payments": {mode.value: part for mode, part in self.payments.items()},
            "decisions": {mode.value: part for mode, part in self.decisions.items()},
            "health": {mode.value: part for mode, part in self.health.items()},
            "lateMs": self.late_ms,
            "laterMs": self.later_ms,
            "decideMs": self.decide_ms,
            "journal": self.journal,
            "silent": self.silent,
        }


def parse_faults(body: bytes | bytearray) -> tuple[Faults, int | None]:
    """Read the body of a PUT /admin/configurations/faults: the setting, and `goneMs` if given.

    Raises:
        ValueError: the body is no JSON object, or a field is unknown or out of its range.
    """
    fields = json_object(body)
    unknown = sorted(fields.keys() - _FIELDS)
    if unknown:
        raise ValueError(f"unknown field: {unknown[0]}")
    seed = fields.get("seed", Faults.seed)
    if type(seed) is not int:
        raise ValueError("seed is not a whole number")
    faults = Faults(
        seed,
        _probabilities("payments", fields, PaymentFault),
        _probabilities("decisions", fields, Decision),
        _probabilities("health", fields, HealthFault),
        milliseconds("lateMs", fields.get("lateMs", Faults.late_ms)),
        _range("laterMs", fields.get("laterMs", list(Faults.later_ms))),
        _range("decideMs", fields.get("decideMs", list(Faults.decide_ms))),
        truth("journal", fields.get("journal", Faults.journal)),
        truth("silent", fields.get("silent", Faults.silent)),
    )
    gone_ms = milliseconds("goneMs", fields["goneMs"]) if "goneMs" in fields else None
    return faults, gone_ms


def _probabilities(group: str, fields: Mapping[str, Any], modes: type[_Mode]) -> dict[_Mode, float]:
    given = fields.get(group, {})
    if not isinstance(given, dict):
        raise ValueError(f"{group} is not an object")
    known = {mode.value for mode in modes}
    for name, probability in given.items():
        if name not in known:
            raise ValueError(f"{group}: unknown mode: {name}")
        if type(probability) not in (int, float) or not 0 <= probability <= 1:
            raise ValueError(f"{group}: the probability of {name} is not a number from 0 to 1")
    if fsum(given.values()) > 1 + _ROUNDING:
        raise ValueError(f"{group}: the probabilities come to more than 1")
    # In the modes' own order: the order in the call must not change what a seed means.
    return {mode: given[mode] for mode in modes if given.get(mode)}


def truth(name: str, value: object) -> bool:
    """Check that a field is true or false. Raises `ValueError`."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is neither true nor false")
    return value


def milliseconds(name: str, value: object) -> int:
    """Check that a field is a whole number of milliseconds. Raises `ValueError`."""
    if type(value) is not int or not 0 <= value <= _MAX_MS:
        raise ValueError(f"{name} is not a whole number of milliseconds")
    return value


def _range(name: str, value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{name} is not a pair of milliseconds")
    low, high = (milliseconds(name, bound) for bound in value)
    if low > high:
        raise ValueError(f"{name} begins after its end")
    return low, high


class Misfortune(NamedTuple):
    """A payment's fault, with all that chance decides about it.

    `commits` says whether the payment enters the book before the answer, `commits_later` whether it
    does `later_ms` after it; a `gateway-late` answers after `later_ms`. `status` is a gateway's.
    """

    mode: PaymentFault
    commits: bool
    commits_later: bool
    later_ms: float
    status: HTTPStatus | None = None


class PaymentLots:
    """The faults of one payment after the other, chosen by the setting's seed."""

    def __init__(self, faults: Faults) -> None:
        self._random = Random(f"payments {faults.seed}")
        self._modes = faults.payments
        self._later_ms = faults.later_ms

    def draw(self) -> Misfortune | None:
        """Draw the next payment's fault; None is the ordinary outcome."""
        mode = _draw(self._random, self._modes)
        if mode is None:
            return None
        commits = mode in _COMMITTING or (mode in _BY_COIN and self._random.random() < 0.5)
        later_ms = self._random.uniform(*self._later_ms) if mode in _LATER else 0.0
        status = self._random.choice(GATEWAY_STATUSES) if mode in _GATEWAY else None
        commits_later = mode is PaymentFault.CLOSE_COMMIT
        if mode is PaymentFault.GATEWAY_EARLY:
            commits_later = status in _PASSED_ON and self._random.random() < 0.5
        return Misfortune(mode, commits, commits_later, later_ms, status)


class Deliberation(NamedTuple):
    """What the processor says of a payment at first, and `after_ms` later, if that is something
    else."""

    first: Standing
    last: Standing
    after_ms: float = 0.0


_AT_ONCE = Deliberation(Standing.SUCCEEDED, Standing.SUCCEEDED)


def deliberate(faults: Faults, correlation_id: str) -> Deliberation:
    """Decide about a payment. Only seed and id count, so that each time brings the same."""
    if not faults.decisions:
        return _AT_ONCE
    chance = Random(f"{faults.seed} {correlation_id}")
    declines = faults.decisions.get(Decision.DECLINE, 0.0)
    place = chance.random()
    if place < declines:
        return Deliberation(Standing.FAILED, Standing.FAILED)
    if place >= declines + faults.decisions.get(Decision.PENDING, 0.0):
        return _AT_ONCE
    last = chance.choice((Standing.SUCCEEDED, Standing.FAILED))
    return Deliberation(Standing.PENDING, last, chance.uniform(*faults.decide_ms))


class HealthLots:
    """The faults of one report of health after the other, chosen by the setting's seed."""

    def __init__(self, faults: Faults) -> None:
        self._random = Random(f"health {faults.seed}")
        self._modes = faults.health

    def draw(self) -> HealthFault | None:
        """Draw the next report's fault; None is the truth."""
        return _draw(self._random, self._modes)

    def slowness_ms(self) -> int:
        """Make up a `minResponseTime` for a lie."""
        return self._random.randint(0, _SLOWEST_LIE_MS)

    def wrong_report(self) -> bytes:
        """Pick one of `WRONG_REPORTS`."""
        return self._random.choice(WRONG_REPORTS)


def _draw(random: Random, modes: Mapping[_Mode, float]) -> _Mode | None:
    """Choose a mode by the probabilities; None is the rest to 1."""
    lots: list[_Mode | None] = [*modes, None]
    return random.choices(lots, cum_weights=[*accumulate(modes.values()), 1.0])[0]


_FAULTY = message(HTTPStatus.INTERNAL_SERVER_ERROR, "something went wrong")
_TOO_MANY_FOR_A_SECOND = message(
    HTTPStatus.TOO_MANY_REQUESTS, "too many requests", b"Retry-After: 1"
)
_REFUSALS = {
    PaymentFault.COMMIT_500: _FAULTY,
    PaymentFault.ERROR: _FAULTY,
    PaymentFault.TOO_MANY: message(HTTPStatus.TOO_MANY_REQUESTS, "too many requests"),
    PaymentFault.RETRY_AFTER: _TOO_MANY_FOR_A_SECOND,
    PaymentFault.COMMIT_429: _TOO_MANY_FOR_A_SECOND,
    PaymentFault.BAD_REQUEST: message(HTTPStatus.BAD_REQUEST, "amount is not valid"),
    PaymentFault.NOT_JSON: reply(HTTPStatus.OK, b"<html><body>payment processed</body></html>"),
}


def broken_answer(mode: PaymentFault, ordinary: Reply, separator: bytes) -> Reply | Stream:
    """Make a mode's answer in place of the ordinary one.

    Args:
        mode: one with an answer of its own; others raise `KeyError`.
        ordinary: the answer to break.
        separator: the bytes between its head and its body.
    """
    head, body = ordinary.head + separator, ordinary.body
    match mode:
        case PaymentFault.TRUNCATED:
            return Stream(iter([head + body[: len(body) // 2]]), ending=Ending.CLOSE)
        case PaymentFault.HALF_HEADER:
            half = head[: len(head) // 2]
            return Stream(iter([half]), status=None, ending=Ending.SILENCE)
        case PaymentFault.DRIP:
            whole = head + body
            return Stream((whole[n : n + 1] for n in range(len(whole))), interval_ms=DRIP_MS)
        case PaymentFault.HUGE:
            return Stream(_huge(separator))
        case _:
            return _REFUSALS[mode]


def gateway_answer(status: HTTPStatus) -> Reply:
    """A gateway's answer in the processor's stead."""
    return reply(status, b"<html>%b</html>" % status.phrase.encode(), content_type=b"text/html")


def _huge(separator: bytes) -> Iterator[bytes]:
    opening, end = b'{"message":"', b'"}'
    pieces, rest = divmod(HUGE_BYTES - len(opening) - len(end), len(_PIECE))
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n"
        b"Content-Length: %d\r\n%b" % (HUGE_BYTES, separator)
    )
    return chain([head + opening], repeat(_PIECE, pieces), [_PIECE[:rest] + end])
