"""The contract of a connector: how to speak to one kind of processor.

A connector makes requests and reads responses. It does no I/O: transport, time limits, the check of
the lease, breakers and retries are Payswitch's (`payswitch.processors.processor`). So no connector
can wait between the check of the lease and the write, follow a redirect, or lose bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import ClassVar, NamedTuple

from payswitch.money import BRL, Currency, Total
from payswitch.processors.outcomes import FindOutcome, HealthReport, PayOutcome

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Instruction:
    """A payment as a connector sees it, with the try under way."""

    correlation_id: str
    """The same in every try: the provider's idempotency key and reference."""
    cents: int
    """The amount in the currency's smallest unit."""
    requested_at: int
    """ms since the epoch; the same in every try at one processor. The ledger enters the payment at
    this instant."""
    metadata: bytes | None = field(default=None, repr=False)
    """The client's JSON object, in canonical form; logs never show it."""


class Request(NamedTuple):
    """A request to the processor; the base URL's credentials, host and length are added to it."""

    method: str
    path: str
    """Appended to the base URL, with its query."""
    headers: Headers = ()
    body: bytes = b""


class Response(NamedTuple):
    """A complete response; one that was cut off never reaches a connector."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] | None = None
    """Their names in any case."""
    retry_after_ms: int | None = None
    """The pause for which a 429 or 503 asks with `Retry-After`."""


@dataclass(frozen=True, slots=True)
class ConnectorSettings:
    """What a connector knows of its processor."""

    name: str
    """As in `PAYSWITCH_PROCESSORS`."""
    token: str = ""
    """`PAYSWITCH_TOKEN_<NAME>`."""
    currency: Currency = BRL
    """The deployment's currency."""


class NotUnderstoodError(ValueError):
    """A response that should hold a total, a fee or a token does not; the message says why."""


class Connector(ABC):
    """How to speak to one processor. One instance lives as long as its process, so it may keep what
    it was given, such as a token. All methods must be quick: they run on the hot path."""

    needs_token: ClassVar[bool] = False
    """Whether a start without `PAYSWITCH_TOKEN_<NAME>` is refused."""

    def __init__(self, settings: ConnectorSettings) -> None:
        self.settings = settings

    @abstractmethod
    def pay(self, instruction: Instruction) -> Request:
        """The request that pays. Two requests for one id must have the same effect as one."""

    @abstractmethod
    def read_payment(self, instruction: Instruction, response: Response) -> PayOutcome:
        """The meaning of a response to `pay`. Whatever isn't certain is `Unknown`."""

    @abstractmethod
    def find(self, instruction: Instruction) -> Request:
        """The request that asks whether the processor has a payment."""

    @abstractmethod
    def read_finding(self, instruction: Instruction, response: Response) -> FindOutcome:
        """The meaning of a response to `find`. `Missing` is a promise: the processor does not have
        the payment, and no try that it has answered will be recorded. Whatever isn't certain is
        `Unclear`."""

    def health(self) -> Request | None:
        """The request for a health report; None if the processor has none. Then it counts as
        healthy and fast, and only its breaker judges it."""
        return None

    def read_health(self, response: Response) -> HealthReport | None:
        """The report in a response to `health`; None, which is unknown health, if there is none."""
        return None

    def eligible(self, instruction: Instruction) -> bool:
        """Whether this processor may get the payment at all: a pure function of id, amount and
        metadata."""
        return True

    @property
    def restricts_payments(self) -> bool:
        """Whether the class has a rule of its own for `eligible`."""
        return type(self).eligible is not Connector.eligible

    def prepare(self, now_ms: int) -> Request | None:
        """A request that must be answered before the next one, such as one for a new token; None if
        nothing is missing. It is sent before a payment is routed. Its path may be a whole URL,
        which gets no credentials of the base URL."""
        return None

    def read_preparation(self, response: Response, now_ms: int) -> None:
        """Take the response to `prepare`. Raises `NotUnderstoodError`."""
        raise NotUnderstoodError("this connector prepares nothing")

    def total(self, first_ms: int, last_ms: int) -> Request | None:
        """The request for the total of the payments requested from `first_ms` to `last_ms`, both
        inclusive; None if the processor can't tell, which leaves it out of `reconcile`."""
        return None

    def read_total(self, response: Response) -> Total:
        """The total in a response to `total`. Raises `NotUnderstoodError`."""
        raise NotUnderstoodError("this connector reads no totals")

    def fee(self) -> Request | None:
        """The request for the fee; None if the processor can't tell: set `PAYSWITCH_FEE_<NAME>`."""
        return None

    def read_fee(self, response: Response) -> Decimal:
        """The share of each amount that the processor takes, in a response to `fee`. Raises
        `NotUnderstoodError`."""
        raise NotUnderstoodError("this connector reads no fees")
