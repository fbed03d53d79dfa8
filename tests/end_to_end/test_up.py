"""`payswitch up`: the whole system with one command, and nothing left of it afterwards."""

from __future__ import annotations

import contextlib
import io
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from payswitch.local.machine import bundled_redis, find_redis
from payswitch.local.screen import LONGEST_LINE, LineSplitter, is_colored
from payswitch.local.system import LocalSystem, Options
from tests.documented import REPOSITORY
from tests.end_to_end.conftest import StartSystem, starting
from tests.end_to_end.harness import (
    ENDPOINT,
    HAS_HAPROXY,
    HOST,
    UP,
    Ports,
    Process,
    System,
    clean_environment,
    client,
    is_taken,
    processes,
    still_running,
    up,
)
from tests.support import SLACK_S, RedisServer, eventually

LOW = 256
OTHERS = ["worker-1", "worker-2", "health", "default", "fallback", "acme", "redis"]
PARTS = [*ENDPOINT, *OTHERS]
TWINS = ("ingress-2", "worker-2", "fallback", "acme")
"""Each is started and watched as its twin is."""


async def total(system: System) -> tuple[int, int]:
    """Number and cents of all settled payments."""
    counts, cents = zip(*(await system.summary()).values(), strict=True)
    return sum(counts), sum(cents)


async def gone(family: set[Process]) -> None:
    """Wait until no process of a family runs."""

    async def none_runs() -> bool:
        return not still_running(family)

    await eventually(none_runs, what="no process is left")


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [child for child, (parent, _) in processes().items() if parent == pid]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system of three processors that was started in a shell with a low limit of open files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with starting(tmp_path_factory.mktemp("system")) as start:
        resource.setrlimit(resource.RLIMIT_NOFILE, (LOW, before[1]))
        try:
            system = start("--processors=3")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        yield system


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for others' limits")
def test_every_part_has_a_raised_limit_of_open_files(system: System) -> None:
    for pid in system.pids().values():
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert soft > LOW or hard <= LOW


async def test_a_payment_is_settled_and_summed_up(system: System) -> None:
    before = await total(system)
    await system.settled(await system.pay(1990))
    assert await total(system) == (before[0] + 1, before[1] + 1990)


async def test_the_third_processor_pays_when_the_others_fail_and_the_books_agree(
    system: System,
) -> None:
    before = await system.summary()
    assert [*before] == ["default", "fallback", "acme"]
    await fail(system, failing=True)
    payments = [await system.pay(1990) for _ in range(5)]
    await system.settled(*payments)
    await fail(system, failing=False)
    after = await system.summary()
    gained = {name: (after[name][0] - before[name][0], after[name][1]) for name in after}
    assert gained["acme"] == (5, before["acme"][1] + 5 * 1990)
    said = reconcile(system)
    assert "All is equal." in said
    assert all(name in said for name in after)


def reconcile(system: System) -> str:
    """What `payswitch reconcile --thorough` says in another terminal, set up as the banner says."""
    found = re.search(r"another terminal +export (.+)$", system.output, re.MULTILINE)
    assert found is not None
    environment = dict(word.split("=", 1) for word in found[1].split())
    run = subprocess.run(
        [sys.executable, "-P", "-m", "payswitch", "reconcile", "--thorough"],
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout + run.stderr


async def fail(system: System, *, failing: bool) -> None:
    """Let the first two processors fail, or no longer."""
    for url in (system.default_url, system.fallback_url):
        async with client(url) as http:
            answer = await http.put(
                "/admin/configurations/failure",
                json={"failure": failing},
                headers={"X-Rinha-Token": "123"},
            )
            answer.raise_for_status()


def test_the_banner_says_what_runs_where_and_what_to_try(system: System) -> None:
    assert list(system.pids()) == PARTS
    assert {*system.pids().values()} == {*children(system.supervisor.pid)}
    _, _, text = system.output.partition("is ready")
    inner = () if HAS_HAPROXY else (system.ports.ingress, system.ports.ingress + 1)
    for port in {*system.ports} - {*inner}:
        assert re.search(rf":{port}\b", text)
    assert f"curl -i http://localhost:{system.ports.endpoint}/payments -H" in text
    assert f"curl http://localhost:{system.ports.endpoint}/payments-summary" in text
    assert f"http://localhost:{system.ports.default}/admin/configurations/failure" in text
    assert (
        f"export REDIS_URL=redis://127.0.0.1:{system.ports.redis}/0 "
        "PAYSWITCH_PROCESSORS=default,fallback,acme "
        f"PAYMENT_PROCESSOR_URL_DEFAULT=http://localhost:{system.ports.default} "
        f"PAYMENT_PROCESSOR_URL_FALLBACK=http://localhost:{system.ports.fallback} "
        "PAYMENT_PROCESSOR_URL_ACME=http://localhost:"
    ) in text


def listening(family: set[Process]) -> set[str]:
    """The addresses, in hex, at which a family's processes listen on TCP."""
    links = (link for pid, _ in family for link in Path(f"/proc/{pid}/fd").iterdir())
    inodes = set()
    for link in links:
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        if (path := Path(f"/proc/net/{table}")).exists()
        for line in path.read_text().splitlines()[1:]
    ]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def test_nothing_listens_beyond_this_machine(system: System) -> None:
    assert listening(system.family()) == {"0100007F"}


