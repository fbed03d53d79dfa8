"""The dispatcher pays through a provider that speaks `charges`: the simulated one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import httpx
import pytest
from arq.connections import ArqRedis

from payswitch.money import Total
from payswitch.settings import ProcessorSettings
from payswitch.simulator.charges import ChargesDialect
from payswitch.simulator.dialect import SimulatorConfig
from payswitch.simulator.server import Simulator
from tests.integration.harness import Bench, bench
from tests.support import SLACK_S

pytestmark = pytest.mark.usefixtures("redis")


@dataclass
class Acme:
    """A bench whose `default` is a simulator that speaks `charges`."""

    bench: Bench
    simulator: Simulator

    url: str

    async def set_faults(self, **faults: object) -> None:
        """Set them as an operator does."""
        async with httpx.AsyncClient(trust_env=False, timeout=SLACK_S) as http:
            response = await http.put(
                f"{self.url}/admin/configurations/faults",
                json=faults,
                headers={"X-Rinha-Token": "secret"},
            )
            assert response.status_code == 200


@pytest.fixture
async def acme(redis: ArqRedis) -> AsyncIterator[Acme]:
    simulator = Simulator(SimulatorConfig("default", token="secret"), ChargesDialect)
    url = f"http://127.0.0.1:{await simulator.start('127.0.0.1', 0)}"
    async with bench(redis) as made:
        provider = ProcessorSettings("default", url, connector="charges", token="secret")
        settings = replace(made.settings, processors=(provider, made.settings.processors[1]))
        made.use(settings)
        yield Acme(made, simulator, url)
    await simulator.close()


async def test_a_payment_is_settled_with_the_providers_reference(acme: Acme) -> None:
    payment = await acme.bench.accept(cents=1990)
    record = await acme.bench.dispatch_until_done(payment)
    assert (record.state, record.reference) == ("settled", f"ch_{payment}")
    assert await acme.bench.summary() == {"default": Total(1, 1990), "fallback": Total()}
    assert acme.simulator.book.totals() == Total(1, 1990)


async def test_a_declined_payment_ends_as_declined(acme: Acme) -> None:
    await acme.set_faults(decisions={"decline": 1})
    record = await acme.bench.dispatch_until_done(await acme.bench.accept())
    assert (record.state, record.declined) == ("declined", "card_declined")
    assert acme.bench.fallback.posts == []
    assert await acme.bench.summary() == {"default": Total(), "fallback": Total()}


async def test_a_pending_payment_ends_as_the_provider_decides(acme: Acme) -> None:
    await acme.set_faults(decisions={"pending": 1}, decideMs=[100, 200])
    ids = [await acme.bench.accept(cents=100) for _ in range(8)]
    records = [await acme.bench.dispatch_until_done(each, times=500) for each in ids]
    states = [each.state for each in records]
    paid = acme.simulator.book.totals().count
    assert {*states} == {"settled", "declined"}
    assert states.count("settled") == paid
    assert await acme.bench.summary() == {"default": Total(paid, 100 * paid), "fallback": Total()}
    assert acme.bench.fallback.posts == []


async def declined_with_open_tries(b: Bench, count: int) -> list[str]:
    """So many that wait in line: they are declined, and the answer to a try was lost."""
    payments = [await b.accept() for _ in range(count)]
    for payment in payments * 2:
        await b.dispatcher.dispatch(await b.claim_when_due(payment))
    line = [each.decode() for each in await b.redis.zrange("payments:waiting:default", 0, -1)]
    assert line == payments
    return payments


async def are_due(b: Bench, payments: Sequence[str]) -> list[bool]:
    """Whether a worker may claim each now."""
    seconds, microseconds = await b.redis.time()
    now_ms = seconds * 1000 + microseconds // 1000
    return [(await b.redis.zscore("arq:queue", each) or 0) <= now_ms for each in payments]


@pytest.mark.parametrize("is_new", [False, True], ids=["known to the worker", "new to it"])
async def test_a_declined_payment_whose_horizon_passed_wakes_the_next_in_line(
    acme: Acme, is_new: bool
) -> None:
    """It ends, or a worker that didn't know it begins its own wait: both are progress."""
    b = acme.bench
    await acme.set_faults(decisions={"decline": 1}, payments={"commit-close": 1})
    first, *others = await declined_with_open_tries(b, 7)
    passed = {"horizon": 1} | ({} if is_new else {"quiet": 0})
    await b.redis.hset(f"payment:{first}", mapping=passed)  # type: ignore[misc]
    if is_new:
        b.use(b.settings)
    claim = await b.claim_when_due(first)
    for other in others:  # as behind a long line
        for key in ("payments:waiting:default", "arq:queue"):
            await b.redis.zincrby(key, 1_000_000, other)
    await b.dispatcher.dispatch(claim)
    assert await b.field(first, "state") == ("queued" if is_new else "declined")
    assert await are_due(b, others) == [True] * 4 + [False] * 2
    assert b.fallback.posts == []


@pytest.mark.parametrize("fault", ["commit-close", "commit-500"])
async def test_a_payment_whose_answer_was_lost_is_paid_once(acme: Acme, fault: str) -> None:
    await acme.set_faults(payments={fault: 1})
    record = await acme.bench.dispatch_until_done(await acme.bench.accept())
    assert (record.state, record.processor) == ("settled", "default")
    assert acme.simulator.book.totals() == Total(1, 1990)
    assert acme.bench.fallback.posts == []


async def test_a_wrong_token_pays_nothing_there(acme: Acme) -> None:
    acme.simulator.config.token = "another"
    payment = await acme.bench.accept()
    await acme.bench.dispatcher.dispatch(await acme.bench.claim_when_due(payment))
    assert await acme.bench.field(payment, "open") is not None
    assert acme.bench.fallback.posts == []
    assert acme.simulator.book.totals() == Total(0, 0)
