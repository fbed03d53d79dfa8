"""Every part on a host of its own, set up as the page on it says: hosts join, leave, vanish and are
cut off under load, and every payment is paid once."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from redis.exceptions import RedisError

from payswitch.chaos.audit import RunVerdict, audit
from payswitch.chaos.books import Auditor
from payswitch.chaos.clients import Clients
from payswitch.local.machine import find_haproxy, find_redis
from payswitch.settings import Settings
from payswitch.store.client import connect
from tests.documented import REPOSITORY
from tests.end_to_end.harness import client
from tests.end_to_end.hosts import Host, Network, why_there_are_none
from tests.support import eventually

PAGE = (REPOSITORY / "docs" / "how-to" / "several-hosts.md").read_text()
SECRET = "a-password"
TOKEN = "123"
NOBODYS_PORT = 9
RATE = 100.0
DELAY_MS = 200
"""How long processors take, so that a host that goes has payments in hand."""
SWEPT = "had left the queue unpaid"
QUICK = {
    "PAYSWITCH_LEASE_MS": "3000",
    "PAYSWITCH_LEASE_MARGIN_MS": "300",
    "PAYSWITCH_PROCESSOR_MAX_DELAY_MS": "2000",
    "PAYSWITCH_PROCESSOR_FIND_LIMIT_MS": "1000",
    "PAYSWITCH_RETRY_CAP_MS": "1000",
}
"""Settings under which what a vanished host held is taken over after 3 s."""


def blocks(language: str) -> list[str]:
    """The page's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


COMMANDS = [
    shlex.split(line.removeprefix("$ "), comments=True)
    for block in blocks("console")
    for line in block.splitlines()
    if line.startswith("$ ")
]
EXPORTS = dict(
    words[1].replace("…", SECRET).split("=", 1) for words in COMMANDS if words[0] == "export"
)


def payswitch(*arguments: str) -> list[str]:
    """A command, which the page has to name."""
    assert ["payswitch", *arguments] in COMMANDS, f"the page doesn't say {arguments}"
    return [sys.executable, "-P", "-m", "payswitch", *arguments]


def haproxy() -> tuple[list[str], dict[str, str]]:
    """The page's command for HAProxy and the variables before it."""
    (words,) = (words for words in COMMANDS if "haproxy" in words)
    variables = dict(word.split("=", 1) for word in words[: words.index("haproxy")])
    command = find_haproxy()
    assert command is not None
    assert words[-1] == Path(command[-1]).name
    return command, variables