def test_on_the_usual_ports_another_terminal_needs_no_variables(tmp_path: Path) -> None:
    options = Options(
        HOST, 9999, 9001, 8001, 8002, 6379, 2, 2, tmp_path, fresh=False, haproxy=False
    )
    assert "export" not in " ".join(LocalSystem(options, {}).tries().values())
    yen = LocalSystem(options, {"PAYSWITCH_CURRENCY": "JPY"}).tries()
    assert yen["another terminal"] == "export PAYSWITCH_CURRENCY=JPY"
    assert '"amount":1990}' in yen["pay"]


def test_every_line_has_the_name_of_its_part(system: System) -> None:
    log, _, _ = system.output.partition("\n\n")
    names = {re.split(r" +\| ", line)[0] for line in log.splitlines()}
    assert names <= {*PARTS, "payswitch"}
    assert re.search(r"^worker-\d  \| .* taking jobs from arq:queue$", log, re.MULTILINE)
    assert "\x1b" not in system.output


def test_what_it_keeps_is_its_owners_alone(system: System) -> None:
    kept = [system.state, *system.state.rglob("*")]
    assert {each.name for each in kept} >= {"lock", "redis", "metrics-targets.json"}
    assert [each for each in kept if each.stat().st_mode & 0o077] == []


async def test_redis_is_set_up_to_lose_nothing(system: System) -> None:
    async with Redis.from_url(system.redis_url, decode_responses=True) as redis:
        config = await redis.config_get("append*")
        config |= await redis.config_get("maxmemory-policy")
    assert (config["appendonly"], config["appendfsync"]) == ("yes", "always")
    assert config["maxmemory-policy"] == "noeviction"


async def test_redis_rewrites_its_file_as_seldom_as_in_containers(system: System) -> None:
    async with Redis.from_url(system.redis_url, decode_responses=True) as redis:
        config = await redis.config_get("auto-aof-rewrite-min-size")
    size = f"{int(config['auto-aof-rewrite-min-size']) // 2**20}mb"
    assert (
        f"--auto-aof-rewrite-min-size\n      - {size}\n"
        in (REPOSITORY / "compose.yaml").read_text()
    )


@pytest.mark.parametrize("part", [part for part in PARTS if part not in TWINS])
async def test_a_killed_part_is_started_again_and_no_payment_is_lost(
    system: System, part: str
) -> None:
    first = await system.pay(100)
    await system.settled(first)
    before = await total(system)
    pid = system.kill(part)
    second = await system.pay(250)
    await system.runs_again(part, pid)
    third = await system.pay(300)
    await system.settled(first, second, third)
    assert await total(system) == (before[0] + 2, before[1] + 550)
    assert f"{part} was ended by SIGKILL; starts again in 0.2 s" in system.output


