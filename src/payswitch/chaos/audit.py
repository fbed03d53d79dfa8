"""The audit: checks every single payment against the promise. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import quantiles

from payswitch.chaos.books import Books
from payswitch.chaos.clients import Sent
from payswitch.chaos.plan import REFUSING_MODES

_NEARLY_ALL = 0.99
"""The part of the payments that a run must accept if it disturbs only processors."""
_ENDS = frozenset({"settled", "declined", "dead"})


@dataclass(frozen=True, slots=True)
class Violation:
    """A breach of the promise, and its payment, if it is about one."""

    what: str
    detail: str
    correlation_id: str | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution in ms."""

    p50: float
    p99: float
    worst: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """The distribution of these values; None for fewer than two."""
        if len(values) < 2:
            return None
        cuts = quantiles(values, n=100, method="inclusive")
        return cls(round(cuts[49], 1), round(cuts[98], 1), round(max(values), 1))


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """The result of a run."""

    sent: int
    accepted: int
    unacknowledged_paid: int
    """Paid although no client got its 202: Redis had it, the answer got lost."""
    settled: dict[str, int]
    """By processor."""
    declined: int
    dead: int
    lost: int
    double: int
    difference_cents: int
    """Ledger against books: the sum of the processors' absolute differences."""
    settle_gap: Spread | None
    """From the processor's commit to our settling; None if clocks were set."""
    violations: list[Violation] = field(default_factory=list)
    dead_by_reason: dict[str, int] = field(default_factory=dict)
    faults_met: dict[str, int] = field(default_factory=dict)
    """By fault, the number of calls at the processors that met it; of payments that they declined
    or left pending."""

    @property
    def holds(self) -> bool:
        """Whether the promise was kept."""
        return not self.violations


def audit(
    sent: Mapping[str, Sent],
    books: Books,
    *,
    wrong_answers: Sequence[tuple[str, str]] = (),
    clocks_were_set: bool = False,
    all_should_pass: bool = False,
) -> RunVerdict:
    """Judge a run that has come to rest. With `all_should_pass` nothing stood between the clients
    and Redis, so that every refusal was needless."""
    violations = [
        *_refused(sent, least_share=_NEARLY_ALL if all_should_pass else 0.0),
        *_lost(sent, books),
        *_double(books),
        *_wrongly_settled(books),
        *_wrongly_paid(sent, books),
        *_wrongly_dead(sent, books),
        *_wrongly_declined(sent, books),
        *_unequal_books(books),
        *(Violation("incident", incident) for incident in books.incidents),
        *(Violation("wrong answer", answer, payment) for payment, answer in wrong_answers),
        *(
            Violation("left over", f"{count} in {key}")
            for key, count in books.left.items()
            if count
        ),
        *([] if clocks_were_set else _out_of_order(books)),
    ]
    settled = {
        name: sum(
            _pin(record) == name for record in books.records.values() if _is(record, "settled")
        )
        for name in books.booked
    }
    dead = [record for record in books.records.values() if _is(record, "dead")]
    reasons = Counter(record.get("reason", "") for record in dead)
    return RunVerdict(
        sent=len(sent),
        accepted=sum(each.acknowledged for each in sent.values()),
        unacknowledged_paid=sum(
            not each.acknowledged and _is(books.records.get(payment, {}), "settled")
            for payment, each in sent.items()
        ),
        settled=settled,
        declined=sum(_is(record, "declined") for record in books.records.values()),
        dead=len(dead),
        lost=sum(each.what == "lost" for each in violations),
        double=sum(each.what == "paid twice" for each in violations),
        difference_cents=sum(
            abs(books.ours[name].cents - books.theirs[name].cents) for name in books.ours
        ),
        settle_gap=None if clocks_were_set else Spread.of(_gaps_ms(books)),
        violations=violations,
        dead_by_reason=dict(sorted(reasons.items())),
        faults_met=_faults_met(books),
    )


def _is(record: Mapping[str, str], state: str) -> bool:
    return record.get("state") == state


def _pin(record: Mapping[str, str]) -> str | None:
    return record.get("processor")


def _lost(sent: Mapping[str, Sent], books: Books) -> Iterator[Violation]:
    """An acknowledged payment is paid, declined, or a dead letter."""
    for payment, each in sent.items():
        record = books.records.get(payment, {})
        state = record.get("state", "unknown")
        if each.acknowledged and state not in _ENDS:
            yield Violation("lost", f"acknowledged, and in the end it is {state}", payment)


def _double(books: Books) -> Iterator[Violation]:
    seen: dict[str, str] = {}
    for name, book in books.booked.items():
        for payment in book:
            if payment in seen:
                yield Violation("paid twice", f"by {seen[payment]} and by {name}", payment)
            seen[payment] = name