@dataclass
class Cluster:
    """The hosts and what runs on them; addresses count up in the order in which they are added."""

    network: Network
    environment: dict[str, str]
    redis: Host
    ingresses_hosts: list[Host]
    workers: list[Host]
    health: Host
    processors_host: Host
    clients: Host

    @classmethod
    def start(cls, network: Network, variables: Mapping[str, str]) -> Cluster:
        """Make the hosts and start Redis and the processors: what the others need first."""
        redis, *ingresses = (network.add(name) for name in ("redis", "ingress-1", "ingress-2"))
        workers = [network.add(name) for name in ("worker-1", "worker-2")]
        health, processors = network.add("health"), network.add("processors")
        environment = {
            **EXPORTS,
            "PAYMENT_PROCESSOR_URL_DEFAULT": f"http://{processors.address}:8080",
            "PAYMENT_PROCESSOR_URL_FALLBACK": f"http://{processors.address}:8081",
            **variables,
        }
        cluster = cls(
            *(network, environment, redis, ingresses, workers, health, processors),
            network.add("clients"),
        )
        folder = network.folder / "redis"
        folder.mkdir()
        (lines,) = blocks("text")
        configuration = lines.replace("…", SECRET).replace("/var/lib/redis", str(folder))
        (network.folder / "redis.conf").write_text(configuration)
        redis.start(find_redis(), "redis.conf", environment={})
        for name, port, fee in (("default", "8080", "0.05"), ("fallback", "8081", "0.15")):
            processors.start(
                *(sys.executable, "-P", "-m", "payswitch", "simulator", f"--name={name}"),
                *(f"--host={processors.address}", f"--port={port}", f"--fee={fee}"),
                environment={"INITIAL_TOKEN": TOKEN},
            )
        return cluster

    @property
    def endpoint(self) -> str:
        return f"http://{self.ingresses_hosts[0].address}:9999"

    @property
    def ingresses(self) -> list[str]:
        return [f"http://{host.address}:9001" for host in self.ingresses_hosts]

    @property
    def processors(self) -> Mapping[str, str]:
        return self.settings.processor_urls

    @property
    def settings(self) -> Settings:
        return Settings.from_environment(self.environment)

    @property
    def token(self) -> str:
        return TOKEN

    async def start_payswitch(self) -> None:
        """Start every part of Payswitch once Redis answers; return when all ingress are ready."""

        async def answers() -> bool:
            try:
                return bool(await redis.ping())
            except (RedisError, OSError):
                return False

        redis = connect(self.settings.redis_url, limit_s=10)
        await eventually(answers, what="Redis answers")
        await redis.aclose(close_connection_pool=True)
        for url in self.processors.values():
            await self._slow_down(url)
        for host in self.ingresses_hosts:
            ingress = payswitch("ingress", "--host", host.address, "--port", "9001")
            host.start(*ingress, environment=self.environment)
        command, variables = haproxy()
        self.ingresses_hosts[0].start(*command, environment=variables)
        for host in self.workers:
            self.start_worker(host)
        self.health.start(*payswitch("health"), environment=self.environment)
        for url in (self.endpoint, *self.ingresses):
            await self.is_ready(url)

    def start_worker(self, host: Host) -> None:
        host.start(*payswitch("worker"), environment=self.environment)

    async def _slow_down(self, processor: str) -> None:
        """Have a processor take its time, once it listens."""

        async def taken() -> bool:
            try:
                response = await http.put("/admin/configurations/delay", json={"delay": DELAY_MS})
            except httpx.TransportError:
                return False
            return response.is_success

        async with client(processor) as http:
            http.headers["X-Rinha-Token"] = self.token
            await eventually(taken, what=f"{processor} is slow")

    async def is_ready(self, url: str) -> None:
        """Wait until an ingress, or HAProxy before them, takes payments."""

        async def ready() -> bool:
            try:
                return (await http.get("/readyz", timeout=1)).status_code == 200
            except httpx.TransportError:
                return False

        async with client(url) as http:
            await eventually(ready, what=f"{url} is ready")

    async def run(self, *arguments: str) -> None:
        """Have an operator call `payswitch` on the clients' host. Raises `CalledProcessError`."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        command = ("env", *variables, sys.executable, "-P", "-m", "payswitch", *arguments)
        await asyncio.to_thread(self.clients.output, *command)

    async def reaches(self, host: Host) -> bool:
        """Whether a packet from here comes back from a host, be it that nobody listens there."""
        try:
            async with asyncio.timeout(0.5):
                await asyncio.open_connection(host.address, NOBODYS_PORT)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        raise AssertionError(f"{host.name} listens on {NOBODYS_PORT}")

    async def pays(self, worker: Host) -> None:
        """Wait until a worker is connected to a processor, which it is only to pay."""
        look = ("ss", "-Htn", "state", "established", "dst", worker.address)

        async def connected() -> bool:
            return bool(self.processors_host.output(*look))

        await eventually(connected, what=f"{worker.name} pays")


class Load:
    """A steady rate of payments, and what came of them."""

    def __init__(self, cluster: Cluster, auditor: Auditor) -> None:
        self._auditor = auditor
        self.clients = Clients(
            cluster.endpoint,
            cluster.ingresses,
            rate=RATE,
            seed=5,
            kinds=frozenset({"duplicates", "retries"}),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.clients.run())
            yield
            self.clients.stop()

    async def goes_on(self, count: int) -> None:
        """Wait until so many more payments are accepted, and so many more are paid."""
        accepted, paid = self.clients.accepted, await self._paid()

        async def more() -> bool:
            return self.clients.accepted >= accepted + count and await self._paid() >= paid + count

        await eventually(more, what=f"{count} more payments are accepted and paid")

    async def _paid(self) -> int:
        return sum(total.count for total in (await self._auditor.ours()).values())


async def change_hosts(cluster: Cluster, load: Load, cut_off: Host, cut_s: float) -> None:
    """A host joins, one leaves, one is cut off and comes back, one vanishes: the last worker is
    one that was there all along. Each time the choice of a processor changes meanwhile: who takes
    over must not pay elsewhere what the other had in hand."""
    leaving, staying = cluster.workers
    await load.goes_on(60)
    joining = cluster.network.add("worker-3")
    cluster.start_worker(joining)
    await cluster.pays(joining)
    leaving.terminate()

    async def left() -> bool:
        return leaving.has_ended()

    await eventually(left, what="the worker ends")
    assert [process.returncode for process in leaving.processes] == [0]

    async def is_reached() -> bool:
        return await cluster.reaches(cut_off)

    await eventually(is_reached, what=f"{cut_off.name} is reached")
    cut_off.unplug()
    cut = asyncio.create_task(asyncio.sleep(cut_s))
    await cluster.run("select", "fallback")
    assert not await cluster.reaches(cut_off)
    await load.goes_on(50)
    await cut
    cut_off.plug_in()
    await cluster.run("select", "default")
    if cut_off in cluster.ingresses_hosts:
        await cluster.is_ready(f"http://{cut_off.address}:9001")
    joining.vanish()
    await cluster.run("select", "fallback")
    assert not staying.has_ended()
    await load.goes_on(60)


async def try_out(cluster: Cluster, *, cut_off: Host, cut_s: float) -> RunVerdict:
    """Load, changes, rest, audit; all of it as seen from the clients' host."""
    with cluster.clients.entered():
        await cluster.start_payswitch()
        auditor = Auditor(cluster)
        load = Load(cluster, auditor)

        async def at_rest() -> bool:
            return await auditor.backlog() == 0

        try:
            async with load.running():
                await change_hosts(cluster, load, cut_off, cut_s)
            await eventually(at_rest, what="all is paid", within_s=60)
            books = await auditor.collect(windows=10, seed=5)
        finally:
            await auditor.close()
    return audit(load.clients.sent, books, wrong_answers=load.clients.wrong_answers)


