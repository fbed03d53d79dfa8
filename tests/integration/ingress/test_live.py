"""The live page's files and its stream of events: over ASGI with a real Redis, and through a real
ingress process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest
from arq.connections import ArqRedis
from starlette.types import Message

from payswitch.ingress import live as live_module
from payswitch.ingress.app import create_app
from payswitch.ingress.live import EventStream, Live, TooManyViewersError
from payswitch.money import BRL
from payswitch.operations.history import HistoryWriter
from payswitch.settings import Settings
from payswitch.store.client import connect
from tests.support import PROCESSORS, SLACK_S, RedisServer, eventually, free_port

FILES = {
    "/": "text/html",
    "/page.css": "text/css",
    "/page.js": "text/javascript",
    "/charts.js": "text/javascript",
    "/icon.svg": "image/svg+xml",
}


class Viewer:
    """A viewer behind ASGI that takes events when it is let to."""

    def __init__(
        self, live: Live, last_event_id: str | None = None, address: str = "127.0.0.1"
    ) -> None:
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reads = asyncio.Event()
        self.reads.set()
        self._hung_up = asyncio.Event()
        viewer = live.enter(address)
        self.task = asyncio.ensure_future(
            EventStream(live, viewer, last_event_id)({"type": "http"}, self._receive, self._send)
        )

    async def next(self) -> dict[str, Any]:
        """The next event."""
        return await asyncio.wait_for(self.events.get(), SLACK_S)

    async def ended(self) -> None:
        """Wait for the stream's end."""
        await asyncio.wait_for(self.task, SLACK_S)

    def hang_up(self) -> None:
        """Leave."""
        self._hung_up.set()

    async def _receive(self) -> Message:
        await self._hung_up.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self.reads.wait()
        fields = dict(
            line.split(": ", 1) for line in message.get("body", b"").decode().splitlines() if line
        )
        if "data" in fields:
            self.events.put_nowait({"id": int(fields["id"]), **orjson.loads(fields["data"])})


@contextlib.asynccontextmanager
async def live_of(redis: ArqRedis, **options: Any) -> AsyncIterator[Live]:
    live = Live(redis, PROCESSORS, asyncio.Event(), currency=BRL, **options)
    yield live
    await live.close()


async def keep(redis: ArqRedis, samples: int) -> None:
    """Have so many samples in the history, each with an instant (ms) of its own."""
    writer = HistoryWriter(redis, PROCESSORS)
    for _ in range(samples):
        await redis.delete("overview:beat")
        assert await writer.write()
        written = await instant(redis)
        while await instant(redis) == written:
            continue


async def instant(redis: ArqRedis) -> int:
    seconds, microseconds = await redis.time()
    return int(seconds * 1000 + microseconds // 1000)


async def test_the_first_event_has_the_history_and_the_next_what_is_new(redis: ArqRedis) -> None:
    await keep(redis, 3)
    async with live_of(redis) as live:
        viewer = Viewer(live)
        first = await viewer.next()
        assert len(first["samples"]) == 3
        assert first["id"] == first["samples"][-1]["at"]
        assert first["status"]["headline"] == "Nothing to pay"
        await keep(redis, 1)
        while not (later := await viewer.next())["samples"]:
            continue
        assert len(later["samples"]) == 1
        assert later["id"] > first["id"]


async def test_who_comes_again_goes_on_where_it_was(redis: ArqRedis) -> None:
    await keep(redis, 3)
    async with live_of(redis) as live:
        first = await Viewer(live).next()
        again = Viewer(live, str(first["samples"][1]["at"]))
        assert [each["at"] for each in (await again.next())["samples"]] == [first["id"]]
        for nonsense in ("", "x", "-1", "²"):
            assert len((await Viewer(live, nonsense).next())["samples"]) == 3


@pytest.mark.parametrize("last_event_id", ["9" * 5000, "9" * 30, "x", "-1", "²"])
async def test_who_says_nonsense_of_what_it_has_gets_it_all_and_keeps_no_place(
    redis: ArqRedis, last_event_id: str
) -> None:
    await keep(redis, 1)
    async with live_of(redis) as live:
        viewer = Viewer(live, last_event_id)
        assert len((await viewer.next())["samples"]) == 1
        viewer.hang_up()
        await viewer.ended()
        assert live.viewers == 0


async def test_samples_and_vitals_that_others_wrote_end_no_stream(redis: ArqRedis) -> None:
    await keep(redis, 1)
    [kept] = await redis.lrange("overview:history", 0, -1)  # type: ignore[misc]
    for name, value in (("at", "x"), ("settled", 5), ("failed", {"default": []}), ("p50_ms", "1")):
        sample = orjson.dumps({**orjson.loads(kept), name: value})
        await redis.rpush("overview:history", sample)  # type: ignore[misc]
    fields = {"kind": "worker", "host": "x", "pid": "9" * 30, "since": 0}
    await redis.hset("vitals:x", mapping=fields)  # type: ignore[misc]
    await redis.zadd("vitals", {"vitals:x": 1})
    async with live_of(redis) as live:
        event = await Viewer(live).next()
    assert (len(event["samples"]), event["status"]["processes"]) == (1, [])


async def test_something_else_in_the_historys_place_is_no_history(redis: ArqRedis) -> None:
    await redis.set("overview:history", "foreign")
    async with live_of(redis) as live:
        event = await Viewer(live).next()
    assert (event["samples"], event["status"]["headline"]) == ([], "Nothing to pay")


def samplers() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "live"]