async def test_a_stop_before_all_is_ready_leaves_no_process(
    system: System, start_system: StartSystem
) -> None:
    other = start_system("--workers=1", wait=False, **system.named)

    async def has_begun() -> bool:
        return re.search(r"^ingress\S* +\| ", other.output, re.MULTILINE) is not None

    await eventually(has_begun, what="an ingress begins")
    assert other.stop() == 0
    assert "is ready" not in other.output


@pytest.mark.parametrize(
    ("which", "name", "option"),
    [("endpoint", "endpoint", "--port"), ("redis", "redis", "--redis-port")],
)
def test_a_taken_port_is_one_line_and_nothing_runs(
    tmp_path: Path, which: str, name: str, option: str
) -> None:
    ports = Ports()
    port = getattr(ports, which)
    with socket.create_server((HOST, port)):
        ended = up(*ports.options(), f"--state={tmp_path}", environment={})
    assert ended.returncode == 1
    assert ended.stdout == ""
    expected = f"payswitch: port {port} is taken ({name}): choose another with {option}\n"
    assert ended.stderr == expected
    assert not any(map(is_taken, ports))


def test_a_port_given_twice_is_one_line(tmp_path: Path) -> None:
    ports = Ports()
    options = [*ports.options(), f"--redis-port={ports.endpoint}"]
    ended = up(*options, f"--state={tmp_path}", environment={})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"port {ports.endpoint} is asked for twice (endpoint, redis)" in ended.stderr


def test_a_setting_that_is_not_allowed_is_one_line(tmp_path: Path) -> None:
    ended = up(f"--state={tmp_path}", environment={"PAYSWITCH_LEASE_MS": "soon"})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("payswitch: PAYSWITCH_LEASE_MS='soon': ")
    assert ended.stderr.count("\n") == 1


async def test_a_part_that_never_starts_ends_it_with_one_line(
    start_system: StartSystem, tmp_path: Path
) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    (folder / "appendonly.aof").mkdir()
    (folder / "appendonlydir").touch()
    system = start_system("--workers=1", state=tmp_path, wait=False)
    assert system.supervisor.wait(60) == 1
    last = system.output.splitlines()[-1]
    assert last.startswith("payswitch: redis does not start: it ended with exit code 1, 5 times")
    assert not any(map(is_taken, system.ports))


async def test_a_stop_lets_the_workers_finish_what_is_in_flight_and_a_restart_goes_on(
    start_system: StartSystem,
) -> None:
    first = start_system("--workers=1")
    async with client(first.default_url) as default:
        await default.put(
            "/admin/configurations/delay", json={"delay": 3000}, headers={"X-Rinha-Token": "123"}
        )
    payment = await first.pay(900)

    async def is_in_flight() -> bool:
        return await first.state_of(payment) == "processing"

    await eventually(is_in_flight, what="a worker has the payment")
    assert first.stop() == 0
    assert "killed" not in first.output
    server = RedisServer(first.state / "redis")
    server.start()
    async with Redis.from_url(server.url) as redis:
        assert await cast(Awaitable[Any], redis.hget(f"payment:{payment}", "state")) == b"settled"
    server.kill()
    second = start_system("--workers=1", state=first.state)
    assert await total(second) == (1, 900)
    await kill_the_supervisor(second)


async def test_a_fresh_start_forgets_the_payments_alone(
    start_system: StartSystem, tmp_path: Path
) -> None:
    kept = tmp_path / "redis"
    kept.mkdir()
    server = RedisServer(kept)
    server.start()
    async with Redis.from_url(server.url) as redis:
        await redis.set("of a payment", 1)
    server.kill()
    (kept / "mine.txt").touch()
    system = start_system("--workers=1", "--no-haproxy", "--fresh", state=tmp_path)
    async with Redis.from_url(system.redis_url) as redis:
        assert not await redis.exists("of a payment")
    assert (kept / "mine.txt").exists()
    await kill_the_supervisor(system)


async def kill_the_supervisor(system: System) -> None:
    """No process is left after this, as after any end."""
    family = system.family()
    system.supervisor.kill()
    await gone(family)


def test_a_state_in_use_is_not_shared(system: System) -> None:
    ended = up(*Ports().options(), f"--state={system.state}", "--fresh", environment={})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"payswitch: another `payswitch up` is using {system.state}\n"


