"""The challenge's other hands: resets everything, sets the stages, audits, takes the totals."""

from __future__ import annotations

import asyncio
import json
import time
from decimal import Decimal
from typing import Any

import httpx
import orjson

from bench.rinha.scenario import CLIENT_LIMIT_S, PROCESSORS, Scenario, Setting
from bench.rinha.score import NOTHING, Audit, Totals
from bench.rinha.site import Site, SiteError
from payswitch.http.transport import Transport
from payswitch.instants import format_instant
from payswitch.money import BRL, Total

_PURGE_LIMIT_S = 30.0


class Calls:
    """Calls of the backend and the processors; notes how long each successful one took."""

    def __init__(self, site: Site) -> None:
        self.milliseconds: list[float] = []
        self._token = site.token
        self._transport = Transport()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def call(
        self,
        method: str,
        url: str,
        document: dict[str, Any] | None = None,
        *,
        limit_s: float = CLIENT_LIMIT_S,
    ) -> bytes | None:
        """The body of a successful answer; None for everything else."""
        written = 0.0

        def note_write() -> None:
            nonlocal written
            written = time.perf_counter()

        request = httpx.Request(
            method,
            url,
            headers={"x-rinha-token": self._token, "content-type": "application/json"},
            content=b"" if document is None else orjson.dumps(document),
            extensions={"before_write": note_write},
        )
        try:
            async with asyncio.timeout(limit_s):
                response = await self._transport.handle_async_request(request)
                content = await response.aread()
        except (httpx.TransportError, TimeoutError):
            return None
        if not response.is_success:
            return None
        self.milliseconds.append((time.perf_counter() - written) * 1000)
        return content


class Referee:
    """Runs a scenario's stages and audits against a site."""

    def __init__(self, site: Site, scenario: Scenario) -> None:
        self.audits: list[Audit] = []
        self.problems: list[str] = []
        """Stages that could not be set: what was measured is something else then."""
        self._site = site
        self._scenario = scenario
        self._calls = Calls(site)

    @property
    def milliseconds(self) -> list[float]:
        """How long each of its successful calls took; they count in the run's p99."""
        return self._calls.milliseconds

    async def close(self) -> None:
        """Close the connections."""
        await self._calls.close()

    async def reset(self) -> None:
        """Empty the processors, then the backend; no delays, no failures. Raises `SiteError`."""
        for name, url in self._site.processors.items():
            purge = f"{url}/admin/purge-payments"
            if await self._calls.call("POST", purge, limit_s=_PURGE_LIMIT_S) is None:
                raise SiteError(f"processor {name} at {url} can't be purged")
            if not await self._set(name, Setting(0, failing=False)):
                raise SiteError(f"processor {name} at {url} can't be reset")
        purge = f"{self._site.endpoint}/purge-payments"
        if await self._calls.call("POST", purge, limit_s=_PURGE_LIMIT_S) is None:
            raise SiteError(f"{self._site.endpoint} can't be purged")

    async def set_stages(self, began: float) -> None:
        """Set each stage at its second after that instant of the monotonic clock."""
        for stage in self._scenario.stages:
            await asyncio.sleep(max(0.0, began + stage.at_s - time.monotonic()))
            for name, setting in stage.settings.items():
                if not await self._set(name, setting):
                    self.problems.append(f"{name} was not set to {setting} at {stage.at_s:g} s")

    async def audit_regularly(self, began: float) -> None:
        """Audit from the first second to the end of the run."""
        while (at_s := time.monotonic() - began) < self._scenario.seconds:
            self.audits.append(await self._audit(at_s))
            await asyncio.sleep(self._scenario.audit_every_s)

    async def totals(self) -> Audit:
        """Everything that was processed, as the backend and the processors have it."""
        return await _compare(self._site, self._calls, self._scenario.seconds)

    async def _audit(self, at_s: float) -> Audit:
        first_ms, last_ms = self._scenario.window_ms(time.time_ns() // 1_000_000)
        query = f"?from={format_instant(first_ms)}&to={format_instant(last_ms)}"
        return await _compare(self._site, self._calls, at_s, query)

    async def _set(self, processor: str, setting: Setting) -> bool:
        url = f"{self._site.processors[processor]}/admin/configurations"
        delay = await self._calls.call("PUT", f"{url}/delay", {"delay": setting.delay_ms})
        failure = await self._calls.call("PUT", f"{url}/failure", {"failure": setting.failing})
        return delay is not None and failure is not None


class Observer:
    """Looks into the processors' books beside the run; its calls are not the run's."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._calls = Calls(site)

    async def close(self) -> None:
        """Close the connections."""
        await self._calls.close()

    async def booked(self) -> Totals | None:
        """What each processor has recorded; None where one doesn't say."""
        answers = await asyncio.gather(
            *(
                self._calls.call("GET", f"{url}/admin/payments-summary")
                for url in self._site.processors.values()
            )
        )
        totals = [read_total(answer) for answer in answers]
        known = [total for total in totals if total is not None]
        if len(known) < len(totals):
            return None
        return dict(zip(self._site.processors, known, strict=True))

    async def durability(self) -> str:
        """What a 202 stands for, by the backend's own word; `none` if Redis may keep less."""
        answer = _loads(await self._calls.call("GET", f"{self._site.endpoint}/readyz"))
        match answer.get("durability"):
            case {"promise": str(promise), "kept": kept}:
                return promise if kept else "none"
        return "unknown"

    async def books(self) -> Audit:
        """Everything, as the backend and the processors have it."""
        return await _compare(self._site, self._calls, 0.0)


async def _compare(site: Site, calls: Calls, at_s: float, query: str = "") -> Audit:
    ours, *theirs = await asyncio.gather(
        calls.call("GET", f"{site.endpoint}/payments-summary{query}"),
        *(
            calls.call("GET", f"{url}/admin/payments-summary{query}")
            for url in site.processors.values()
        ),
    )
    summary = read_summary(ours)
    totals = {name: read_total(each) for name, each in zip(site.processors, theirs, strict=True)}
    failed = [] if summary is not None else ["backend"]
    failed += [name for name, total in totals.items() if total is None]
    return Audit(
        at_s,
        NOTHING if summary is None else summary,
        {name: total or Total() for name, total in totals.items()},
        tuple(failed),
    )


def read_summary(content: bytes | None) -> Totals | None:
    """The backend's summary; None for what is none."""
    document = _loads(content)
    totals = {name: _total(document.get(name)) for name in PROCESSORS}
    known = {name: total for name, total in totals.items() if total is not None}
    return known if len(known) == len(totals) else None


def read_total(content: bytes | None) -> Total | None:
    """A processor's own summary; None for what is none."""
    return _total(_loads(content))


def _loads(content: bytes | None) -> dict[str, Any]:
    try:
        document = json.loads(content or b"", parse_float=Decimal)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _total(document: Any) -> Total | None:
    if not isinstance(document, dict):
        return None
    count, cents = document.get("totalRequests"), BRL.exact_cents(str(document.get("totalAmount")))
    if type(count) is not int or count < 0 or cents is None:
        return None
    return Total(count, cents)
