"""A host of its own for a few parts, which can be cut off from the other nodes of the cluster: a
network namespace. It needs Linux, iproute2 and CAP_NET_ADMIN."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from payswitch.local.machine import LOCAL, MachineError
from payswitch.local.system import Hosts, Service

PARTS = ("redis-1", "worker-1", "ingress-1")
"""The parts that are cut off together."""

_NETWORK = "198.18"  # for tests of networks (RFC 2544), so nobody's own
_LIMIT_S = 10


@dataclass(frozen=True, slots=True)
class _Link:
    """A network of two addresses: this machine's and the island's."""

    here: str
    there: str


class Island:
    """The host. Processors, clients and HAProxy reach it over one link, Redis' nodes and their
    clients over another one, which can be cut."""

    def __init__(self, number: int) -> None:
        self._name = f"payswitch-{number}-island"
        self._switch = f"payswitch-{number}-switch"
        self._namespaces = (self._name, self._switch)
        self._plugs = f"ps{number}h", f"ps{number}r"
        net = f"{_NETWORK}.{number % 256}"
        self._http, self._redis = _Link(f"{net}.1", f"{net}.2"), _Link(f"{net}.9", f"{net}.10")

    @property
    def hosts(self) -> Hosts:
        """The addresses of the parts on both sides."""
        return Hosts(
            redis=(self._redis.there, *[self._redis.here] * 5),
            ingress=(self._http.there, LOCAL),
            processors=self._http.here,
        )

    def within(self, part: str) -> Sequence[str]:
        """The words before a part's command that let it run on its host."""
        return ("ip", "netns", "exec", self._name) if part in PARTS else ()

    def dress(self, service: Service) -> Service:
        """The service on the island, if it is one of its parts."""
        part = service.part
        command = [*self.within(part.name), *part.command]
        return replace(service, part=replace(part, command=command))

    def cut_off(self) -> None:
        """Cut the link between the nodes: no packet passes, and no connection ends."""
        _ip("-n", self._switch, "link", "set", "island", "down")

    def join(self) -> None:
        """End that."""
        _ip("-n", self._switch, "link", "set", "island", "up")

    @contextlib.contextmanager
    def made(self) -> Iterator[None]:
        """The host is there while the context lasts. Raises `MachineError`."""
        try:
            try:
                self._make()
            except subprocess.CalledProcessError as error:
                raise MachineError(f"no host can be made: {error.stderr.strip()}") from None
            yield
        finally:
            # Links first: they would go with their namespace, but only after a while.
            links = [("link", "delete", plug) for plug in self._plugs]
            for remove in (*links, *(("netns", "delete", each) for each in self._namespaces)):
                with contextlib.suppress(subprocess.CalledProcessError):
                    _ip(*remove)

    def _make(self) -> None:
        for namespace in self._namespaces:
            _ip("netns", "add", namespace)
        _ip("-n", self._switch, "link", "add", "name", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        http, redis = self._plugs
        _ip(*_veth(http, "http", self._name))
        _ip(*_veth(redis, "main", self._switch))
        _ip("-n", self._name, *_veth("redis", "island", self._switch))
        for port in ("main", "island"):
            _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
        self._connect([], http, self._http.here)
        self._connect([], redis, self._redis.here)
        inside = ["-n", self._name]
        self._connect(inside, "http", self._http.there)
        self._connect(inside, "redis", self._redis.there)
        _ip(*inside, "link", "set", "lo", "up")

    @staticmethod
    def _connect(where: Sequence[str], plug: str, address: str) -> None:
        _ip(*where, "address", "add", f"{address}/29", "dev", plug)
        _ip(*where, "link", "set", plug, "up")


def why_no_island() -> str | None:
    """What keeps this machine from having an island; None if nothing does."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    try:
        with Island(os.getpid()).made():
            return None
    except MachineError as error:
        return str(error)


def _veth(name: str, peer: str, namespace: str) -> Sequence[str]:
    ends = ("link", "add", "name", name, "type", "veth", "peer", "name", peer)
    return (*ends, "netns", namespace)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=_LIMIT_S)
