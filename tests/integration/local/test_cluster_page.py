"""`docs/how-to/cluster.md`, carried out as it is written: three hosts, one of which is lost and
replaced, and a fourth shard."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest
import redis as blocking

from payswitch.local.cluster_topology import members_of
from payswitch.store.partitions import tags
from tests.documented import REPOSITORY
from tests.support import SLACK_S, find_redis, free_port, wait_until

PAGE = (REPOSITORY / "docs" / "how-to" / "cluster.md").read_text()
[CONF] = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^ *\$ (.*)$", PAGE, re.MULTILINE)
SECRET = "tide-lamp-42"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="hosts are addresses such as 127.0.1.2"),
]


class Hosts:
    """Hosts as addresses of this machine: 10.0.0.1 is 127.0.1.1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._nodes: dict[tuple[int, int], subprocess.Popen[bytes]] = {}
        self.environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.defpath}"}

    def here(self, text: str) -> str:
        """A text of the page with this machine's places."""
        text = text.replace("10.0.0.", "127.0.1.").replace("…", SECRET)
        ports = {"7000": str(self._port), "7001": str(self._port + 1)}
        return re.sub(r"\b700[01]\b", lambda found: ports[found[0]], text)

    def start(self, host: int, port: int) -> None:
        """Start a node by the page's configuration; without files it is empty."""
        folder = self._folder / str(host) / str(port)
        folder.mkdir(parents=True, exist_ok=True)
        conf = CONF.replace("10.0.0.1", f"10.0.0.{host}").replace("port 7000", f"port {port}")
        file = folder.with_suffix(".conf")
        conf = conf.replace("/var/lib/redis/7000", "FOLDER")
        conf += f"bind-source-addr 10.0.0.{host}\n"  # as every real host's is by itself
        file.write_text(self.here(conf).replace("FOLDER", str(folder)))
        self._nodes[host, port] = subprocess.Popen(
            [find_redis(), str(file)], stdout=subprocess.DEVNULL
        )
        wait_until(lambda: self._answers(host, port), what="the node answers")

    def lose(self, host: int) -> None:
        """All nodes of a host are gone, and their disks."""
        for at in [each for each in self._nodes if each[0] == host]:
            node = self._nodes.pop(at)
            node.kill()
            node.wait()
        shutil.rmtree(self._folder / str(host))

    def stop(self) -> None:
        """End all nodes."""
        for node in self._nodes.values():
            node.send_signal(signal.SIGKILL)
            node.wait()

    def run(self, command: str) -> str:
        """The output of one of the page's commands, which must succeed."""
        ended = subprocess.run(
            ["sh", "-c", self.here(command)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SLACK_S,
            check=False,
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
        return ended.stdout + ended.stderr

    def succeeds(self, command: str) -> bool:
        """Whether a command succeeds that may have to be repeated."""
        try:
            self.run(command)
        except AssertionError:
            return False
        return True

    def run_when_all_agree(self, command: str) -> None:
        """Run a command that changes the cluster, which refuses as long as nodes don't agree."""
        wait_until(self.know_each_other, what="all nodes know each other")
        wait_until(lambda: self.succeeds(CHECK), what="all nodes agree")
        self.run(command)

    def know_each_other(self) -> bool:
        """Whether all nodes that have joined know the same ones."""
        known = []
        for host, port in self._nodes:
            with self.client(host, port) as client:
                known.append(set(cast(Mapping[str, object], client.cluster("NODES"))))
        joined = [each for each in known if len(each) > 1]
        return all(each == joined[0] for each in joined)

    def client(self, host: int, port: int) -> blocking.Redis:
        """A client of one node."""
        at = int(self.here(str(port)))
        return blocking.Redis(self.here(f"10.0.0.{host}"), at, password=SECRET)

    def _answers(self, host: int, port: int) -> bool:
        with self.client(host, port) as client:
            try:
                return bool(client.ping())
            except blocking.ConnectionError:
                return False


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    for command in COMMANDS:
        if command.startswith("export "):
            name, _, value = shlex.split(made.here(command))[1].partition("=")
            made.environment[name] = value
    yield made
    made.stop()


def only(start: str, among: list[str] = COMMANDS) -> str:
    """The page's command that begins like this; if it stands there twice, it is the same."""
    [found] = {command for command in among if command.startswith(start)}
    return found


CREATE = only("redis-cli --cluster create")
CHECK = only("redis-cli --cluster check")
ADDED = [command for command in COMMANDS if "add-node" in command]


def shards(hosts: Hosts) -> dict[str, tuple[int, int]]:
    """The partitions and the replicas of each primary that works."""
    with hosts.client(1, 7000) as client:
        members = members_of(client.execute_command("CLUSTER", "NODES").decode())
        slots = [int(client.execute_command("CLUSTER", "KEYSLOT", tag)) for tag in tags(16)]
    working = [each for each in members if not each.flags & {"fail", "noaddr"}]
    return {
        each.node_id: (
            sum(slot in part for part in each.slots for slot in slots),
            sum(other.primary_id == each.node_id for other in working),
        )
        for each in working
        if each.has_slots
    }


def test_the_page_is_true(hosts: Hosts) -> None:
    for host in (1, 2, 3):
        for port in (7000, 7001):
            hosts.start(host, port)
    hosts.run(CREATE)
    wait_until(lambda: hosts.succeeds(CHECK), what="all nodes agree")
    wait_until(lambda: "Begun: " in hosts.run("payswitch init"), what="the deployment is begun")
    assert sorted(shards(hosts).values()) == [(5, 1), (5, 1), (6, 1)]

    hosts.lose(2)
    wait_until(
        lambda: sorted(replicas for _, replicas in shards(hosts).values()) == [0, 0, 1],
        what="the lost primary is failed over",
    )
    said = hosts.run(only("redis-cli -h"))
    assert re.search(r"master,fail - .* (dis)?connected$", said, re.MULTILINE)
    for port in (7000, 7001):
        hosts.start(4, port)
    for command in ADDED[:2]:
        hosts.run_when_all_agree(command)
    hosts.run(only("for id in"))
    wait_until(lambda: hosts.succeeds(CHECK), what="all nodes agree")
    assert "fail" not in hosts.run(only("redis-cli -h"))
    wait_until(
        lambda: sorted(shards(hosts).values()) == [(5, 1), (5, 1), (6, 1)],
        what="each shard has a replica again",
    )
    wait_until(lambda: hosts.succeeds("payswitch init"), what="the replicas are in step")
    assert "Begun before: " in hosts.run("payswitch init")

    for host in (5, 6):
        hosts.start(host, 7000)
    for command in ADDED[2:]:
        hosts.run_when_all_agree(command)
    hosts.run_when_all_agree(only("redis-cli --cluster rebalance"))
    wait_until(lambda: hosts.succeeds(CHECK), what="all nodes agree")
    wait_until(lambda: [*shards(hosts).values()] == [(4, 1)] * 4, what="each shard has its replica")
    assert "Begun before: " in hosts.run("payswitch init")