@pytest.fixture
def bare(system: System, start_system: StartSystem, tmp_path: Path) -> System:
    """A system on a machine that has neither HAProxy nor Redis, as this one may be."""
    if find_redis() == bundled_redis() and not HAS_HAPROXY:
        return system
    return start_system("--no-haproxy", "--processors=3", PATH=str(tmp_path))


async def test_without_haproxy_and_redis_granian_and_the_wheels_redis_serve(bare: System) -> None:
    system, before = bare, await total(bare)
    assert os.readlink(f"/proc/{system.pids()['redis']}/exe") == bundled_redis()
    assert list(system.pids()) == ["ingress", *OTHERS]
    assert "Granian serves it with two processes" in system.output
    serving = children(system.pids()["ingress"])
    assert len(serving) == 2
    await system.settled(await system.pay(100))

    pid = system.kill("ingress")
    await system.runs_again("ingress", pid)
    assert not {*serving} & {*processes()}
    await system.settled(await system.pay(200))
    assert await total(system) == (before[0] + 2, before[1] + 300)


def test_what_no_redis_here_reads_is_one_line_and_nothing_runs(tmp_path: Path) -> None:
    kept = tmp_path / "redis" / "appendonlydir"
    kept.mkdir(parents=True)
    (kept / "appendonly.aof.manifest").write_text("file base.rdb seq 1 type b\n")
    (kept / "base.rdb").write_bytes(b"REDIS9999\xfa\tredis-ver\x0699.0.1")
    ports = Ports()
    ended = up(*ports.options(), f"--state={tmp_path}", environment={})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "was written by Redis 99.0.1" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not any(map(is_taken, ports))


async def test_what_the_environment_names_is_not_started(
    system: System, start_system: StartSystem
) -> None:
    other = start_system("--workers=1", **system.named)
    assert list(other.pids()) == [*ENDPOINT, "worker-1", "health"]
    assert "export" not in other.output
    assert re.search(rf"^  redis +{system.redis_url} +- +from REDIS_URL$", other.output, re.M)
    payment = await other.pay(400)
    await system.settled(payment)


def test_another_redis_is_not_forgotten(system: System) -> None:
    ended = up("--fresh", environment={"REDIS_URL": system.redis_url})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "REDIS_URL" in ended.stderr


def test_it_stops_when_nobody_reads_it_any_longer(system: System, tmp_path: Path) -> None:
    ports = Ports()
    supervisor = subprocess.Popen(
        [*UP, *ports.options(), f"--state={tmp_path}", "--workers=1"],
        stdout=subprocess.PIPE,
        env=clean_environment(system.named),
    )
    assert supervisor.stdout is not None
    assert supervisor.stdout.readline()
    supervisor.stdout.close()
    assert supervisor.wait(SLACK_S) == 0
    assert not any(map(is_taken, ports))


class Terminal(io.StringIO):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_colors_are_for_terminals_of_people_who_want_them() -> None:
    assert is_colored(Terminal(), {"TERM": "xterm"})
    assert is_colored(Terminal(), {"NO_COLOR": ""})
    assert not is_colored(Terminal(), {"NO_COLOR": "1"})
    assert not is_colored(Terminal(), {"TERM": "dumb"})
    assert not is_colored(io.StringIO(), {"TERM": "xterm"})


def test_lines_come_whole_whatever_the_chunks_are() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"one\ntw") == ["one"]
    assert splitter.feed(b"o\n\nthree") == ["two", ""]
    assert splitter.rest() == ["three"]
    assert splitter.rest() == []


def test_bytes_that_no_terminal_should_get_are_spelled_out() -> None:
    assert LineSplitter().feed(b"caf\xc3\xa9 \xff \x1b[2J\tx\r\n") == [r"café \xff \x1b[2J    x"]


def test_a_huge_line_comes_in_pieces() -> None:
    splitter = LineSplitter()
    pieces = splitter.feed(b"x" * (3 * LONGEST_LINE + 1))
    pieces += splitter.feed(b"y\n")
    assert [len(piece) for piece in pieces] == [*3 * [LONGEST_LINE], 2]
