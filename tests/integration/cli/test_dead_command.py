"""`payswitch dead` as an operator runs it: a process of its own, against a real Redis."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from arq.connections import ArqRedis

from payswitch.cli.output import Lines
from payswitch.instants import parse_instant_ms
from tests.integration.command import Ended, Payswitch
from tests.integration.harness import Bench, bench
from tests.support import RedisServer, Reply, free_port

UNKNOWN_ID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        yield made


@pytest.fixture
def payswitch(redis_server: RedisServer) -> Payswitch:
    return Payswitch(redis_server.url)


async def refused(b: Bench, *, cents: int = 1990) -> str:
    payment = await b.accept(cents=cents)
    b.default.script = [Reply(422)]
    assert (await b.dispatch_until_done(payment)).state == "dead"
    return payment


async def test_no_dead_letters_is_said(payswitch: Payswitch) -> None:
    ended = await payswitch("dead", "list")
    assert ended == Ended(0, "There are no dead letters.\n", "")


async def test_the_list_shows_each_with_its_reason_on_one_line(
    b: Bench, payswitch: Payswitch
) -> None:
    payment = await refused(b, cents=123456)
    ended = await payswitch("dead", "list")
    [line] = [line for line in ended.out.splitlines() if payment in line]
    assert ended.code == 0
    assert "1 of 1 dead letters" in ended.out
    assert "1234.56" in line
    assert line.rstrip().endswith("default: refused with status 422")
    assert "\x1b" not in ended.out


async def test_a_list_of_several_pages_is_shown_whole_and_aligned(
    redis: ArqRedis, payswitch: Payswitch
) -> None:
    ids = [f"4a7901b8-7d26-4d9d-aa19-{n:012d}" for n in range(1201)]
    await redis.zadd("payments:dead", {each: n for n, each in enumerate(ids)})
    ended = await payswitch("dead", "list", "--limit", "1200")
    title, head, *lines, last = ended.out.splitlines()
    assert title == "1200 of 1201 dead letters, the newest first"
    assert last.startswith("1200 of them unreadable")
    assert [line.split()[0] for line in lines] == ids[:0:-1]
    assert {line.index("unreadable") for line in lines} == {head.index("reason")}


async def test_a_page_is_printed_before_the_next_is_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = Lines("title", ("payment", "tries", "reason"), numbers=("tries",))
    for number in (7, 1000):
        lines.print([("id", str(number), "why")])
        assert capsys.readouterr().out.splitlines()[-1].split() == ["id", str(number), "why"]


async def test_in_a_narrow_terminal_ids_stay_whole(b: Bench, redis_server: RedisServer) -> None:
    payment = await refused(b)
    ours, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "payswitch", "dead", "list"),
        env={**os.environ, "REDIS_URL": redis_server.url, "COLUMNS": "80", "TERM": "xterm"},
        stdout=theirs,
    )
    assert await process.wait() == 0
    os.close(theirs)
    shown = os.read(ours, 100_000)
    os.close(ours)
    assert payment.encode() in shown


async def test_a_reader_that_is_gone_is_no_error_of_redis(redis_server: RedisServer) -> None:
    nobody, ours = os.pipe()
    os.close(nobody)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "payswitch", "dead", "list"),
        env={**os.environ, "REDIS_URL": redis_server.url},
        stdout=ours,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(ours)
    _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"")


@pytest.mark.parametrize("command", [("replay",), ("resolve", "--reason", "refunded")])
async def test_any_other_payment_is_told_from_a_dead_letter(
    b: Bench, redis: ArqRedis, payswitch: Payswitch, command: tuple[str, ...]
) -> None:
    payment = await b.accept()
    for state in ("queued", "processing", "settled", "declined"):
        await redis.hset(f"payment:{payment}", "state", state)  # type: ignore[misc]
        ended = await payswitch("dead", command[0], payment, *command[1:])
        assert ended.code == 1
        assert ended.err.startswith(f"payswitch: {payment}: no dead letter: ")


async def test_the_list_as_json_counts_those_that_it_does_not_show(
    b: Bench, payswitch: Payswitch
) -> None:
    await refused(b)
    newest = await refused(b)
    document = (await payswitch("dead", "list", "--limit", "1", "--json")).json()
    [letter] = document["deadLetters"]
    assert (document["total"], letter["correlationId"]) == (2, newest)
    assert (letter["amount"], letter["processor"], letter["tries"]) == (19.9, "default", 1)
    assert letter["reason"] == "default: refused with status 422"
    assert parse_instant_ms(letter["deadAt"]) >= parse_instant_ms(letter["acceptedAt"])


async def test_a_reason_is_shown_as_it_stands(
    b: Bench, redis: ArqRedis, payswitch: Payswitch
) -> None:
    payment = await refused(b)
    await redis.hset(f"payment:{payment}", "reason", "[red]status[/] 422")  # type: ignore[misc]
    assert "[red]status[/] 422" in (await payswitch("dead", "list")).out


async def test_all_that_is_known_of_one_is_shown(b: Bench, payswitch: Payswitch) -> None:
    payment = await b.accept()
    b.default.script = [Reply(hang_up=True), Reply(422)]
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    ended = await payswitch("dead", "show", payment.upper())
    shown = dict(line.split("  ", 1) for line in ended.out.splitlines())
    assert ended.code == 0
    assert shown["payment"].strip() == payment
    assert shown["open tries"].strip() == "1 (may still be recorded)"
    assert "default" in shown["last error"]
    document = (await payswitch("dead", "show", payment, "--json")).json()
    [open_try] = document["openTries"]
    assert open_try == {"id": await b.field(payment, "open"), "ended": False, "pending": False}
    assert document["horizon"] is not None


async def test_replay_puts_dead_letters_back_and_names_what_is_none(
    b: Bench, payswitch: Payswitch
) -> None:
    first, second = await refused(b), await refused(b)
    ended = await payswitch("dead", "replay", first, UNKNOWN_ID, second)
    assert ended == Ended(1, "2 replayed\n", f"payswitch: {UNKNOWN_ID}: no such payment\n")
    for payment in (first, second):
        assert (await b.dispatch_until_done(payment)).state == "settled"
    ended = await payswitch("dead", "replay", first)
    assert ended == Ended(1, "0 replayed\n", f"payswitch: {first}: no dead letter: it is paid\n")


async def test_replay_of_all_says_how_many(b: Bench, payswitch: Payswitch) -> None:
    await asyncio.gather(*(b.accept() for _ in range(700)))
    for claim in await b.claim(limit=700):
        await b.dispatcher.dispatch(replace(claim, overdue=True))
    assert await payswitch("dead", "replay", "--all") == Ended(0, "700 replayed\n", "")
    assert await payswitch("dead", "replay", "--all") == Ended(0, "0 replayed\n", "")


async def test_a_filter_chooses_what_is_listed_and_replayed(b: Bench, payswitch: Payswitch) -> None:
    payment = await refused(b)
    of_others = ("--with-reason", "deadline", "--processor", "default", "--younger-than", "1h")
    ended = await payswitch("dead", "list", *of_others)
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "0 of 1 dead letters shown")
    assert await payswitch("dead", "replay", "--all", *of_others) == Ended(0, "0 replayed\n", "")
    document = (await payswitch("dead", "list", "--with-reason", "422", "--json")).json()
    assert [each["correlationId"] for each in document["deadLetters"]] == [payment]
    ended = await payswitch("dead", "replay", "--all", "--with-reason", "422")
    assert ended == Ended(0, "1 replayed\n", "")


async def test_a_resolved_dead_letter_is_listed_apart_and_not_replayed(
    b: Bench, payswitch: Payswitch
) -> None:
    payment = await refused(b)
    by_ana = ("--by", "ana", "--reason", "paid by hand")
    ended = await payswitch("dead", "resolve", payment, UNKNOWN_ID, *by_ana)
    assert ended == Ended(1, "1 resolved\n", f"payswitch: {UNKNOWN_ID}: no such payment\n")
    assert (await payswitch("dead", "list")).out == "There are no dead letters.\n"
    [line] = [
        line
        for line in (await payswitch("dead", "list", "--resolved")).out.splitlines()
        if payment in line
    ]
    assert line.rstrip().endswith("ana   paid by hand")
    document = (await payswitch("dead", "list", "--resolved", "--json")).json()
    resolution = document["deadLetters"][0]["resolution"]
    assert (resolution["by"], resolution["reason"]) == ("ana", "paid by hand")
    ended = await payswitch("dead", "replay", payment)
    assert (ended.code, ended.out) == (1, "0 replayed\n")
    assert ended.err == (
        f"payswitch: {payment}: it is resolved, so a replay may pay it twice; "
        "--even-resolved replays it\n"
    )
    assert (
        (await payswitch("payment", payment)).out.rstrip().endswith("resolved by ana: paid by hand")
    )
    ended = await payswitch("dead", "replay", payment, "--even-resolved")
    assert ended == Ended(0, "1 replayed\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("resolve", UNKNOWN_ID),
        ("resolve", "--reason", "refunded"),
        ("resolve", UNKNOWN_ID, "--reason", " "),
        ("resolve", UNKNOWN_ID, "--reason", "refunded", "--by", ""),
        ("list", "--older-than", "soon"),
        ("list", "--older-than", "4000d"),
        ("list", "--resolved", "--processor", "default"),
        ("replay", UNKNOWN_ID, "--processor", "default"),
        ("replay", "--all", "--even-resolved"),
    ],
    ids=" ".join,
)
async def test_wrong_use_is_one_line(payswitch: Payswitch, arguments: tuple[str, ...]) -> None:
    ended = await payswitch("dead", *arguments)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("command", ["show", "replay"])
async def test_what_is_no_uuid_is_one_line(payswitch: Payswitch, command: str) -> None:
    ended = await payswitch("dead", command, "17")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "'17' is no UUID" in ended.err


async def test_an_unknown_payment_is_one_line(payswitch: Payswitch) -> None:
    ended = await payswitch("dead", "show", UNKNOWN_ID)
    assert ended == Ended(1, "", f"payswitch: {UNKNOWN_ID}: no such payment\n")


@pytest.mark.parametrize("arguments", [(), ("--all", UNKNOWN_ID)], ids=["neither", "both"])
async def test_replay_takes_ids_or_all(payswitch: Payswitch, arguments: tuple[str, ...]) -> None:
    ended = await payswitch("dead", "replay", *arguments)
    assert (ended.code, ended.out) == (2, "")


@pytest.mark.parametrize(
    "arguments",
    [("list",), ("list", "--json"), ("show", UNKNOWN_ID), ("replay", "--all")],
    ids=" ".join,
)
async def test_redis_being_away_is_one_line(arguments: tuple[str, ...]) -> None:
    port = free_port()
    ended = await Payswitch(f"redis://:secret@127.0.0.1:{port}/0")("dead", *arguments)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert f"Redis at redis://127.0.0.1:{port}/0" in ended.err
    assert "secret" not in ended.err


async def test_out_of_memory_is_one_line_and_nothing_is_replayed(
    b: Bench, redis: ArqRedis, payswitch: Payswitch
) -> None:
    await refused(b)
    await redis.config_set("maxmemory", 1)
    try:
        ended = await payswitch("dead", "replay", "--all")
    finally:
        await redis.config_set("maxmemory", 0)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert "no memory left" in ended.err
    assert await redis.zcard("payments:dead") == 1


async def test_unreadable_dead_letters_are_counted_and_named(
    b: Bench, redis: ArqRedis, payswitch: Payswitch
) -> None:
    good, spoilt = await refused(b), await refused(b)
    await redis.hset(f"payment:{spoilt}", "dead_at", "9" * 18)  # type: ignore[misc]
    await redis.zadd("payments:dead", {b"\xff\xfe": 1})
    ended = await payswitch("dead", "list")
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert (ended.code, ended.err) == (0, "")
    assert "3 of 3 dead letters, the newest first" in lines
    assert f"{spoilt} unreadable: dead_at is '{'9' * 18}'" in lines
    assert r"\xff\xfe unreadable: it has no record" in lines
    assert lines[-1].startswith("2 of them unreadable")
    document = (await payswitch("dead", "list", "--json")).json()
    assert [each["correlationId"] for each in document["deadLetters"]] == [good]
    assert document["unreadable"] == [
        {"correlationId": spoilt, "problem": f"dead_at is '{'9' * 18}'"},
        {"correlationId": r"\xff\xfe", "problem": "it has no record"},
    ]


async def test_showing_an_unreadable_record_says_what_is_wrong(
    b: Bench, redis: ArqRedis, payswitch: Payswitch
) -> None:
    payment = await refused(b)
    await redis.hset(f"payment:{payment}", "tries", "9" * 20)  # type: ignore[misc]
    ended = await payswitch("dead", "show", payment, "--json")
    assert ended == Ended(1, "", f"payswitch: {payment}: unreadable: tries is '{'9' * 20}'\n")


async def test_a_replay_of_all_names_what_has_no_record(
    b: Bench, redis: ArqRedis, payswitch: Payswitch
) -> None:
    await refused(b)
    await redis.zadd("payments:dead", {b"\xff\x1b": 1})
    ended = await payswitch("dead", "replay", "--all")
    assert ended == Ended(
        1, "1 replayed\n", "payswitch: \\xff\\x1b: a dead letter without a record\n"
    )


@pytest.mark.parametrize("field", ["reason", "last_error"])
async def test_no_escape_sequence_reaches_the_terminal(
    b: Bench, redis: ArqRedis, payswitch: Payswitch, field: str
) -> None:
    payment = await refused(b)
    await redis.hset(  # type: ignore[misc]
        f"payment:{payment}", mapping={field: "bad \x1b[2J\x1b]0;owned\x07\npayment  x"}
    )
    shown = (await payswitch("dead", "show", payment)).out
    listed = (await payswitch("dead", "list")).out
    spelled_out = r"bad \x1b[2J\x1b]0;owned\x07\npayment  x"
    assert spelled_out in shown
    assert (spelled_out in listed) is (field == "reason")
    assert "\x1b" not in shown + listed
