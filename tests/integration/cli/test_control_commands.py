"""`payswitch select`, `pause`, `resume` and `payment` as an operator runs them: processes of their
own, against a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest
from arq.connections import ArqRedis

from payswitch.clock import boottime_ms
from payswitch.instants import parse_instant_ms
from payswitch.selection.selector import Selection
from payswitch.store import keys
from tests.integration.command import Ended, Payswitch
from tests.integration.harness import Bench, bench
from tests.support import RedisServer, Reply

UNKNOWN_ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"
CACHED = orjson.dumps(
    {
        "processor": "default",
        "healthy": True,
        "reason": "default 3 ms, fallback 5 ms",
        "at": "2026-11-22T16:05:00.123Z",
    }
)
DAY_MS = 86_400_000


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


@pytest.fixture
def payswitch(redis_server: RedisServer) -> Payswitch:
    return Payswitch(redis_server.url)


def pairs(out: str) -> dict[str, str]:
    """What a command printed as name and value."""
    lines = (line.split("  ", 1) for line in out.splitlines() if "  " in line)
    return {name: value.strip() for name, value in lines}


# select


async def test_without_a_choice_the_health_checks_is_shown(
    redis: ArqRedis, payswitch: Payswitch
) -> None:
    await redis.set(keys.SELECTION, CACHED)
    ended = await payswitch("select")
    assert (ended.code, ended.err) == (0, "")
    assert pairs(ended.out) == {
        "new tries go to": "default",
        "health check": "default: default 3 ms, fallback 5 ms",
    }


async def test_a_choice_is_shown_with_who_when_why_and_until(
    redis: ArqRedis, payswitch: Payswitch
) -> None:
    await redis.set(keys.SELECTION, CACHED)
    ended = await payswitch(
        "select", "fallback", "--for", "30m", "--by", "ana", "--reason", "upgrade of default"
    )
    assert ended.code == 0
    assert ended.out.startswith("New tries go to fallback for 30m.\n")
    shown = pairs((await payswitch("select")).out)
    assert shown["new tries go to"] == "fallback: an operator has chosen it"
    assert (shown["by"], shown["reason"]) == ("ana", "upgrade of default")
    assert shown["health check"] == "would choose default: default 3 ms, fallback 5 ms"
    lasts = parse_instant_ms(shown["until"]) - parse_instant_ms(shown["at"])
    assert lasts == pytest.approx(30 * 60_000, abs=1000)
    assert 0 < await redis.pttl(keys.OVERRIDE) <= 30 * 60_000


async def test_without_a_duration_a_choice_holds_for_ten_minutes(
    redis: ArqRedis, payswitch: Payswitch
) -> None:
    ended = await payswitch("select", "default")
    assert ended.out.startswith("New tries go to default for 10m.\n")
    assert 0 < await redis.pttl(keys.OVERRIDE) <= 600_000
    assert "@" in pairs(ended.out)["by"]


async def test_auto_ends_a_choice_and_may_be_said_again(
    redis: ArqRedis, payswitch: Payswitch
) -> None:
    await payswitch("select", "fallback")
    ended = await payswitch("select", "auto")
    assert (ended.code, ended.out.splitlines()[0]) == (0, "The health check chooses again.")
    assert await redis.exists(keys.OVERRIDE) == 0
    ended = await payswitch("select", "auto")
    assert (ended.code, ended.out.splitlines()[0]) == (0, "The health check chooses already.")


async def test_what_stands_is_printed_as_json(redis: ArqRedis, payswitch: Payswitch) -> None:
    assert (await payswitch("select", "--json")).json() == {
        "processor": "default",
        "override": None,
        "healthCheck": None,
    }
    await redis.set(keys.SELECTION, CACHED)
    document = (await payswitch("select", "fallback", "--by", "ana", "--json")).json()
    assert document["processor"] == document["override"]["processor"] == "fallback"
    assert (document["override"]["by"], document["override"]["reason"]) == ("ana", None)
    assert document["healthCheck"] == orjson.loads(CACHED)


async def test_what_somebody_wrote_into_an_order_moves_no_cursor(
    redis: ArqRedis, payswitch: Payswitch
) -> None:
    await redis.set(keys.OVERRIDE, b'{"processor":"default","by":"\\u001b[2Jx","at":7}')
    ended = await payswitch("select")
    assert (ended.code, "\x1b" in ended.out) == (0, False)
    assert pairs(ended.out)["by"] == r"\x1b[2Jx"


@pytest.mark.parametrize(
    "arguments",
    [
        ("select", "third"),
        ("select", "auto", "--for", "1m"),
        ("select", "--for", "1m"),
        ("select", "default", "--for", "0s"),
        ("select", "default", "--for", "31d"),
        ("select", "default", "--for", "soon"),
        ("select", "default", "--reason", "two\nlines"),
        ("pause", "--by", "x" * 201),
        ("pause", "--for", "1"),
        ("resume", "now"),
        ("payment",),
        ("payment", "17"),
        ("completion", "csh"),
        ("no-such-command",),
        ("--no-such-option",),
    ],
    ids=" ".join,
)
async def test_a_wrong_use_is_one_line(payswitch: Payswitch, arguments: tuple[str, ...]) -> None:
    ended = await payswitch(*arguments)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("payswitch: ")
    assert ended.err.endswith("--help)\n")


# pause and resume


async def test_a_pause_tells_what_is_in_flight_and_the_first_deadline(
    b: Bench, payswitch: Payswitch
) -> None:
    b.use(replace(b.settings, lease_ms=60_000))
    payment = await b.accept()
    await b.claim()
    await b.accept()
    ended = await payswitch("pause", "--by", "ana", "--reason", "upgrade")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Paused until `payswitch resume`.\n")
    shown = pairs(ended.out)
    assert (shown["by"], shown["reason"]) == ("ana", "upgrade")
    assert shown["in flight"] == "1 of 2 unpaid payments"
    assert "until" not in shown
    accepted_at = int(await b.field(payment, "accepted_at") or 0)
    assert parse_instant_ms(shown["first deadline"]) == accepted_at + DAY_MS


async def test_pausing_again_is_said_and_the_last_one_counts(
    redis: ArqRedis, payswitch: Payswitch
) -> None:
    await payswitch("pause")
    assert await redis.pttl(keys.PAUSED) == -1
    ended = await payswitch("pause", "--for", "15m")
    assert ended.out.startswith("Paused already; now for 15m.\n")
    assert 0 < await redis.pttl(keys.PAUSED) <= 900_000
    await payswitch("pause")
    assert await redis.pttl(keys.PAUSED) == -1


async def test_a_pause_beyond_a_deadline_is_warned_of(b: Bench, payswitch: Payswitch) -> None:
    await b.accept()
    assert (await payswitch("pause", "--for", "1h")).err == ""
    ended = await payswitch("pause", "--for", "25h")
    assert (ended.code, ended.err.count("\n")) == (0, 1)
    assert "deadline" in ended.err


async def test_resuming_tells_what_waits_and_may_be_said_again(
    b: Bench, payswitch: Payswitch
) -> None:
    await b.accept()
    await payswitch("pause")
    assert await payswitch("resume") == Ended(0, "Resumed: 1 unpaid payments.\n", "")
    assert await payswitch("resume") == Ended(0, "Nothing was paused.\n", "")


async def test_resuming_tells_of_what_has_reached_its_deadline(
    b: Bench, redis: ArqRedis, payswitch: Payswitch
) -> None:
    await b.accept()
    late = await b.accept()
    seconds, _ = await redis.time()
    await redis.zadd("payments:open", {late: seconds * 1000 - DAY_MS - 1})
    await payswitch("pause")
    ended = await payswitch("resume")
    assert (ended.code, ended.out) == (0, "Resumed: 2 unpaid payments.\n")
    assert ended.err.startswith("payswitch: 1 of them have reached their deadline")


# payment


async def history_of(payswitch: Payswitch, payment: str) -> list[str]:
    document = (await payswitch("payment", payment, "--json")).json()
    return [event["what"] for event in document["history"]]


async def test_a_queued_payment_is_shown_with_what_it_waits_for(
    b: Bench, payswitch: Payswitch
) -> None:
    payment = await b.accept()
    ended = await payswitch("payment", payment.upper())
    shown = pairs(ended.out)
    assert (ended.code, shown["payment"], shown["state"]) == (0, payment, "queued")
    assert shown["next"].startswith("a try from 2")
    assert ended.out.splitlines()[-1].endswith("Z  accepted")
    await payswitch("pause", "--by", "ana")
    shown = pairs((await payswitch("payment", payment)).out)
    assert shown["next"] == "nothing until payswitch resume: paused by ana"
    document = (await payswitch("payment", payment, "--json")).json()
    assert (document["state"], document["paused"], document["amount"]) == ("queued", True, 19.9)
    assert document["dueAt"] is not None


async def test_a_payment_is_shown_with_its_metadata(b: Bench, payswitch: Payswitch) -> None:
    payment = await b.accept(metadata='{"n":1.10,"who":"Zoë"}'.encode())
    shown = pairs((await payswitch("payment", payment)).out)
    assert (shown["amount"], shown["metadata"]) == ("19.90 BRL", '{"n":1.10,"who":"Zoë"}')
    ended = await payswitch("payment", payment, "--json")
    assert (ended.json()["currency"], ended.json()["metadata"]["who"]) == ("BRL", "Zoë")
    assert '{"n":1.10,' in ended.out
    without = await b.accept()
    assert "metadata" not in pairs((await payswitch("payment", without)).out)
    assert (await payswitch("payment", without, "--json")).json()["metadata"] is None


async def test_a_pinned_payment_tells_to_whom(b: Bench, payswitch: Payswitch) -> None:
    payment = await b.accept()
    b.default.script = [Reply(hang_up=True)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert await history_of(payswitch, payment) == [
        "accepted",
        "pinned to default, tries in all: 1",
        "try 1 at default: the connection ended without an answer; open: it may still be recorded",
    ]


async def test_who_waits_for_a_processor_tells_for_whom_and_behind_how_many(
    b: Bench, payswitch: Payswitch
) -> None:
    payments = [await b.accept() for _ in range(3)]
    b.default.script = [Reply(hang_up=True)] * 3
    b.default.finds = [Reply(503)] * 3
    for payment in payments * 2:
        await b.dispatcher.dispatch(await b.claim_when_due(payment))
    shown = pairs((await payswitch("payment", payments[2])).out)
    assert shown["next"].startswith("a try from 2")
    assert shown["next"].endswith("on, sooner once default answers; 2 wait for it before this one")
    document = (await payswitch("payment", payments[0], "--json")).json()
    assert (document["waitsFor"], document["heldFor"]) == ("default", None)
    processors = (await payswitch("status", "--json")).json()["processors"]
    assert [each["waiting"] for each in processors.values()] == [3, 0]
    await b.redis.set("payments:waiting:default", "not ours")
    document = (await payswitch("payment", payments[0], "--json")).json()
    assert (document["state"], document["waitsFor"]) == ("queued", None)


async def test_a_held_payment_tells_for_whom(b: Bench, payswitch: Payswitch) -> None:
    b.use(replace(b.settings, patience_ms=60_000))
    payment = await b.accept()
    fallback = Selection("fallback", True, "", down=("default",))
    b.dispatcher.router.see(b"1", fallback, boottime_ms())
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    shown = pairs((await payswitch("payment", payment)).out)
    assert shown["next"].startswith("a try from 2")
    assert shown["next"].endswith("on, sooner once default works again: it is held until then")
    document = (await payswitch("payment", payment, "--json")).json()
    assert (document["heldFor"], document["waitsFor"]) == ("default", None)
    b.dispatcher.router.see(b"2", replace(fallback, processor="default", down=()), boottime_ms())
    await b.dispatch_until_done(payment)
    document = (await payswitch("payment", payment, "--json")).json()
    assert (document["state"], document["heldFor"]) == ("settled", None)
    await b.redis.delete("payments:held:default")
    await b.redis.set("payments:held:default", "not ours")
    waiting = await b.accept()
    document = (await payswitch("payment", waiting, "--json")).json()
    assert (document["state"], document["heldFor"]) == ("queued", None)


async def test_a_settled_payment_tells_who_paid_it(b: Bench, payswitch: Payswitch) -> None:
    payment = await b.accept()
    await b.dispatch_until_done(payment)
    document = (await payswitch("payment", payment, "--json")).json()
    assert (document["state"], document["dueAt"]) == ("settled", None)
    assert document["waitsFor"] is None
    assert {event["what"] for event in document["history"]} == {
        "accepted",
        "requested from default",
        "settled: paid by default, tries in all: 1",
    }
    assert document["history"][0]["what"] == "accepted"
    assert "settled at" in (await payswitch("payment", payment)).out


async def test_a_dead_letter_tells_why_and_that_it_was_put_back(
    b: Bench, payswitch: Payswitch
) -> None:
    payment = await b.accept()
    b.default.script = [Reply(422)]
    await b.dispatch_until_done(payment)
    history = await history_of(payswitch, payment)
    died = "dead letter: default: refused with status 422"
    assert history[-1] == died
    await payswitch("dead", "replay", payment, "--by", "ana", "--reason", "default is mended")
    assert (await b.dispatch_until_done(payment)).state == "settled"
    assert await history_of(payswitch, payment) == [
        "accepted",
        "try 1 at default: refused with status 422; closed, as default doesn't have the payment",
        died,
        "put back by ana: default is mended",
        "an earlier try: closed, as default doesn't have the payment",
        "requested from default",
        "settled: paid by default, tries in all: 2",
    ]


async def test_an_incident_belongs_to_the_history(
    b: Bench, redis: ArqRedis, payswitch: Payswitch
) -> None:
    payment = await b.accept()
    [claim] = await b.claim()
    await b.ledger.settle(claim, "fallback", 1_800_000_000_000)
    await redis.rpush("payments:incidents", "{")  # type: ignore[misc]
    assert (await history_of(payswitch, payment))[-1] == (
        "incident: fallback has it, though pinned to nobody"
    )


async def test_an_unknown_payment_is_one_line(payswitch: Payswitch) -> None:
    for arguments in ((UNKNOWN_ID,), (UNKNOWN_ID, "--json")):
        ended = await payswitch("payment", *arguments)
        assert ended == Ended(1, "", f"payswitch: {UNKNOWN_ID}: no such payment\n")


async def test_a_spoilt_record_is_one_line(b: Bench, redis: ArqRedis, payswitch: Payswitch) -> None:
    payment = await b.accept()
    await redis.hset(f"payment:{payment}", "cents", "many")  # type: ignore[misc]
    ended = await payswitch("payment", payment)
    assert ended == Ended(1, "", f"payswitch: {payment}: unreadable: cents is 'many'\n")


@pytest.mark.parametrize("score", ["inf", "-inf", "9e300"])
async def test_any_score_in_the_queue_can_be_shown(
    b: Bench, redis: ArqRedis, payswitch: Payswitch, score: str
) -> None:
    payment = await b.accept()
    await redis.zadd("arq:queue", {payment: float(score)})
    assert (await payswitch("payment", payment)).code == 0
