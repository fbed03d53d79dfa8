"""The whole system as `payswitch up` starts it, with hands to pay, to kill and to look."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import httpx
import orjson

from payswitch.local.machine import find_haproxy
from tests.support import SLACK_S, WORKER, eventually

HOST = "127.0.0.1"
READY = "Payswitch is ready"
HAS_HAPROXY = find_haproxy() is not None
ENDPOINT = ["haproxy", "ingress-1", "ingress-2"] if HAS_HAPROXY else ["ingress"]
"""The parts that serve the endpoint, as `payswitch up` chooses them on this machine."""
UP = (sys.executable, "-P", "-m", "payswitch", "up")
_OURS = re.compile("REDIS_URL|PAYMENT_PROCESSOR_|PAYSWITCH_|TRANSACTION_FEE|RATE_LIMIT_|INITIAL_")
_ROW = re.compile(r"^  ([a-z]+(?:-\d+)?) +\S+ +(\d+)\b", re.MULTILINE)
_AGAIN = re.compile(r"\| [\d:]+ (\S+) runs again, pid (\d+)$", re.MULTILINE)

Process = tuple[int, int]
"""A process' pid and when it started: no later process is equal to it."""

PATIENT_MS = "20000"
"""The accept limit for a load of which nothing may be refused: where others use the disk, a sync of
Redis may take longer than a client would wait."""


class Ports:
    """Six ports in a row that are free, and none that the kernel gives to connections. Processes
    of `pytest -n` choose among different ones, and leave room for the ports beyond these six."""

    def __init__(self) -> None:
        begin = 20_000 + 1500 * (WORKER % 8)
        self.first = random.randrange(begin, begin + 1300)
        while any(map(is_taken, self)):
            self.first = random.randrange(begin, begin + 1300)
        self.endpoint, self.ingress, _, self.default, self.fallback, self.redis = self

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.first + 6))

    def options(self) -> list[str]:
        """What makes `payswitch up` use them."""
        return [
            f"--port={self.endpoint}",
            f"--ingress-port={self.ingress}",
            f"--default-port={self.default}",
            f"--fallback-port={self.fallback}",
            f"--redis-port={self.redis}",
        ]


