"""The interface of traces, and their null objects.

These classes write nothing. Their subclasses in `traces` write spans. They need the extra `traces`
and are loaded only if `PAYSWITCH_TRACES` asks for them.
"""

from __future__ import annotations


class Step:
    """A step of a payment, for as long as its `with` block runs. An exception from the block marks
    it as failed."""

    __slots__ = ()
    traceparent: str | None = None
    """The trace context (W3C) for later steps; None without traces."""

    def __enter__(self) -> Step:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        pass

    def is_for(self, correlation_id: str) -> None:
        """Name the payment."""

    def served(self, status: int) -> None:
        """Note our answer to the client."""

    def answered(self, status: int) -> None:
        """Note a processor's answer."""

    def unanswered(self, error: Exception) -> None:
        """Note the reason why a processor did not answer."""

    def set_outcome(self, outcome: str, *, failed: bool) -> None:
        """Note how the step ended."""


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
        """The burial as a dead letter."""
        return NO_STEP


NO_TRACE = PaymentTrace()


class Traces:
    """The traces of one process."""

    def request(self, traceparent: bytes | None) -> Step:
        """A `POST /payments` with this header (W3C trace context); an invalid one is ignored."""
        return NO_STEP

    def payment(
        self, correlation_id: str, traceparent: object, *, claim: int, began_ms: int, ended_ms: int
    ) -> PaymentTrace:
        """The trace of a claimed payment: continued from its job, or new. The claim number `claim`
        ended the wait in the queue, between two instants by Redis' clock."""
        return NO_TRACE

    async def close(self) -> None:
        """Send the remaining spans, for 2 s at most."""