async def test_all_viewers_share_one_sampler_that_ends_after_the_last(
    redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "EVERY_S", 0.02)
    async with live_of(redis) as live:
        assert not samplers()
        viewers = [Viewer(live) for _ in range(5)]
        for viewer in viewers:
            await viewer.next()
        assert (live.viewers, len(samplers())) == (5, 1)
        for viewer in viewers:
            viewer.hang_up()
            await viewer.ended()
        assert live.viewers == 0

        async def sampler_is_gone() -> bool:
            return not samplers()

        await eventually(sampler_is_gone, what="the sampler ends")


async def test_one_viewer_too_many_is_refused_until_another_leaves(redis: ArqRedis) -> None:
    async with live_of(redis, most_viewers=2) as live:
        first, _ = Viewer(live), Viewer(live)
        with pytest.raises(TooManyViewersError):
            live.enter("127.0.0.1")
        first.hang_up()
        await first.ended()
        await Viewer(live).next()


async def test_a_client_that_has_all_places_gives_its_oldest_to_another(redis: ArqRedis) -> None:
    async with live_of(redis, most_viewers=4) as live:
        greedy = [Viewer(live) for _ in range(4)]
        others = [Viewer(live, address=f"127.0.0.{n}") for n in (2, 3)]
        for displaced in greedy[:2]:
            await displaced.ended()
        for other in (*others, *greedy[2:]):
            await other.next()
        third = Viewer(live, address="127.0.0.4")
        await greedy[2].ended()
        await third.next()
        with pytest.raises(TooManyViewersError):
            live.enter("127.0.0.5")


async def test_who_reads_nothing_holds_no_events_and_is_let_go(
    redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "EVERY_S", 0.01)
    async with live_of(redis, most_viewers=2) as live:
        slow, quick = Viewer(live), Viewer(live)
        await slow.next()
        slow.reads.clear()
        for _ in range(20):
            await quick.next()
        before = slow.events.qsize()
        slow.reads.set()
        await slow.next()
        assert slow.events.qsize() <= before + 1
        monkeypatch.setattr(live_module, "_SEND_LIMIT_S", 0.05)
        await slow.next()
        slow.reads.clear()
        await slow.ended()
        assert live.viewers == 1


async def test_a_stream_ends_in_time_and_when_the_process_stops(redis: ArqRedis) -> None:
    stopping = asyncio.Event()
    live = Live(redis, PROCESSORS, stopping, currency=BRL, stream_s=0.3)
    viewer = Viewer(live)
    await viewer.next()
    await viewer.ended()
    live = Live(redis, PROCESSORS, stopping, currency=BRL)
    viewer = Viewer(live)
    await viewer.next()
    stopping.set()
    await viewer.ended()
    assert live.viewers == 0
    with pytest.raises(TooManyViewersError):
        live.enter("127.0.0.1")
    await live.close()