def _wrongly_settled(books: Books) -> Iterator[Violation]:
    """A settled payment is the same in its processor's book and in ours."""
    for payment, record in books.records.items():
        if not _is(record, "settled"):
            continue
        pin = _pin(record)
        entry = books.booked.get(pin or "", {}).get(payment)
        if entry is None:
            yield Violation("not paid", f"settled, but {pin} doesn't have it", payment)
        elif (int(record["cents"]), int(record["requested_at"])) != (
            entry.cents,
            entry.requested_at_us // 1000,
        ):
            ours = f"{record.get('cents')} cents at {record.get('requested_at')}"
            theirs = f"{entry.cents} cents at {entry.requested_at_us / 1000:.0f}"
            yield Violation("differs", f"ours: {ours}; {pin}: {theirs}", payment)


def _wrongly_paid(sent: Mapping[str, Sent], books: Books) -> Iterator[Violation]:
    """A client has sent each payment in a processor's book, with this amount, and we settled it."""
    for name, book in books.booked.items():
        for payment, entry in book.items():
            client = sent.get(payment)
            state = books.records.get(payment, {}).get("state", "unknown")
            if client is None:
                yield Violation("never sent", f"{name} has it, and no client sent it", payment)
            elif client.cents != entry.cents:
                detail = f"{name} has {entry.cents} cents, the client sent {client.cents}"
                yield Violation("differs", detail, payment)
            if state != "settled":
                yield Violation("not settled", f"{name} has it, and here it is {state}", payment)


def _refused(sent: Mapping[str, Sent], *, least_share: float) -> Iterator[Violation]:
    waited = [each for each in sent.values() if each.waited]
    accepted = sum(each.acknowledged for each in waited)
    if not accepted or accepted < least_share * len(waited):
        yield Violation("refused", f"only {accepted} of {len(waited)} payments were accepted")


def _wrongly_dead(sent: Mapping[str, Sent], books: Books) -> Iterator[Violation]:
    """A dead letter has a reason, is listed and equals the client's payment, and a processor has
    refused it: nothing else in a run makes one."""
    refused = {
        event["correlationId"]
        for journal in books.journals.values()
        for event in journal
        if event["fault"] in REFUSING_MODES
    }
    dead = {payment for payment, record in books.records.items() if _is(record, "dead")}
    for payment in dead:
        record, client = books.records[payment], sent.get(payment)
        if not record.get("reason"):
            yield Violation("no reason", "a dead letter without a reason", payment)
        if payment not in refused:
            yield Violation("no cause", f"dead, and nobody refused it: {record}", payment)
        if client is None or record.get("cents") != str(client.cents):
            yield Violation("differs", f"a dead letter that no client sent so: {record}", payment)
    for payment in dead ^ books.dead:
        where = "listed and not dead" if payment in books.dead else "dead and not listed"
        yield Violation("dead letters differ", where, payment)


def _wrongly_declined(sent: Mapping[str, Sent], books: Books) -> Iterator[Violation]:
    """A payment is declined if and only if a processor has declined it, with its code and the
    client's amount. That no processor has it in its book is checked for all payments."""
    by = {
        event["correlationId"]: name
        for name, journal in books.journals.items()
        for event in journal
        if event["event"] == "declined"
    }
    for payment, name in by.items():
        state = books.records.get(payment, {}).get("state", "unknown")
        if state != "declined":
            yield Violation("not declined", f"{name} declined it, and here it is {state}", payment)
    for payment, record in books.records.items():
        if not _is(record, "declined"):
            continue
        client = sent.get(payment)
        if payment not in by:
            yield Violation("no cause", f"declined here, and nobody declined it: {record}", payment)
        if not record.get("declined"):
            yield Violation("no reason", "declined without the processor's code", payment)
        if client is None or record.get("cents") != str(client.cents):
            yield Violation("differs", f"declined, and no client sent it so: {record}", payment)


def _out_of_order(books: Books) -> Iterator[Violation]:
    """A payment is first accepted, then requested, then recorded."""
    for book in books.booked.values():
        for payment, entry in book.items():
            accepted_at = int(books.records.get(payment, {}).get("accepted_at", 0))
            if not accepted_at * 1000 <= entry.requested_at_us <= entry.committed_at_us:
                detail = f"accepted at {accepted_at}, booked as {entry}"
                yield Violation("out of order", detail, payment)


def _unequal_books(books: Books) -> Iterator[Violation]:
    for name, total in books.ours.items():
        if total != books.theirs[name]:
            yield Violation("books differ", f"{name}: ours {total}, theirs {books.theirs[name]}")
    for window in books.windows:
        for name, total in window.ours.items():
            if total != window.theirs[name]:
                bounds = f"from {window.first_ms} to {window.last_ms}"
                detail = f"{name} {bounds}: ours {total}, theirs {window.theirs[name]}"
                yield Violation("window differs", detail)


def _faults_met(books: Books) -> dict[str, int]:
    events = [event for journal in books.journals.values() for event in journal]
    met = Counter(
        event["fault"]
        for event in events
        if event["fault"] is not None and event["event"] in ("answered", "hung-up")
    )
    met.update(event["event"] for event in events if event["event"] in ("declined", "pending"))
    return dict(sorted(met.items()))


def _gaps_ms(books: Books) -> list[float]:
    return [
        int(record["settled_at"]) - entry.committed_at_us / 1000
        for payment, record in books.records.items()
        if _is(record, "settled")
        and (entry := books.booked.get(_pin(record) or "", {}).get(payment)) is not None
    ]