async def assert_paid_once(verdict: RunVerdict, cluster: Cluster) -> None:
    """Each acknowledged payment is settled, once, and all books are equal."""
    print(verdict)  # for the page's numbers: pytest -s
    assert verdict.holds, verdict.violations[:10]
    assert sum(verdict.settled.values()) == verdict.accepted + verdict.unacknowledged_paid
    assert verdict.dead == 0
    assert SWEPT not in cluster.network.logs()
    await cluster.run("reconcile", "--thorough")


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Hosts that are gone after the test, with all that runs on them."""
    reason = why_there_are_none()
    if reason is None and find_haproxy() is None:
        reason = "haproxy is not installed"
    if reason is not None:
        pytest.skip(reason)
    with Network.running(tmp_path) as network:
        yield network


@pytest.mark.timeout(240)
async def test_hosts_that_come_and_go_lose_nothing_and_double_nothing(network: Network) -> None:
    cluster = Cluster.start(network, QUICK)
    verdict = await try_out(cluster, cut_off=cluster.workers[1], cut_s=2)
    await assert_paid_once(verdict, cluster)


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_a_workers_host_that_is_cut_off_for_ten_seconds(network: Network) -> None:
    cluster = Cluster.start(network, {})
    verdict = await try_out(cluster, cut_off=cluster.workers[1], cut_s=10)
    await assert_paid_once(verdict, cluster)


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_an_ingress_host_that_is_cut_off_for_ten_seconds(network: Network) -> None:
    cluster = Cluster.start(network, {})
    verdict = await try_out(cluster, cut_off=cluster.ingresses_hosts[1], cut_s=10)
    await assert_paid_once(verdict, cluster)