async def test_viewers_are_told_when_redis_is_away_and_when_it_is_back(
    own_redis: RedisServer,
) -> None:
    redis = connect(own_redis.url, limit_s=1)
    async with live_of(redis) as live:
        viewer = Viewer(live)
        assert (await viewer.next())["status"]["headline"] == "Nothing to pay"
        own_redis.kill()
        while (await viewer.next())["status"]["headline"] != "Redis does not answer":
            continue
        own_redis.start()
        while (await viewer.next())["status"]["headline"] != "Nothing to pay":
            continue
        viewer.hang_up()
        await viewer.ended()
    await redis.aclose(close_connection_pool=True)


# The files.


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://ingress") as client:
            yield client


@pytest.mark.parametrize("path", FILES)
async def test_the_page_is_served_under_a_strict_policy(
    redis_server: RedisServer, path: str
) -> None:
    async with serving(Settings(redis_url=redis_server.url, accept_limit_ms=60_000)) as client:
        response = await client.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(FILES[path])
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert b"//" not in response.content.replace(b"http://www.w3.org/", b"").replace(
            b"// ", b""
        )
        tag = {"if-none-match": response.headers["etag"]}
        again = await client.get(path, headers=tag)
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", [*FILES, "/events"])
async def test_a_setting_turns_the_page_off(redis_server: RedisServer, path: str) -> None:
    async with serving(
        Settings(redis_url=redis_server.url, accept_limit_ms=60_000, page="off")
    ) as client:
        response = await client.get(path)
        assert (response.status_code, response.json()["status"]) == (404, 404)


# Through a process.


@contextlib.asynccontextmanager
async def an_ingress(
    redis_url: str, *options: str
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "payswitch", "ingress", "--port", str(port), *options),
        env={**os.environ, "REDIS_URL": redis_url},
    )
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(verify=False) as client:

        async def ready() -> bool:
            try:
                return (await client.get(f"{url}/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(ready, what="the ingress is ready")
    try:
        yield url, process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_events_come_over_http_in_their_format_and_a_stop_waits_for_no_viewer(
    redis: ArqRedis, redis_server: RedisServer, processes: str
) -> None:
    await keep(redis, 2)
    async with (
        an_ingress(redis_server.url, "--workers", processes) as (url, process),
        httpx.AsyncClient(verify=False, timeout=SLACK_S) as client,
    ):
        await client.post(f"{url}/payments", json={"correlationId": str(uuid4()), "amount": 1})
        async with client.stream("GET", f"{url}/events") as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.aiter_lines()
            assert [await anext(lines), await anext(lines)] == ["retry: 500", ""]
            assert int((await anext(lines)).removeprefix("id: ")) > 0
            event = orjson.loads((await anext(lines)).removeprefix("data: "))
            assert (event["status"]["accepted"]["total"], len(event["samples"])) == (1, 2)
            assert await anext(lines) == ""
            process.send_signal(signal.SIGTERM)
            after = [line async for line in lines if line.startswith("data")]
            assert len(after) <= 2  # of the ten that were to come
        assert await asyncio.wait_for(process.wait(), SLACK_S) == 0


async def test_an_ingress_counts_what_it_accepts_and_refuses(
    redis: ArqRedis, redis_server: RedisServer
) -> None:
    async with serving(Settings(redis_url=redis_server.url, accept_limit_ms=60_000)) as client:
        payment = {"correlationId": str(uuid4()), "amount": 1}
        await client.post("/payments", json=payment)
        await client.post("/payments", json=payment)
        await client.post("/payments", json={**payment, "amount": 2})
        await client.post("/payments", content=b"{")

        async def counted() -> bool:
            keys = await redis.zrange("vitals", 0, -1)
            fields = await redis.hgetall(keys[0]) if keys else {}  # type: ignore[misc]
            return {
                name: int(count) for name, count in fields.items() if name.startswith((b"a", b"re"))
            } == {
                b"accepted:new": 1,
                b"accepted:same": 1,
                b"accepted:other": 1,
                b"refused:409": 1,
                b"refused:400": 1,
                b"redis:may_lose_payments": 0,
                b"redis:short_of_memory": 0,
            }

        await eventually(counted, what="its vitals have it all")
