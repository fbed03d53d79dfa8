"""`payswitch reconcile` as an operator runs it: a process of its own, against a real Redis and two
real simulators."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from arq.connections import ArqRedis

from tests.integration.books import AT, Books, books
from tests.integration.command import Ended, Payswitch
from tests.support import RedisServer, free_port

AT_TEXT = "2026-01-01T00:00:00.000Z"


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Books]:
    async with books(redis) as made:
        await made.pay()
        yield made


@pytest.fixture
def payswitch(b: Books, redis_server: RedisServer) -> Payswitch:
    return Payswitch(
        redis_server.url,
        {
            "PAYMENT_PROCESSOR_URL_DEFAULT": b.settings.processor_urls["default"],
            "PAYMENT_PROCESSOR_URL_FALLBACK": b.settings.processor_urls["fallback"],
        },
    )


def total(count: int, amount: float) -> dict[str, object]:
    return {"totalRequests": count, "totalAmount": amount}


async def test_equal_books_end_with_0_and_say_so(payswitch: Payswitch) -> None:
    ended = await payswitch("reconcile")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.rstrip().endswith("All is equal.")
    assert "\x1b" not in ended.out


async def test_differences_end_with_1_and_are_shown_on_a_line_each(
    b: Books, redis: ArqRedis, payswitch: Payswitch
) -> None:
    missing = await b.settle_here(at=AT + 7, cents=123456)
    b.record_there(at=AT + 8, cents=555, processor="fallback")
    await redis.rpush("payments:incidents", "nonsense")  # type: ignore[misc]
    ended = await payswitch("reconcile")
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert (ended.code, ended.err) == (1, "")
    assert "default ours 2 1254.46" in lines
    assert "difference -1 -1234.56" in lines
    assert (
        f"{missing} settled here, unknown there settled, default, 1234.56, "
        "2026-01-01T00:00:00.007Z nothing nothing" in lines
    )
    assert "fallback 2026-01-01T00:00:00.008Z 2026-01-01T00:00:00.008Z +1 +5.55" in lines
    assert "nonsense" in lines
    assert lines[-1] == "There are differences."


async def test_json_holds_it_all_and_nothing_else_is_printed(
    b: Books, payswitch: Payswitch
) -> None:
    dead = await b.leave_unpaid("dead", at=AT + 7)
    b.record_there(dead, at=AT + 7)
    ended = await payswitch("reconcile", "--json", "--from", AT_TEXT, "--to", "2026-01-02T00:00Z")
    assert (ended.code, ended.err) == (1, "")
    assert ended.json() == {
        "equal": False,
        "windows": [{"from": AT_TEXT, "to": "2026-01-02T00:00:00.000Z"}],
        "totals": {
            "default": {
                "ours": total(1, 19.9),
                "theirs": total(2, 39.8),
                "difference": total(1, 19.9),
            },
            "fallback": {
                "ours": total(0, 0),
                "theirs": total(0, 0),
                "difference": total(0, 0),
            },
        },
        "payments": [
            {
                "correlationId": dead,
                "difference": "recorded there, not settled here",
                "ours": {
                    "state": "dead",
                    "processor": "default",
                    "amount": 19.9,
                    "requestedAt": "2026-01-01T00:00:00.007Z",
                },
                "theirs": {
                    "default": {"amount": 19.9, "requestedAt": "2026-01-01T00:00:00.007Z"},
                    "fallback": None,
                },
            }
        ],
        "unreadable": [],
        "unexplained": [],
        "incidents": [],
    }


async def test_a_payment_whose_record_is_gone_ends_with_1_and_is_named(
    redis: ArqRedis, payswitch: Payswitch
) -> None:
    await redis.zadd("payments:dead", {"gone\x1b[2J": 1})
    ended = await payswitch("reconcile")
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert (ended.code, ended.err) == (1, "")
    assert r"gone\x1b[2J no record, though among the dead letters" in lines
    assert lines[-1] == "There are differences."
    ended = await payswitch("reconcile", "--json")
    assert (ended.code, ended.json()["equal"]) == (1, False)
    assert ended.json()["unreadable"] == [
        {"correlationId": "gone\x1b[2J", "problem": "no record, though among the dead letters"}
    ]


async def test_a_replay_settles_what_reconciliation_found(b: Books, payswitch: Payswitch) -> None:
    """The way from a difference to its repair, without the worker."""
    dead = await b.leave_unpaid("dead", at=AT + 7)
    b.record_there(dead, at=AT + 7)
    assert (await payswitch("reconcile", "--json")).code == 1
    assert (await payswitch("dead", "replay", dead)).code == 0
    await b.settle_with_a_worker()
    assert (await payswitch("reconcile", "--json")).json()["equal"] is True


async def test_looking_thoroughly_is_an_option(b: Books, payswitch: Payswitch) -> None:
    payment = await b.settle_here(at=AT + 7)
    b.record_there(payment, at=AT + 8)
    assert (await payswitch("reconcile")).code == 0
    ended = await payswitch("reconcile", "--thorough", "--json")
    [found] = ended.json()["payments"]
    assert (ended.code, found["correlationId"]) == (1, payment)


async def test_a_processor_that_is_away_is_one_line(payswitch: Payswitch) -> None:
    port = free_port()
    payswitch.environment["PAYMENT_PROCESSOR_URL_FALLBACK"] = f"http://ann:secret@127.0.0.1:{port}"
    ended = await payswitch("reconcile", "--json")
    where = f"fallback at http://127.0.0.1:{port} (PAYMENT_PROCESSOR_URL_FALLBACK)"
    assert ended == Ended(2, "", f"payswitch: {where} can't be asked: connection refused\n")


@pytest.mark.parametrize(("refusing", "other"), [("default", "fallback"), ("fallback", "default")])
async def test_a_wrong_token_is_one_line_that_does_not_show_it(
    b: Books, payswitch: Payswitch, refusing: str, other: str
) -> None:
    payswitch.environment["PAYSWITCH_PROCESSOR_ADMIN_TOKEN"] = "hunter2"
    b.simulators[other].config.token = "hunter2"
    ended = await payswitch("reconcile")
    line = f"payswitch: {refusing} refuses PAYSWITCH_PROCESSOR_ADMIN_TOKEN\n"
    assert ended == Ended(2, "", line)


async def test_redis_being_away_is_one_line(payswitch: Payswitch) -> None:
    payswitch.redis_url = f"redis://127.0.0.1:{free_port()}/0"
    ended = await payswitch("reconcile")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert f"Redis at {payswitch.redis_url}" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--from", "yesterday"),
        ("--to", "2026-13-01T00:00Z"),
        ("--from", AT_TEXT, "--to", "2025-01-01T00:00Z"),
    ],
    ids=" ".join,
)
async def test_a_window_that_is_none_is_refused(
    payswitch: Payswitch, arguments: tuple[str, ...]
) -> None:
    ended = await payswitch("reconcile", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert (ended.err.count("\n"), ended.err[:11]) == (1, "payswitch: ")


async def test_a_window_that_moved_to_whole_entries_is_said(b: Books, payswitch: Payswitch) -> None:
    while await b.ledger.fold():
        pass
    ended = await payswitch("reconcile", "--from", "2026-01-01T00:00:01Z")
    assert ended.out.startswith("Compared from 2026-01-01T00:00:00.000Z: ")
