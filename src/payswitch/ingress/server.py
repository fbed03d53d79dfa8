"""Serves the ingress with Granian: in this process, or in several.

With one process a supervisor's signals and a container's limits apply to it directly.
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


@dataclass(frozen=True, slots=True)
class Place:
    """The addresses of an ingress: a unix socket with a mode, or a host and a port; and a payments
    port, for one process only."""

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
        """Host and port of the payments port."""
        return None if self.payments_port is None else (self.host, self.payments_port)

    def checked(self) -> Place:
        """The same with a numeric host and a whole path. Raises `ListenError` unless all addresses
        are free."""
        uds = None if self.uds is None else free_path(self.uds)
        ports = [self.port] if uds is None else []
        ports += [] if self.payments_port is None else [self.payments_port]
        hosts = [numeric(self.host, port) for port in ports]
        return replace(self, host=hosts[0] if hosts else self.host, uds=uds)


def serve(settings: Settings, place: Place, *, workers: int) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are finished.

    Raises `ListenError` if an address is taken, and `UntrustworthyRedisError` if the settings
    require that Redis keeps what the durability promises, and it doesn't.
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
    except RuntimeError as error:  # Granian's, if the address has been taken since
        raise ListenError(f"{place}: {reason(error)}") from None


def app_from_environment() -> Starlette:
    """The application of each of several Granian processes. They end with their parent."""
    if (parent := multiprocessing.parent_process()) is not None and parent.pid is not None:
        # SIGKILL, as Granian's threads may then deadlock on a busy machine. At an orderly end the
        # parent waits for its children.
        die_with_parent(parent.pid, signal.SIGKILL)
    settings = Settings.from_environment()
    logs.configure(settings.log_level, settings.log_format, "ingress")
    stopping = asyncio.Event()
    # uvloop loses signals while its loop doesn't run, and Granian runs it twice: for the lifespan,
    # then to serve. So signals stay blocked, and a thread waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    loop = asyncio.get_event_loop()
    Thread(target=_stop_at_signal, args=(loop, stopping), daemon=True).start()
    return create_app(settings, stopping, _traces(settings))


def _stop_at_signal(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    """Wait for a stop signal, end the live page's streams, and pass the signal on to Granian.

    Granian waits for answers under way, and a stream ends only by `stopping`.
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
        interface=Interfaces.ASGINL,  # its lifespan starts here, as Granian hides its errors
        **_options(settings),
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
    uvloop.run(_traces(settings).close())  # a check: each process opens its own
    server = ProcessesServer(
        f"{__name__}:app_from_environment",
        factory=True,
        address=place.host,
        port=place.port,
        uds=place.uds,
        workers=workers,
        interface=Interfaces.ASGI,
        loop=Loops.uvloop,
        **_options(settings),
        respawn_failed_workers=True,
        respawn_interval=0.5,
    )
    # A forked process has its parent's handlers until it sets its own: block signals until then.
    os.register_at_fork(
        before=partial(signal.pthread_sigmask, signal.SIG_BLOCK, _STOP_SIGNALS),
        after_in_parent=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, _STOP_SIGNALS),
    )
    _prepare(server, place)
    server.serve()


def _prepare(server: AbstractServer[Any], place: Place) -> None:
    """Have Granian create its socket with its mode, and log the address."""
    restore = create_sockets_with(place.uds_mode) if place.uds is not None else None

    def bound() -> None:
        if restore is not None:
            restore()
        logger.info("listening on %(address)s", {"address": str(place)})

    server.on_startup(bound)


def _traces(settings: Settings) -> Traces:
    return open_traces(settings, "payswitch-ingress")


def _options(settings: Settings) -> dict[str, Any]:
    """Options of both of Granian's servers. Its log lines go to our handlers; below errors it only
    repeats our own lines and says that it is experimental."""
    loggers = {name: {"handlers": [], "propagate": True} for name in ("_granian", "granian.access")}
    return {
        "http": HTTPModes.http1,
        "websockets": False,
        "backlog": _BACKLOG,
        "backpressure": _max_connections(),
        "http1_settings": HTTP1Settings(
            header_read_timeout=10_000,  # ms; also the limit of an idle connection
            max_buffer_size=16 * 1024,  # the largest head of a request, in bytes
        ),
        "log_level": LogLevels.debug if settings.log_level == "debug" else LogLevels.error,
        "log_dictconfig": {"formatters": {}, "handlers": {}, "loggers": loggers},
    }


def _max_connections() -> int:
    """The most connections of a process; more wait until one closes. Some files are kept free for
    the connections to Redis."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return max(min(_MAX_CONNECTIONS, files - _OTHER_FILES), files // 2)


async def _require_trust(settings: Settings) -> None:
    """Wait for Redis. Raises `UntrustworthyRedisError`."""
    redis = connect(
        settings.redis_url, limit_s=settings.accept_limit_ms / 1000, deployment=settings.deployment
    )
    try:
        watch = RedisWatch(
            redis,
            currency=settings.currency_code,
            demand=True,
            durability=settings.durability,
        )
        await watch.check_trust()
    finally:
        await redis.aclose(close_connection_pool=True)
