"""The whole system on this machine (`payswitch up`): its parts, their places, their order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from redis.exceptions import RedisError

from payswitch.durability import Durability
from payswitch.local.append_only import cut_open_transaction
from payswitch.local.banner import Row, banner, commands_to_try
from payswitch.local.cluster_topology import CLUSTER_PORTS, NODES
from payswitch.local.machine import (
    LOCAL,
    MachineError,
    Port,
    check_ports,
    check_workers,
    find_haproxy,
    find_redis,
    forget_redis,
    haproxy_trouble,
    make_files_private,
    redis_folder,
    redis_version,
)
from payswitch.local.metrics_targets import free_ports, targets_in
from payswitch.local.redis_cluster import LocalCluster, RedisNode
from payswitch.local.screen import Screen
from payswitch.local.simulated import (
    USUAL_TOKEN,
    SimulatedProcessor,
    simulated_processors,
    url_variable,
    usual_connectors,
    usual_names,
)
from payswitch.local.supervisor import Part, Supervisor
from payswitch.secret_files import variable_of
from payswitch.settings import Settings, named_processors, variables
from payswitch.store import keys
from payswitch.store.client import connect
from payswitch.text import shown

_FOLDERS = {"single": "redis", "cluster": "redis-cluster"}
_LAST_PORT = 65_535
_STOP_SLACK_S = 3.0
_METRICS_PORTS_BEYOND = 100
_PAYMENTS_PORTS_BEYOND = 50

_Check = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `payswitch up`."""

    host: str
    port: int
    ingress_port: int
    default_port: int
    fallback_port: int
    redis_port: int
    processors: int
    """The number of simulated processors, unless the environment names others."""
    workers: int
    state: Path
    fresh: bool
    haproxy: bool
    redis: str = "single"
    """`single` or `cluster`."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """The addresses at which parts listen: those of the cluster's nodes, of both ingresses and of
    the processors."""

    redis: Sequence[str] = (LOCAL,) * NODES
    ingress: Sequence[str] = (LOCAL, LOCAL)
    processors: str = LOCAL


@dataclass(frozen=True, slots=True)
class Service:
    """A part, the port that it needs, and its line in the banner."""

    part: Part
    where: str
    note: str = ""
    port: Port | None = None
    metrics: Port | None = None
    """The port of its `/metrics`."""
    bus: Port | None = None
    """The port at which a node of a cluster meets the others."""


class LocalSystem:
    """The services for these options; the parts that the environment names run already.

    Raises `SettingsError` for settings that are not allowed, `MachineError` for options.
    """

    def __init__(
        self, options: Options, environment: Mapping[str, str], hosts: Hosts | None = None
    ) -> None:
        self.options = options
        self._hosts = hosts or Hosts()
        self.own_redis = not variable_of(environment, "REDIS_URL")
        self.cluster = self._own_cluster() if options.redis == "cluster" else None
        self._given = environment
        self._environment = dict(environment)
        for name in ("PAYMENTS_1", "PAYMENTS_2"):  # HAProxy's, if there are such ports
            self._environment.pop(name, None)
        self.simulated = self._simulate()
        for each in self.simulated.values():
            self._environment |= each.variables(environment)
        if self.cluster is not None:
            self._environment["REDIS_URL"] = self.cluster.url
            # Replicas may be promoted, so nothing less would outlast that.
            self._environment.setdefault("PAYSWITCH_DURABILITY", Durability.REPLICAS)
        elif self.own_redis:
            self._environment["REDIS_URL"] = f"redis://{LOCAL}:{options.redis_port}/0"
        if self._is_playground and not environment.get("PAYSWITCH_PURGE"):
            self._environment["PAYSWITCH_PURGE"] = "open"
        self.settings = Settings.from_environment(self._environment)
        self._port = Port("endpoint", options.host, options.port, "--port")
        self._metrics_ports = self._free_metrics_ports()
        self.haproxy = find_haproxy() if options.haproxy else None
        self.redis = connect(self.settings.redis_url, limit_s=1)

    @property
    def _is_playground(self) -> bool:
        """Whether Redis and all processors are its own: then anyone may forget all payments."""
        return self.own_redis and [*self.simulated] == named_processors(self._environment)

    def _own_cluster(self) -> LocalCluster:
        if not self.own_redis:
            raise MachineError("--redis cluster starts one, but REDIS_URL names another Redis")
        last = self.options.redis_port + CLUSTER_PORTS - 1
        if last > _LAST_PORT:
            raise MachineError(f"the cluster needs ports up to {last}: lower --redis-port")
        return LocalCluster(self._hosts.redis, self.options.redis_port, self.redis_files)

    @property
    def redis_files(self) -> Path:
        """The folder of its own Redis' files."""
        return self.options.state.absolute() / _FOLDERS[self.options.redis]

    def forget(self) -> None:
        """Remove the files of its own Redis."""
        folders = [node.folder for node in self.cluster.nodes] if self.cluster else []
        for folder in folders or [self.redis_files]:
            forget_redis(folder)

    async def tend(self) -> None:
        """Form its own cluster and keep it whole until cancelled."""
        if self.cluster is not None:
            await self.cluster.tend()

    def _simulate(self) -> dict[str, SimulatedProcessor]:
        """The processors that the environment names without a URL, or the usual ones."""
        options, environment = self.options, self._environment
        if not environment.get("PAYSWITCH_PROCESSORS"):
            names = usual_names(options.processors)
            environment["PAYSWITCH_PROCESSORS"] = ",".join(names)
            for name, connector in usual_connectors(names).items():
                environment[name] = environment.get(name) or connector
        ports = {"default": options.default_port, "fallback": options.fallback_port}
        return simulated_processors(
            named_processors(environment),
            environment,
            {
                name: Port(name, self._hosts.processors, at, f"--{name}-port")
                for name, at in ports.items()
            },
            host=self._hosts.processors,
            next_port=max(ports.values()) + 1,
            taken=self._given_ports(),
        )

    def groups(self) -> list[list[Service]]:
        """The services in the order of their stop. Raises `MachineError` without a Redis server."""
        names = [f"worker-{number}" for number in range(1, self.options.workers + 1)]
        workers = [self._of_queue(name, "worker", keys.QUEUE) for name in names]
        return [
            *self._endpoint(),
            [*workers, self._of_queue("health", "health", keys.HEALTH_QUEUE)],
            [self._simulator(each) for each in self.simulated.values()],
            self._redis() if self.own_redis else [],
        ]

    def rows_of_others(self) -> list[Row]:
        """The parts that run already, for the banner."""
        urls = {
            name: (url, url_variable(name))
            for name, url in self.settings.processor_urls.items()
            if name not in self.simulated
        }
        if not self.own_redis:
            urls["redis"] = (self.settings.redis_url, "REDIS_URL")
        return [
            Row(name, shown(url), None, f"from {variable_of(self._environment, variable)}")
            for name, (url, variable) in urls.items()
        ]

    def tries(self) -> dict[str, str]:
        """The commands to try, for the banner."""
        default = self.simulated.get("default")
        default_url = default.port.url if default else None
        return commands_to_try(
            self._port.url, default_url, self._elsewhere(), self.settings.currency
        )

    @property
    def endpoint(self) -> str:
        """The URL that takes payments."""
        return self._port.url

    def _elsewhere(self) -> dict[str, str]:
        """The variables with which a command finds its own Redis and simulators, unless they are
        the defaults. The environment's URLs and tokens are not repeated: they may be secret."""
        settings = self.settings
        found = {"REDIS_URL": settings.redis_url} if self.own_redis else {}
        found["PAYSWITCH_PROCESSORS"] = settings.processor_names
        for name, each in self.simulated.items():
            if each.token == USUAL_TOKEN:
                found |= each.variables(self._given)
            found[url_variable(name)] = each.port.url
        found["PAYSWITCH_CURRENCY"] = settings.currency_code
        found["PAYSWITCH_DURABILITY"] = settings.durability
        found["PAYSWITCH_REPLICAS"] = str(settings.replicas)
        found["PAYSWITCH_PARTITIONS"] = str(settings.partitions)
        known = variables([*settings.processor_urls])
        usual = {each.name: str(Settings.default(key)) for key, each in known.items()}
        return {name: value for name, value in found.items() if value != usual[name]}

    def _endpoint(self) -> list[list[Service]]:
        """HAProxy before two ingress instances; without it one ingress of two processes."""
        options = self.options
        if self.haproxy is None:
            why = (haproxy_trouble() if options.haproxy else None) or "without HAProxy"
            note = f"the endpoint: {why}, Granian serves it with two processes"
            return [[self._ingress("ingress", self._port, note, options=["--workers", "2"])]]
        ports = [
            Port(f"ingress-{n}", host, options.ingress_port + n - 1, "--ingress-port")
            for n, host in enumerate(self._hosts.ingress, 1)
        ]
        bindings = {"PAYSWITCH_BIND": self._port.address}
        bindings |= {f"INGRESS_{n}": port.address for n, port in enumerate(ports, 1)}
        payments_ports = self._free_ports_for_payments(len(ports))
        places = zip(self._hosts.ingress, payments_ports, strict=False)
        bindings |= {f"PAYMENTS_{n}": f"{host}:{at}" for n, (host, at) in enumerate(places, 1)}
        options_of_each = [["--payments-port", str(at)] for at in payments_ports] or [[], []]
        part = Part(
            "haproxy",
            self.haproxy,
            self._environment | bindings,
            _answers(self._port, "/readyz", 200),
            after=tuple(port.part for port in ports),
        )
        return [
            [Service(part, self._port.url, "the endpoint", self._port)],
            [
                self._ingress(port.part, port, options=each)
                for port, each in zip(ports, options_of_each, strict=True)
            ],
        ]

    def _ingress(self, name: str, port: Port, note: str = "", *, options: Sequence[str]) -> Service:
        command = ["ingress", "--host", port.host, "--port", str(port.number), *options]
        part = self._own(name, command, _answers(port, "/readyz", 200))
        return Service(part, port.url, note, port, metrics=port)

    def _of_queue(self, name: str, command: str, queue: str) -> Service:
        number = next(self._metrics_ports, 0)
        variables = {"PAYSWITCH_METRICS_PORT": str(number)}
        key = self.redis.partitions.common.key(queue)
        is_ready = self._redis_says("EXISTS", keys.sign_of_life(key))
        part = self._own(name, [command], is_ready, variables)
        if not number:
            return Service(part, queue)
        metrics = Port(name, self.settings.metrics_host, number, "PAYSWITCH_METRICS_PORT")
        return Service(part, queue, f"{metrics.url}/metrics", metrics=metrics)

    def _free_metrics_ports(self) -> Iterator[int]:
        """From the setting's port on, or near the ingress' ports; none if the setting is 0."""
        if self._environment.get("PAYSWITCH_METRICS_PORT") == "0":
            return iter(())
        first = self.settings.metrics_port or self.options.ingress_port + _METRICS_PORTS_BEYOND
        return free_ports(self.settings.metrics_host, first, self._wanted_ports())

    def _free_ports_for_payments(self, count: int) -> list[int]:
        """So many between the ingress' and the metrics' ports; else none: Granian takes all."""
        first = self.options.ingress_port + _PAYMENTS_PORTS_BEYOND
        free = free_ports(LOCAL, first, self._wanted_ports())
        found = list(islice(free, count))
        return found if len(found) == count and found[-1] < first + _PAYMENTS_PORTS_BEYOND else []

    def _wanted_ports(self) -> set[int]:
        return self._given_ports() | {each.port.number for each in self.simulated.values()}

    def _given_ports(self) -> set[int]:
        options = self.options
        return {
            *(options.port, options.ingress_port, options.ingress_port + 1),
            *(options.default_port, options.fallback_port),
            *range(options.redis_port, options.redis_port + (CLUSTER_PORTS if self.cluster else 1)),
        }

    def _simulator(self, processor: SimulatedProcessor) -> Service:
        name, port = processor.name, processor.port
        command = ["simulator", "--name", name, "--host", port.host, "--port", str(port.number)]
        command += ["--fee", processor.fee, "--protocol", processor.protocol]
        # Not its health: it answers one call in five seconds, which the health worker needs.
        part = self._own(name, command, _answers(port, "/", 404))
        note = f"simulated processor ({processor.protocol}), fee {float(processor.fee):.0%}"
        return Service(part, port.url, note, port)

    def _redis(self) -> list[Service]:
        """One server, or the nodes of a cluster and the step that makes a deployment of them."""
        if self.cluster is None:
            port = Port("redis", LOCAL, self.options.redis_port, "--redis-port")
            folder = self.redis_files
            program = find_redis(*self._kept(folder))
            part = Part(
                "redis",
                self._redis_command(program, port, folder),
                self._environment,
                self._redis_says("PING"),
                before_start=partial(_cut_open_transaction, folder),
            )
            note = self._redis_note(program, port, f"zcard {keys.QUEUE}")
            return [Service(part, self.settings.redis_url, note, port)]
        nodes = self.cluster.nodes
        program = find_redis(*self._kept(*(node.folder for node in nodes)))
        initialize = self._part("init", ["init"], None, after=[node.name for node in nodes])
        return [
            *(self._redis_node(self.cluster, node, program) for node in nodes),
            Service(initialize, "redis", "prepares the cluster's partitions"),
        ]

    def _redis_node(self, cluster: LocalCluster, node: RedisNode, program: str) -> Service:
        port, bus = (
            Port(node.name, node.address.host, number, "--redis-port")
            for number in (node.address.port, node.address.bus)
        )
        part = Part(
            node.name,
            self._redis_command(program, port, node.folder, node.settings()),
            self._environment,
            cluster.was_formed,
            before_start=partial(cluster.prepare, node),
        )
        is_first = node is cluster.nodes[0]
        note = self._redis_note(program, port, "cluster nodes") if is_first else ""
        return Service(part, port.address, note, port, bus=bus)

    def _redis_command(
        self, program: str, port: Port, folder: Path, more: Mapping[str, str] | None = None
    ) -> list[str]:
        settings = {
            "port": str(port.number),
            "bind": port.host,
            "dir": str(folder),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": self.settings.durability.appendfsync[0],
            # As in the compose files: payments wait while Redis begins and ends a rewrite.
            "auto-aof-rewrite-min-size": "256mb",
            "save": "",
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
            **(more or {}),
        }
        return [program, *(w for name, value in settings.items() for w in (f"--{name}", value))]

    def _redis_note(self, program: str, port: Port, command: str) -> str:
        note = f"{redis_version(program)}, kept in {self.options.state}"
        if shutil.which("redis-cli"):
            note += f"; redis-cli -p {port.number} {command}"
        return note

    def _kept(self, *folders: Path) -> tuple[Path, ...]:
        """The folders whose files a Redis must be able to read."""
        return () if self.options.fresh else folders

    def _own(
        self,
        name: str,
        command: list[str],
        is_ready: _Check,
        variables: Mapping[str, str] | None = None,
    ) -> Part:
        """A part that is a command of this program, with variables of its own."""
        after = () if not self.own_redis else ("redis",) if self.cluster is None else ("init",)
        return self._part(name, command, is_ready, variables, after=after)

    def _part(
        self,
        name: str,
        command: list[str],
        is_ready: _Check | None,
        variables: Mapping[str, str] | None = None,
        *,
        after: Sequence[str],
    ) -> Part:
        # -P: a folder called `workers` in the current folder is not ours.
        whole = [sys.executable, "-P", "-m", "payswitch", *command]
        return Part(name, whole, {**self._environment, **(variables or {})}, is_ready, tuple(after))

    def _redis_says(self, *command: str) -> _Check:
        """Whether Redis' answer to a command is true."""

        async def check() -> bool:
            try:
                return bool(await self.redis.execute_command(*command))  # type: ignore[no-untyped-call]
            except (RedisError, OSError):
                return False

        return check


