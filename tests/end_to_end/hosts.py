"""Hosts on one machine: network namespaces, each with an address and processes of its own, plugged
into a bridge. All of it needs Linux, iproute2 and CAP_NET_ADMIN."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.end_to_end.harness import clean_environment
from tests.support import SLACK_S

_NETWORK = "10.0.0"
_NEWNET = 0x40000000
"""CLONE_NEWNET of setns(2)."""


def why_there_are_none() -> str | None:
    """What keeps this machine from having such hosts; None if nothing does."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    name = f"payswitch-{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "name", "bridge", "type", "bridge")
        finally:
            _ip("netns", "delete", name)
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: {error.stderr.strip()}"
    return None


class Host:
    """A namespace with the address `10.0.0.<number>`, on a cable of its own."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        self.name = name
        self.address = f"{_NETWORK}.{number}"
        self.namespace = network.namespace(name)
        self.processes: list[subprocess.Popen[bytes]] = []
        self._switch = network.switch
        self._plug = f"port-{number}"
        self._folder = network.folder

    def boot(self) -> None:
        """Make it. Raises `CalledProcessError`."""
        _ip("netns", "add", self.namespace)
        _ip(
            *("-n", self._switch, "link", "add", "name", self._plug, "type", "veth"),
            *("peer", "name", "eth0", "netns", self.namespace),
        )
        _ip("-n", self._switch, "link", "set", self._plug, "master", "bridge")
        _ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        _ip("-n", self.namespace, "link", "set", "eth0", "up")
        self.plug_in()

    def start(self, *command: str, environment: Mapping[str, str]) -> None:
        """Start a process on it, which logs into a file of its own."""
        log = self._folder / f"{self.name}-{len(self.processes)}.log"
        with log.open("wb") as stream:
            self.processes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", self.namespace, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    env=clean_environment(environment),
                    cwd=self._folder,
                )
            )

    def output(self, *command: str) -> str:
        """What a command prints that ends by itself. Raises `CalledProcessError`."""
        return _run("ip", "netns", "exec", self.namespace, *command)

    def unplug(self) -> None:
        """Cut it off: its processes go on, no packet comes or goes."""
        _ip("-n", self._switch, "link", "set", self._plug, "down")

    def plug_in(self) -> None:
        """End that."""
        _ip("-n", self._switch, "link", "set", self._plug, "up")

    def terminate(self) -> None:
        """SIGTERM to each process that was started on it."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)

    def has_ended(self) -> bool:
        """Whether all that was started on it has ended."""
        return all(process.poll() is not None for process in self.processes)

    def vanish(self) -> None:
        """Gone at once: no packet leaves it, not even those that end its connections."""
        self.unplug()
        self.kill()

    def kill(self) -> None:
        """SIGKILL every process on it, children of what was started too."""
        for pid in map(int, _ip("netns", "pids", self.namespace).split()):
            if pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait(SLACK_S)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """What this thread connects to meanwhile, it reaches from this host."""
        with open("/proc/thread-self/ns/net") as home:
            with open(f"/run/netns/{self.namespace}") as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())


class Network:
    """A bridge in a namespace of its own, which nothing else on this machine sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: list[Host] = []
        self._numbers = itertools.count(1)
        self.switch = self.namespace("switch")

    @classmethod
    @contextlib.contextmanager
    def running(cls, folder: Path) -> Iterator[Network]:
        """The network while the context is open; `folder` gets the logs."""
        network = cls(folder)
        try:
            _ip("netns", "add", network.switch)
            _ip("-n", network.switch, "link", "add", "name", "bridge", "type", "bridge")
            _ip("-n", network.switch, "link", "set", "bridge", "up")
            yield network
        finally:
            network._remove()

    def namespace(self, name: str) -> str:
        """The namespace's name, which no other test run has."""
        return f"payswitch-{os.getpid()}-{name}"

    def add(self, name: str) -> Host:
        """One more host, with the next address."""
        host = Host(self, name, next(self._numbers))
        self.hosts.append(host)
        host.boot()
        return host

    def logs(self) -> str:
        """All that has been logged on all hosts."""
        return "\n".join(log.read_text() for log in sorted(self.folder.glob("*.log")))

    def _remove(self) -> None:
        there = set(_ip("netns", "list").split())
        with contextlib.ExitStack() as stack:
            if self.switch in there:
                stack.callback(_ip, "netns", "delete", self.switch)
            for host in self.hosts:
                if host.namespace in there:
                    stack.callback(_ip, "netns", "delete", host.namespace)
                    stack.callback(host.kill)


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=SLACK_S
    ).stdout


def _enter(namespace: int) -> None:
    """setns(2), which `os` has from Python 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
