"""A scored run against scripted parts: what it does to them in which order, and what it finds."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httptools
import orjson
import pytest
from rich.console import Console

from bench.rinha.result import as_document, show
from bench.rinha.run import Outcome, run
from bench.rinha.scenario import PROCESSORS, Scenario, Setting, Stage, load_scenario
from bench.rinha.site import Site, SiteError, Usages
from payswitch.money import Total
from tests.support import SLACK_S

USERS = 4
QUIET = Stage(0.1, {name: Setting(0, failing=False) for name in PROCESSORS})
BROKEN = Stage(0.3, {"default": Setting(100, failing=True), "fallback": Setting(5, failing=False)})


@dataclass
class Part:
    """One of the three: the backend or a processor. Counts payments as it is told."""

    name: str
    calls: list[tuple[str, str, Any]]
    """Of all parts, in their order: part, method with path, body."""
    count: int = 0
    amount: float = 0.0
    down: set[str] = field(default_factory=set)
    """Paths that get 500."""
    silent: set[str] = field(default_factory=set)
    """Paths that get no answer."""
    on_payment: Any = None
    summary: dict[str, Any] | None = None
    ready: dict[str, Any] = field(default_factory=dict)
    connections: int = 0
    paying: set[object] = field(default_factory=set)
    """Connections that payments came on."""
    url: str = ""

    def answer(self, method: str, path: str, body: bytes, connection: object) -> bytes | None:
        document = orjson.loads(body) if body else None
        self.calls.append((self.name, f"{method} {path}", document))
        if path in self.silent:
            return None
        if path in self.down:
            return b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"
        if path == "/payments":
            self.paying.add(connection)
            self.on_payment()
        content = orjson.dumps(self.summary_of(path))
        return b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)

    def summary_of(self, path: str) -> dict[str, Any]:
        if path == "/readyz":
            return self.ready
        if path == "/payments-summary" and self.summary is not None:
            return self.summary
        return {"totalRequests": self.count, "totalAmount": self.amount}


class Connection(asyncio.Protocol):
    """Speaks HTTP for a part."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path, self._body = url.decode().partition("?")[0], b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        answer = self._part.answer(method, self._path, self._body, self)
        if answer is not None:
            self._transport.write(answer)


@dataclass
class Stand:
    """A site of three scripted parts; every payment goes to default at once."""

    backend: Part
    processors: dict[str, Part]
    calls: list[tuple[str, str, Any]]
    cents: int

    def pay(self) -> None:
        default = self.processors["default"]
        default.count += 1
        default.amount = default.count * self.cents / 100
        assert self.backend.summary is not None
        self.backend.summary["default"] = default.summary_of("")

    @property
    def site(self) -> Site:
        async def usages() -> Usages:
            return {}

        async def selection() -> str | None:
            return None

        return Site(
            kind="stand",
            endpoint=self.backend.url,
            processors={name: part.url for name, part in self.processors.items()},
            token="123",
            usages=usages,
            selection=selection,
            check=lambda: None,
        )

    def said(self, method: str) -> list[tuple[str, str, Any]]:
        return [call for call in self.calls if call[1].startswith(method)]


@pytest.fixture
async def stand(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stand]:
    calls: list[tuple[str, str, Any]] = []
    monkeypatch.setattr(os, "sync", lambda: calls.append(("disk", "sync", None)))
    nothing = {"totalRequests": 0, "totalAmount": 0}
    backend = Part("backend", calls, summary=dict.fromkeys(PROCESSORS, nothing))
    processors = {name: Part(name, calls) for name in PROCESSORS}
    stand = Stand(backend, processors, calls, brief("final").cents)
    backend.on_payment = stand.pay
    async with contextlib.AsyncExitStack() as stack:
        for part in (backend, *processors.values()):
            part.url = await stack.enter_async_context(listening(part))
        yield stand


@contextlib.asynccontextmanager
async def listening(part: Part) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(part), "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


def brief(name: str) -> Scenario:
    """A run that is over before anyone pays again; all users but the last pay once."""
    scenario = load_scenario(name)
    return replace(scenario, seconds=0.9, users=USERS, stages=(QUIET, BROKEN))


async def outcome(stand: Stand, scenario: Scenario) -> Outcome:
    return await run(stand.site, scenario, lambda sample: None, rest_limit_s=0.2)


def counts(totals: Mapping[str, Total]) -> list[int]:
    return [totals[name].count for name in PROCESSORS]


async def test_a_run_that_goes_well_is_scored_and_reported(stand: Stand) -> None:
    found = await outcome(stand, brief("final"))
    assert found.score.accepted == stand.processors["default"].count == USERS - 1
    assert (found.score.lag, found.score.inconsistencies, found.failed) == (0, 0, {})
    assert (found.rested_after_s is not None, found.at_rest) == (True, Total())
    assert found.problems == []
    assert 0 < found.p50_ms <= found.score.p99_ms + 0.01
    document = as_document(found)
    assert document["pagamentos_solicitados"] == {"qtd_sucesso": USERS - 1, "qtd_falha": 0}
    assert document["total_bruto"] == pytest.approx((USERS - 1) * 20.05)
    assert document["lag"]["lag"] == 0