@dataclass(frozen=True)
class System:
    """A running `payswitch up` with the URLs that its parts use."""

    endpoint: str
    redis_url: str
    default_url: str
    fallback_url: str
    ports: Ports
    state: Path
    supervisor: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(
        cls, folder: Path, *options: str, state: Path | None = None, environment: Mapping[str, str]
    ) -> System:
        """Start it and return at once. Unless it goes on with a state it has an empty one."""
        ports = Ports()
        state = state or folder / f"state-{uuid4()}"
        log = folder / f"log-{uuid4()}"
        with log.open("wb") as stream:
            supervisor = subprocess.Popen(
                [*UP, *ports.options(), f"--state={state}", *options],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=clean_environment(environment),
                cwd=folder,
            )
        urls = {
            "REDIS_URL": f"redis://{HOST}:{ports.redis}/0",
            "PAYMENT_PROCESSOR_URL_DEFAULT": f"http://{HOST}:{ports.default}",
            "PAYMENT_PROCESSOR_URL_FALLBACK": f"http://{HOST}:{ports.fallback}",
            **environment,
        }
        return cls(
            endpoint=f"http://{HOST}:{ports.endpoint}",
            redis_url=urls["REDIS_URL"],
            default_url=urls["PAYMENT_PROCESSOR_URL_DEFAULT"],
            fallback_url=urls["PAYMENT_PROCESSOR_URL_FALLBACK"],
            ports=ports,
            state=state,
            supervisor=supervisor,
            log=log,
        )

    def wait_until_ready(self) -> None:
        """Return once the banner is there; fail if the supervisor ends before."""
        deadline = monotonic() + SLACK_S
        while READY not in self.output:
            assert self.supervisor.poll() is None, self.output
            assert monotonic() < deadline, self.output
            sleep(0.02)

    @property
    def named(self) -> dict[str, Any]:
        """Variables by which another system uses this one's Redis and processors."""
        return {
            "REDIS_URL": self.redis_url,
            "PAYMENT_PROCESSOR_URL_DEFAULT": self.default_url,
            "PAYMENT_PROCESSOR_URL_FALLBACK": self.fallback_url,
        }

    @property
    def output(self) -> str:
        """All that it has written so far."""
        return self.log.read_text()

    def pids(self) -> dict[str, int]:
        """The process of each part, by its output."""
        output = self.output
        return {name: int(pid) for name, pid in (*_ROW.findall(output), *_AGAIN.findall(output))}

    def kill(self, part: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a part; returns the pid that it had."""
        pid = self.pids()[part]
        os.kill(pid, number)
        return pid

    async def runs_again(self, part: str, old_pid: int) -> None:
        """Wait until a killed part has a new process and the endpoint is ready."""

        async def renewed() -> bool:
            return self.pids()[part] != old_pid and await self.is_ready()

        await eventually(renewed, what=f"{part} runs again")

    async def is_ready(self) -> bool:
        """Whether the endpoint says that it takes payments."""
        async with client(self.endpoint) as http:
            try:
                return (await http.get("/readyz")).status_code == 200
            except httpx.TransportError:
                return False

    async def pay(self, cents: int, correlation_id: str | None = None) -> str:
        """Pay as a client should, again until it is accepted; returns the payment's id."""
        correlation_id = correlation_id or str(uuid4())
        payment = {"correlationId": correlation_id, "amount": cents / 100}

        async def accepted() -> bool:
            try:
                return (await http.post("/payments", json=payment)).status_code == 202
            except httpx.TransportError:
                return False

        async with client(self.endpoint) as http:
            await eventually(accepted, what="the payment is accepted")
        return correlation_id

    async def state_of(self, correlation_id: str) -> str | None:
        """The state of a payment; None where it is unknown, or nobody answers."""
        async with client(self.endpoint) as http:
            try:
                state: str | None = (
                    (await http.get(f"/payments/{correlation_id}")).json().get("state")
                )
            except (httpx.TransportError, ValueError):
                return None
        return state

    async def settled(self, *correlation_ids: str) -> None:
        """Wait until all these payments are settled."""
        for correlation_id in correlation_ids:

            async def is_settled(correlation_id: str = correlation_id) -> bool:
                return await self.state_of(correlation_id) == "settled"

            await eventually(is_settled, what=f"{correlation_id} is settled")

    async def summary(self) -> dict[str, tuple[int, int]]:
        """Number and cents of the settled payments by processor."""
        async with client(self.endpoint) as http:
            body = (await http.get("/payments-summary")).content
        return {
            name: (total["totalRequests"], int(Decimal(str(total["totalAmount"])) * 100))
            for name, total in orjson.loads(body).items()
        }

    def family(self) -> set[Process]:
        """The supervisor and every process that comes from it."""
        table = processes()
        family = {self.supervisor.pid}
        while more := {pid for pid, (parent, _) in table.items() if parent in family} - family:
            family |= more
        return {(pid, table[pid][1]) for pid in family if pid in table}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it, if it runs, and return its exit code; no process and no port of it is left."""
        family = self.family()
        if self.supervisor.poll() is None:
            self.supervisor.send_signal(number)
        code = self.supervisor.wait(SLACK_S)
        assert not still_running(family)
        assert not any(map(is_taken, self.ports))
        return code


def up(*options: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a `payswitch up` that ends by itself."""
    return subprocess.run(
        [*UP, *options],
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        timeout=SLACK_S,
        check=False,
    )


def client(base_url: str) -> httpx.AsyncClient:
    """A client for one place; no certificates are read for it."""
    return httpx.AsyncClient(base_url=base_url, verify=False, timeout=SLACK_S)


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The tests' environment without what sets up Payswitch, then this."""
    return {name: v for name, v in os.environ.items() if not _OURS.match(name)} | {**environment}


def processes() -> dict[int, Process]:
    """Parent and start time of every process of the machine that is no zombie."""
    table: dict[int, Process] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent, *rest = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if state not in "ZX":
                table[int(entry.name)] = (int(parent), int(rest[17]))
    return table


def still_running(family: set[Process]) -> set[Process]:
    """Those processes of a family that run now."""
    return family & {(pid, began) for pid, (_, began) in processes().items()}


def is_taken(port: int) -> bool:
    """Whether a port can't be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False
