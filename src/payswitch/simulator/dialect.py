"""How a simulated processor speaks: what differs between the protocols, and nothing else."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Self

from payswitch.http.server import Exchange, Reply
from payswitch.money import BRL, Currency
from payswitch.simulator.book import Book, BookEntry


@dataclass
class SimulatorConfig:
    """A processor's settings. All but `rate_limit_s` may be changed while it runs.

    `fee` is the part of an amount that the processor keeps, `rate_limit_s` the length in seconds
    of the windows that limit calls for its health (0: no limit), `delay_ms` every payment's delay,
    `token` the `X-Rinha-Token` of its /admin calls, and the bearer token of `charges`.
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


class RejectedError(Exception):
    """A request that is no payment; `outcome` is the answer."""

    def __init__(self, outcome: Reply) -> None:
        super().__init__(outcome.status)
        self.outcome = outcome


class Dialect(ABC):
    """One protocol. It reads requests and writes answers; slots, delays, faults and the book are
    the simulator's."""

    pay_path: ClassVar[bytes]
    find_prefix: ClassVar[bytes]
    """With it begins every path that a payment is looked up at."""
    health_path: ClassVar[bytes]
    deliberates: ClassVar[bool]
    """Whether it has words for declined and pending payments."""

    def __init__(self, config: SimulatorConfig, book: Book) -> None:
        self.config = config
        self.book = book

    @property
    def questions(self) -> Mapping[bytes, Callable[[Exchange], Reply]]:
        """Further paths that are asked with GET, and their answers, which may raise
        `ValueError`."""
        return {}

    @abstractmethod
    def parse(self, exchange: Exchange) -> BookEntry:
        """The payment in a request. Raises `RejectedError`."""

    @abstractmethod
    def processed(self, entry: BookEntry) -> Reply:
        """The answer of a payment that is paid."""

    @abstractmethod
    def recorded(self, entry: BookEntry) -> Reply:
        """The answer of a payment that has just entered the book."""

    @abstractmethod
    def known(self, entry: BookEntry) -> Reply:
        """The answer of a payment whose id was in the book before."""

    @abstractmethod
    def refused(self, entry: BookEntry) -> Reply:
        """422, whether the payment is in the book or not."""

    @abstractmethod
    def busy(self, entry: BookEntry) -> Reply | None:
        """The answer while another call for this id is under way; None: it is served as well."""

    @abstractmethod
    def find(self, exchange: Exchange) -> Reply:
        """The answer of a look-up."""

    @abstractmethod
    def report(self, failing: bool, slowness_ms: int) -> bytes:
        """A report of health as JSON."""
