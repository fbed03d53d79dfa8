"""Traces as everybody but `traces` sees them.

These classes write nothing and cost next to nothing. Those of `traces` write spans; they need the
extra `traces`, so they are loaded only where `PAYSWITCH_TRACES` asks for them.
"""

from __future__ import annotations

from types import TracebackType


class Step:
    """One step of a payment, under way while its `with` block runs; an exception that leaves it
    fails it."""

    __slots__ = ()
    traceparent: str | None = None
    """The trace context (W3C) that goes on from here; None without one."""

    def __enter__(self) -> Step:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def is_for(self, correlation_id: str) -> None:
        """Name the payment."""

    def served(self, status: int) -> None:
        """Our answer to the client."""

    def answered(self, status: int) -> None:
        """A processor has answered."""

    def unanswered(self, error: Exception) -> None:
        """A processor has not answered, and why."""

    def set_outcome(self, outcome: str, *, failed: bool) -> None:
        """How it ended."""


NO_STEP = Step()


class PaymentTrace:
    """The steps of one claim of a payment."""

    __slots__ = ()

    def pay(self, processor: str, number: int) -> Step:
        """A try at a processor, by its number."""
        return NO_STEP

    def ask(self, processor: str) -> Step:
        """The question whether a processor has the payment."""
        return NO_STEP

    def settle(self, processor: str) -> Step:
        """The settlement in Redis."""
        return NO_STEP

    def bury(self, reason: str) -> Step:
        """Making it a dead letter."""
        return NO_STEP


NO_TRACE = PaymentTrace()


class Traces:
    """The traces of one process."""

    def request(self, traceparent: bytes | None) -> Step:
        """A `POST /payments` with this header (W3C trace context); an invalid one counts as
        none."""
        return NO_STEP

    def payment(
        self, correlation_id: str, traceparent: object, *, claim: int, began_ms: int, ended_ms: int
    ) -> PaymentTrace:
        """The trace of a claimed payment: the one that its job carries, or a new one. The claim of
        this number has ended a wait in the queue between two instants by Redis' clock."""
        return NO_TRACE

    async def close(self) -> None:
        """Send what is left, for 2 s at most."""