async def test_a_payment_that_waits_is_a_stall_of_the_result(stand: Stand) -> None:
    first = True

    def wait_once_and_pay() -> None:
        nonlocal first
        if first:
            time.sleep(0.05)  # the whole stand stands still
        first = False
        stand.pay()

    stand.backend.on_payment = wait_once_and_pay
    found = await outcome(stand, brief("final"))
    stall, *_ = as_document(found)["payswitch"]["stalls"]
    assert (stall["payments"], stall["atS"]) == (1, pytest.approx(0, abs=SLACK_S))
    assert stall["ms"] > 49


@pytest.mark.parametrize(
    ("told", "durability"),
    [
        ({"promise": "process", "kept": True}, "process"),
        ({"promise": "disk", "kept": False}, "none"),
        (None, "unknown"),
    ],
)
async def test_the_result_names_what_a_202_stood_for(
    stand: Stand, told: dict[str, Any] | None, durability: str
) -> None:
    stand.backend.ready = {"status": "ready", "durability": told}
    found = await outcome(stand, brief("final"))
    assert as_document(found)["payswitch"]["durability"] == durability
    output = Console(record=True, file=io.StringIO(), width=120)
    show(found, output)
    assert f"stand, durability {durability}" in output.export_text()


async def test_before_the_first_payment_all_are_purged_and_the_disk_is_up_to_date(
    stand: Stand,
) -> None:
    await outcome(stand, brief("final"))
    calls = [(part, call) for part, call, _ in stand.calls if call.startswith(("POST", "sync"))]
    assert calls[:5] == [
        ("default", "POST /admin/purge-payments"),
        ("fallback", "POST /admin/purge-payments"),
        ("backend", "POST /purge-payments"),
        ("disk", "sync"),
        ("backend", "POST /payments"),
    ]


async def test_stages_are_set_in_their_order(stand: Stand) -> None:
    await outcome(stand, brief("final"))
    settings = [(part, *document.items()) for part, _, document in stand.said("PUT")]
    reset = [
        (part, (what, value))
        for part in PROCESSORS
        for what, value in (("delay", 0), ("failure", False))
    ]
    assert settings == [
        *reset,
        *reset,
        ("default", ("delay", 100)),
        ("default", ("failure", True)),
        ("fallback", ("delay", 5)),
        ("fallback", ("failure", False)),
    ]


async def test_every_user_pays_the_amount_with_a_new_id_on_a_connection_of_its_own(
    stand: Stand,
) -> None:
    await outcome(stand, brief("final"))
    paid = [document for _, call, document in stand.calls if call == "POST /payments"]
    assert {document["amount"] for document in paid} == {20.05}
    assert len({document["correlationId"] for document in paid}) == USERS - 1
    assert len(stand.backend.paying) == USERS - 1


async def test_a_summary_that_differs_is_fined(stand: Stand) -> None:
    assert stand.backend.summary is not None
    stand.backend.summary["fallback"] = {"totalRequests": 2, "totalAmount": 40.1}
    found = await outcome(stand, brief("final"))
    assert found.score.inconsistencies == 2
    assert found.strict == Total(2, 4010)
    assert float(found.score.fine) == 0.35


async def test_a_backend_without_summary_counts_as_zeros(stand: Stand) -> None:
    stand.processors["default"].count, stand.processors["default"].amount = 5, 100.25

    def pay_and_break() -> None:
        stand.backend.silent.add("/payments-summary")

    stand.backend.on_payment = pay_and_break
    scenario = replace(brief("preview"), time_scale=0.03, seconds=0.9)
    found = await outcome(stand, scenario)
    assert any("backend" in audit.failed for audit in found.audits)
    assert found.score.inconsistencies >= 5
    assert counts(found.score.processed) == [0, 0]
    assert "no totals from backend" in found.problems


async def test_the_preview_scores_the_backends_totals_and_the_final_the_processors(
    stand: Stand,
) -> None:
    stand.processors["fallback"].count, stand.processors["fallback"].amount = 7, 140.35
    assert stand.backend.summary is not None
    stand.backend.summary["fallback"] = {"totalRequests": 1, "totalAmount": 20.05}
    final = await outcome(stand, brief("final"))
    assert final.score.processed["fallback"] == Total(7, 14035)
    preview = await outcome(stand, brief("preview"))
    assert preview.score.processed["fallback"] == Total(1, 2005)


async def test_payments_that_are_refused_or_not_answered_in_time_failed(stand: Stand) -> None:
    stand.backend.down.add("/payments")
    refused = await outcome(stand, brief("final"))
    assert refused.failed == {"status 500": USERS - 1}
    stand.backend.down.clear()
    stand.backend.silent.add("/payments")
    unanswered = await outcome(stand, brief("final"))
    assert unanswered.failed == {"TimeoutError": USERS - 1}
    assert unanswered.score.accepted == 0


async def test_a_stage_that_can_not_be_set_is_reported(stand: Stand) -> None:
    def pay_and_break() -> None:
        stand.pay()
        stand.processors["fallback"].down.add("/admin/configurations/delay")

    stand.backend.on_payment = pay_and_break
    found = await outcome(stand, brief("final"))
    assert "fallback was not set to 5 ms at 0.3 s" in found.problems


async def test_a_processor_that_can_not_be_purged_ends_it(stand: Stand) -> None:
    stand.processors["fallback"].down.add("/admin/purge-payments")
    with pytest.raises(SiteError, match=r"fallback .* can't be purged"):
        await outcome(stand, brief("final"))
    assert not [call for call in stand.calls if call[1] == "POST /payments"]
