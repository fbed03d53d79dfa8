"""The dispatcher pays through a provider that speaks `charges`: the simulated one."""

from __future__ import annotations

from collections.abc import AsyncIterator
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


async def test_the_first_question_about_a_pending_payment_comes_soon_whatever_came_before(
    acme: Acme, redis: ArqRedis
) -> None:
    payment = await acme.bench.accept()
    acme.simulator.config.failing = True
    for _ in range(12):
        await acme.bench.dispatcher.dispatch(await acme.bench.claim_when_due(payment))
    acme.simulator.config.failing = False
    await acme.set_faults(decisions={"pending": 1}, decideMs=[10**8, 10**8])
    await acme.bench.dispatcher.dispatch(await acme.bench.claim_when_due(payment))
    assert (await acme.bench.field(payment, "open") or "").endswith("p")
    seconds, microseconds = await redis.time()
    due = await redis.zscore("arq:queue", payment)
    assert due is not None
    assert due - (seconds * 1000 + microseconds // 1000) <= 1000


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