def run(options: Options) -> None:
    """Run the system until Ctrl-C or SIGTERM; no process is left when this returns or raises.

    Raises `MachineError`, `SettingsError` or `PartNotStartedError`, with messages of one line.
    """
    check_workers()
    make_files_private()
    system = LocalSystem(options, os.environ)
    if options.fresh and not system.own_redis:
        raise MachineError("--fresh forgets what its own Redis holds, but REDIS_URL names another")
    name = system.redis_files.name
    with redis_folder(options.state, name) if system.own_redis else contextlib.nullcontext():
        groups = system.groups()
        services = [each for group in groups for each in group]
        check_ports([port for each in services for port in (each.port, each.bus) if port])
        if options.fresh:
            system.forget()
        served = {each.part.name: each.metrics.address for each in services if each.metrics}
        with targets_in(options.state, served):
            asyncio.run(_supervise(system, groups))


async def _supervise(system: LocalSystem, groups: list[list[Service]]) -> None:
    services = [service for group in groups for service in group]
    as_json = system.settings.log_format == "json"
    screen = Screen(sys.stdout, [service.part.name for service in services], as_json=as_json)
    supervisor = Supervisor(
        [[service.part for service in group] for group in groups],
        screen,
        stop_limit_s=system.settings.stop_limit_ms / 1000 + _STOP_SLACK_S,
        tend=system.tend,
    )
    screen.on_gone = supervisor.stop

    def show_banner() -> None:
        if as_json:
            screen.say(f"Payswitch is ready; its endpoint is {system.endpoint}")
            return
        pids = supervisor.pids
        rows = [
            Row(each.part.name, each.where, pids.get(each.part.name), each.note)
            for each in services
            if each.part.is_ready is not None
        ]
        screen.text(banner([*rows, *system.rows_of_others()], system.tries(), screen.painted))

    try:
        await supervisor.run(show_banner)
    finally:
        await system.redis.aclose(close_connection_pool=True)


async def _cut_open_transaction(folder: Path) -> None:
    cut_open_transaction(folder)


def _answers(port: Port, path: str, status: int) -> _Check:
    async def check() -> bool:
        return await port.status(path) == status

    return check
