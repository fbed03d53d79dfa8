"""A processor that payments are pinned to can't be dropped or pointed elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from arq.connections import ArqRedis

from payswitch.payments.known_processors import (
    KnownProcessor,
    KnownProcessors,
    StrandedPaymentsError,
)
from payswitch.settings import Settings
from tests.integration.command import Ended, Payswitch
from tests.integration.harness import Bench, bench
from tests.support import ANA, LOST_REPLY, RedisServer, Reply

URLS = {"default": "http://a", "fallback": "http://user:pw@b"}
LESS = {"default": "http://a"}
MOVED = {"default": "http://a", "fallback": "http://c"}


@pytest.fixture
async def b(redis: ArqRedis) -> AsyncIterator[Bench]:
    async with bench(redis) as made:
        await KnownProcessors(redis, URLS).check()
        yield made


@pytest.fixture
def payswitch(redis_server: RedisServer) -> Payswitch:
    return Payswitch(redis_server.url)


async def pinned(b: Bench) -> str:
    """A payment with an open try at the processor `fallback`."""
    b.choose("fallback")
    b.fallback.script = [LOST_REPLY]
    payment = await b.accept()
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert await b.open_tries(payment) == ["open"]
    return payment


@pytest.mark.parametrize("urls", [LESS, MOVED, {**MOVED, "acme": "http://d"}])
async def test_without_open_tries_there_any_settings_will_do(
    b: Bench, urls: dict[str, str]
) -> None:
    await b.accept()
    await KnownProcessors(b.redis, urls).check()
    assert [each.known for each in await KnownProcessors(b.redis, urls).compare()] == [
        *urls.values()
    ]


async def test_credentials_are_not_kept(b: Bench) -> None:
    assert await b.redis.hgetall("payments:processors") == {  # type: ignore[misc]
        b"default": b"http://a",
        b"fallback": b"http://b",
    }


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        (LESS, "PAYSWITCH_PROCESSORS does not name fallback, but 1 payments with open tries and 0"),
        (MOVED, "PAYMENT_PROCESSOR_URL_FALLBACK is http://c instead of http://b, but 1 payments"),
    ],
)
async def test_with_an_open_try_there_a_start_is_refused(
    b: Bench, urls: dict[str, str], message: str
) -> None:
    payment = await pinned(b)
    with pytest.raises(StrandedPaymentsError, match=message):
        await KnownProcessors(b.redis, urls).check()
    await KnownProcessors(b.redis, URLS).check()
    b.fallback.script = []
    await b.dispatch_until_done(payment)
    await KnownProcessors(b.redis, urls).check()


async def test_a_dead_letter_that_was_sent_there_keeps_it(b: Bench) -> None:
    b.choose("fallback")
    b.fallback.script = [Reply(422)]
    payment = await b.accept()
    assert (await b.dispatch_until_done(payment)).state == "dead"
    with pytest.raises(StrandedPaymentsError, match="0 payments with open tries and 1 dead"):
        await KnownProcessors(b.redis, LESS).check()


async def test_an_operator_may_say_that_a_provider_has_moved(b: Bench) -> None:
    await pinned(b)
    known = KnownProcessors(b.redis, MOVED)
    assert await known.compare() == [
        KnownProcessor("default", "http://a", "http://a"),
        KnownProcessor("fallback", "http://c", "http://b"),
    ]
    assert not await known.moved("default", ANA)
    assert not await known.moved("acme", ANA)
    assert await known.moved("fallback", ANA)
    await known.check()
    [(_, act)] = await b.redis.xrevrange("payments:audit", count=1)
    assert (act[b"act"], act[b"what"]) == (b"moved", b"fallback: http://b is now http://c")


async def test_a_worker_waits_with_payments_of_a_processor_that_it_does_not_know(b: Bench) -> None:
    payment = await pinned(b)
    knowing = b.settings
    b.use(Settings.from_environment({"PAYSWITCH_PROCESSORS": "default"}))
    await b.dispatcher.dispatch(await b.claim_when_due(payment))
    assert await b.field(payment, "state") == "queued"
    assert "pinned to fallback, which" in str(await b.field(payment, "last_error"))
    assert b.default.posts == []
    b.use(knowing)
    b.fallback.script = []
    assert (await b.dispatch_until_done(payment)).processor == "fallback"


async def test_a_worker_refuses_to_start_in_one_line(b: Bench, payswitch: Payswitch) -> None:
    await pinned(b)
    payswitch.environment |= {"PAYSWITCH_PROCESSORS": "default"}
    payswitch.environment["PAYMENT_PROCESSOR_URL_DEFAULT"] = "http://a"
    ended = await payswitch("worker")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines()[-1].startswith(
        "payswitch: PAYSWITCH_PROCESSORS does not name fallback, but 1 payments with open tries"
    )


async def test_the_commands_show_and_move_them(b: Bench, payswitch: Payswitch) -> None:
    await pinned(b)
    payswitch.environment |= {
        "PAYMENT_PROCESSOR_URL_DEFAULT": "http://a",
        "PAYMENT_PROCESSOR_URL_FALLBACK": "http://user:hush@c",
    }
    shown = (await payswitch("processors", "list", "--json")).json()["processors"]
    assert shown == [
        {
            "name": "default",
            "url": "http://a",
            "knownUrl": "http://a",
            "openPayments": 0,
            "deadLetters": 0,
        },
        {
            "name": "fallback",
            "url": "http://c",
            "knownUrl": "http://b",
            "openPayments": 1,
            "deadLetters": 0,
        },
    ]
    table = (await payswitch("processors", "list")).out
    assert ["fallback", "http://c", "http://b", "1", "0"] in [
        line.split() for line in table.splitlines()
    ]
    moved = await payswitch("processors", "moved", "fallback", "--reason", "new data centre")
    assert moved == Ended(0, "Workers may start: fallback is at http://c.\n", "")
    again = await payswitch("processors", "moved", "fallback", "--reason", "twice")
    assert again == Ended(1, "", "payswitch: fallback: its address has not changed\n")


@pytest.mark.parametrize("command", [("worker",), ("reconcile",)])
async def test_a_connector_without_the_token_that_it_needs_is_one_line(
    redis: ArqRedis, payswitch: Payswitch, command: tuple[str, ...]
) -> None:
    payswitch.environment["PAYSWITCH_CONNECTOR_FALLBACK"] = "charges"
    ended = await payswitch(*command)
    assert ended.code == (2 if command == ("reconcile",) else 1)
    assert ended.err.splitlines()[-1] == (
        "payswitch: PAYSWITCH_TOKEN_FALLBACK='': the connector charges needs a token"
    )


async def test_foreign_bytes_among_them_stop_no_start(b: Bench) -> None:
    await b.redis.hset("payments:processors", b"\xff", b"\xfe")  # type: ignore[misc,arg-type]
    found = await KnownProcessors(b.redis, URLS).compare()
    assert [(each.name, each.known) for each in found][2:] == [(r"\xff", r"\xfe")]
    await KnownProcessors(b.redis, URLS).check()
    assert len(await KnownProcessors(b.redis, URLS).compare()) == 2


@pytest.mark.parametrize("command", [("worker",), ("health",), ("reconcile",)])
async def test_a_connector_that_there_is_not_is_one_line(
    redis: ArqRedis, payswitch: Payswitch, command: tuple[str, ...]
) -> None:
    payswitch.environment["PAYSWITCH_CONNECTOR_FALLBACK"] = "nonsense"
    ended = await payswitch(*command)
    assert (ended.code, ended.out) == (2 if command == ("reconcile",) else 1, "")
    assert ended.err.splitlines()[-1] == (
        "payswitch: PAYSWITCH_CONNECTOR_FALLBACK: there is no connector 'nonsense'; there are "
        "charges, rinha"
    )
    assert await redis.hgetall("payments:processors") == {}  # type: ignore[misc]
