"""Serves the ingress with Granian: in this very process, or in several.

One process a part means that a supervisor's signals and a container's limits meet what they name.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import resource
import signal
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import uvloop
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server as ProcessesServer
from granian.server.common import AbstractServer
from granian.server.embed import Server as EmbeddedServer
from starlette.applications import Starlette

from payswitch.errors import StartError
from payswitch.http.listening import ListenError, create_sockets_with, free_path, numeric
from payswitch.ingress.app import create_app
from payswitch.process import die_with_parent
from payswitch.reasons import reason
from payswitch.settings import Settings
from payswitch.store.client import connect
from payswitch.store.watch import RedisWatch
from payswitch.telemetry import logs
from payswitch.telemetry.open_traces import open_traces
from payswitch.telemetry.tracing import Traces

logger = logging.getLogger(__name__)

_BACKLOG = 4096
_MAX_CONNECTIONS = 16_384
_OTHER_FILES = 256
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_HTTP = HTTP1Settings(
    header_read_timeout=10_000,  # ms; also how long a connection may be idle
    max_buffer_size=16 * 1024,  # the most that the head of a request may have
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an ingress is to be served: at a unix socket of a mode, else at a host and a port; and
    its payments port, which is for one process only."""

    host: str
    port: int
    uds: Path | None
    uds_mode: int
    payments_port: int | None

    def __str__(self) -> str:
        if self.uds is not None:
            return str(self.uds)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def payments_at(self) -> tuple[str, int] | None:
        """Host and port for payments alone."""
        return None if self.payments_port is None else (self.host, self.payments_port)

    def checked(self) -> Place:
        """The same with a host in numbers and a whole path. Raises `ListenError` unless all of it
        can be had."""
        uds = None if self.uds is None else free_path(self.uds)
        ports = [self.port] if uds is None else []
        ports += [] if self.payments_port is None else [self.payments_port]
        hosts = [numeric(self.host, port) for port in ports]
        return replace(self, host=hosts[0] if hosts else self.host, uds=uds)


def serve(settings: Settings, place: Place, *, workers: int) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are finished.

    Raises `ListenError` when the place can't be had and `UntrustworthyRedisError` when Redis may
    lose payments and the settings demand that it doesn't.
    """
    place = place.checked()
    if settings.redis_trust == "require":
        uvloop.run(_require_trust(settings))
    try:
        if workers == 1:
            uvloop.run(_serve_embedded(settings, place))
        else:
            _serve_processes(settings, place, workers)
    except StartError:
        raise
    except RuntimeError as error:  # Granian's, where somebody got the place meanwhile
        raise ListenError(f"{place}: {reason(error)}") from None


def app_from_environment() -> Starlette:
    """What each of several Granian processes serves, which ends with the one that started it."""
    if (parent := multiprocessing.parent_process()) is not None and parent.pid is not None:
        # On a busy machine Granian's threads may wait for each other for ever at such an end, and
        # at an orderly one the parent waits for its children.
        die_with_parent(parent.pid, signal.SIGKILL)
    settings = Settings.from_environment()
    logs.configure(settings.log_level, settings.log_format, "ingress")
    stopping = asyncio.Event()
    # uvloop loses a signal that comes while its loop doesn't run, and Granian runs it twice: for
    # the lifespan, and then to serve. So signals stay blocked, and a thread waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    loop = asyncio.get_event_loop()
    Thread(target=_stop_at_signal, args=(loop, stopping), daemon=True).start()
    return create_app(settings, stopping, _traces(settings))


def _stop_at_signal(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    """Wait for a stop signal, end the live page's streams, and pass the signal on to Granian.

    Granian waits for the answers under way, and a stream only ends when it is told to.
    """

    def stop() -> None:
        stopping.set()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        os.kill(os.getpid(), signal.SIGINT)

    signal.sigwait(_STOP_SIGNALS)
    loop.call_soon_threadsafe(stop)


async def _serve_embedded(settings: Settings, place: Place) -> None:
    stopping = asyncio.Event()
    app = create_app(settings, stopping, _traces(settings), place.payments_at)
    server = EmbeddedServer(
        app,
        address=place.host,
        port=place.port,
        uds=place.uds,
        interface=Interfaces.ASGINL,  # its lifespan is begun here, as Granian hides what it raises
        http=HTTPModes.http1,
        websockets=False,
        backlog=_BACKLOG,
        backpressure=_max_connections(),
        http1_settings=_HTTP,
        log_level=_granian_level(settings),
        log_dictconfig=_granian_logging(),
    )

    def stop() -> None:
        stopping.set()
        server.stop()  # type: ignore[no-untyped-call]

    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
    async with app.router.lifespan_context(app):
        _prepare(server, place)
        await server.serve()


def _serve_processes(settings: Settings, place: Place, workers: int) -> None:
    uvloop.run(
        _traces(settings).close()
    )  # each process opens its own; this one finds out whether it can
    server = ProcessesServer(
        f"{__name__}:app_from_environment",
        factory=True,
        address=place.host,
        port=place.port,
        uds=place.uds,
        workers=workers,
        interface=Interfaces.ASGI,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        websockets=False,
        backlog=_BACKLOG,
        backpressure=_max_connections(),
        http1_settings=_HTTP,
        log_level=_granian_level(settings),
        log_dictconfig=_granian_logging(),
        respawn_failed_workers=True,
        respawn_interval=0.5,
    )
    # A forked process has this one's handlers until it has its own: what it is sent before waits.
    os.register_at_fork(
        before=partial(signal.pthread_sigmask, signal.SIG_BLOCK, _STOP_SIGNALS),
        after_in_parent=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, _STOP_SIGNALS),
    )
    _prepare(server, place)
    server.serve()


def _prepare(server: AbstractServer[Any], place: Place) -> None:
    """Have Granian's socket made with its mode, and say that it is there."""
    restore = create_sockets_with(place.uds_mode) if place.uds is not None else None

    def bound() -> None:
        if restore is not None:
            restore()
        logger.info("listening on %(address)s", {"address": str(place)})

    server.on_startup(bound)


def _traces(settings: Settings) -> Traces:
    return open_traces(settings, "payswitch-ingress")


def _granian_level(settings: Settings) -> LogLevels:
    """Below errors Granian says again what is said here, and that it is experimental."""
    return LogLevels.debug if settings.log_level == "debug" else LogLevels.error


def _granian_logging() -> dict[str, Any]:
    """Granian's lines take the way of all others, not one of their own to standard output."""
    loggers = {name: {"handlers": [], "propagate": True} for name in ("_granian", "granian.access")}
    return {"formatters": {}, "handlers": {}, "loggers": loggers}


def _max_connections() -> int:
    """How many one process serves; more wait until one of them closes. It must not run out of files
    before, as Redis' connections are files, too."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return max(min(_MAX_CONNECTIONS, files - _OTHER_FILES), files // 2)


async def _require_trust(settings: Settings) -> None:
    """Wait for Redis. Raises `UntrustworthyRedisError`."""
    redis = connect(settings.redis_url, limit_s=settings.accept_limit_ms / 1000)
    try:
        await RedisWatch(redis, demand=True).check_trust()
    finally:
        await redis.aclose(close_connection_pool=True)
