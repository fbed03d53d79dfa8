"""Sends the status to all viewers of the live page once a second, as server-sent events (WHATWG
HTML, section 9.2).

One sampler a process reads Redis for all its viewers, and only while it has some. A viewer has no
queue: whenever it can take an event, it gets the newest status and the samples since its last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Sequence
from http import HTTPStatus

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from payswitch.money import Currency
from payswitch.operations.history import KEPT, Sample, parse_sample, read_history
from payswitch.operations.overview import read_overview
from payswitch.operations.shards import read_shards
from payswitch.operations.status import Status, document, document_without_sums, rates

logger = logging.getLogger(__name__)

EVERY_S = 1.0
MOST_VIEWERS = 32
STREAM_S = 10.0
"""The length of a stream. Then the browser reconnects and continues, so viewers spread over the
instances, and a stop need not wait for them."""
_SEND_LIMIT_S = 5.0
"""Disconnect a viewer whose socket has been blocked this long."""
_REFRESHED = 5
"""Samples read each second: more than one, as some are missed while Redis is away."""
_LINGER = 3
"""Seconds for which the sampler goes on without viewers, as they reconnect."""
_RETRY_MS = 500
_LONGEST_ID = 19


class TooManyViewersError(Exception):
    """No more viewers can be served now."""


class Viewer:
    """A viewer at an address. `displaced` is set when another viewer takes its place."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.displaced = asyncio.Event()


class Live:
    """Sampler and places for the viewers of one process. `stopping` ends all streams."""

    def __init__(
        self,
        redis: Redis,
        processors: Sequence[str],
        stopping: asyncio.Event,
        *,
        currency: Currency,
        most_viewers: int = MOST_VIEWERS,
        stream_s: float = STREAM_S,
    ) -> None:
        self.stopping = stopping
        self.stream_s = stream_s
        self.news = asyncio.Event()
        """Set at the next event, when another one takes its place."""
        self._viewers: dict[Viewer, None] = {}
        self._redis = redis
        self._processors = processors
        self._currency = currency
        self._most_viewers = most_viewers
        self._samples: deque[tuple[Sample, bytes]] = deque(maxlen=KEPT)
        self._status = b""
        self._sampling: asyncio.Task[None] | None = None

    @property
    def viewers(self) -> int:
        """The number of viewers."""
        return len(self._viewers)

    def enter(self, address: str) -> Viewer:
        """Add a viewer. If all places are taken, the address with the most gives up its oldest, but
        only to an address with at least two fewer: so no client keeps all places. Behind a load
        balancer all viewers have its address. Raises `TooManyViewersError`."""
        if self.stopping.is_set():
            raise TooManyViewersError
        if self.viewers >= self._most_viewers:
            self._make_room_for(address)
        viewer = Viewer(address)
        self._viewers[viewer] = None
        if self._sampling is None:
            self._sampling = asyncio.create_task(self._sample_for_viewers(), name="live")
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Remove a viewer."""
        self._viewers.pop(viewer, None)

    def _make_room_for(self, address: str) -> None:
        places = Counter(viewer.address for viewer in self._viewers)
        [(greediest, most)] = places.most_common(1)
        if places[address] + 1 >= most:
            raise TooManyViewersError
        oldest = next(viewer for viewer in self._viewers if viewer.address == greediest)
        self.leave(oldest)
        oldest.displaced.set()

    async def close(self) -> None:
        """Stop sampling."""
        if self._sampling is not None:
            self._sampling.cancel()
            await asyncio.wait([self._sampling])

    def event(self, after: int) -> tuple[bytes, int]:
        """The newest event for a viewer that has the samples up to `after` (ms), and the viewer's
        next `after`. The event is empty before the first sample."""
        if not self._status:
            return b"", after
        missing = [raw for sample, raw in self._samples if sample.at > after]
        newest = max(after, self._samples[-1][0].at) if self._samples else after
        parts = (b"id: %d\ndata: " % newest, b'{"samples":[', b",".join(missing))
        return b"".join((*parts, b'],"status":', self._status, b"}\n\n")), newest

    async def _sample_for_viewers(self) -> None:
        loop = asyncio.get_running_loop()
        due, idle = loop.time(), 0
        try:
            while idle < _LINGER:
                try:
                    await self._sample()
                except Exception:  # such as from foreign data in Redis; retry in a second
                    logger.exception("no event for the live page")
                self.news.set()
                self.news = asyncio.Event()
                due = max(due + EVERY_S, loop.time())
                await asyncio.sleep(due - loop.time())
                idle = 0 if self.viewers else idle + 1
        finally:
            self._sampling = None
            self._status = b""
            self._samples.clear()

    async def _sample(self) -> None:
        try:
            kept = await read_history(self._redis, _REFRESHED if self._samples else KEPT)
            overview = await read_overview(self._redis, self._processors)
        except (RedisError, OSError):
            shards = await read_shards(self._redis)
            self._status = orjson.dumps(document_without_sums(shards))
            return
        newest = self._samples[-1][0].at if self._samples else 0
        for raw in kept:
            sample = parse_sample(raw)
            if sample is not None and sample.at > newest:
                self._samples.append((sample, raw))
        known = [sample for sample, _ in self._samples]
        now = Status(overview, rates(known, overview.at))
        self._status = orjson.dumps(document(now, self._currency))


class EventStream(Response):
    """The answer to one viewer."""

    def __init__(self, live: Live, viewer: Viewer, last_event_id: str | None) -> None:
        super().__init__(
            status_code=HTTPStatus.OK,
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
            media_type="text/event-stream",
        )
        del self.headers["content-length"]
        self._live = live
        self._viewer = viewer
        self._has = _instant(last_event_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the viewer leaves, blocks or is displaced, its time is over, or the process
        stops."""
        try:
            start = {"type": "http.response.start", "status": self.status_code}
            await send({**start, "headers": self.raw_headers})
            await self._stream(receive, send)
        finally:
            self._live.leave(self._viewer)

    async def _stream(self, receive: Receive, send: Send) -> None:
        gone = {asyncio.ensure_future(each) for each in (self._pump(send), _hung_up(receive))}
        ends = (self._viewer.displaced.wait(), self._live.stopping.wait())
        tasks = gone.union(map(asyncio.ensure_future, ends))
        try:
            done, _ = await asyncio.wait(
                tasks, timeout=self._live.stream_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not done & gone:
            with contextlib.suppress(TimeoutError):
                await _send(send, b"", more=False)

    async def _pump(self, send: Send) -> None:
        await _send(send, b"retry: %d\n\n" % _RETRY_MS)
        while True:
            news = self._live.news
            event, self._has = self._live.event(self._has)
            if event:
                await _send(send, event)
            await news.wait()


async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
    async with asyncio.timeout(_SEND_LIMIT_S):
        await send({"type": "http.response.body", "body": body, "more_body": more})


def _instant(last_event_id: str | None) -> int:
    """Read an event's id, ms since the epoch; 0 for anything else. The length is checked because
    Python refuses to read thousands of digits."""
    if last_event_id is None or len(last_event_id) > _LONGEST_ID or not last_event_id.isdecimal():
        return 0
    return int(last_event_id)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
