"""A transaction that Redis wrote by half is never executed, however often it restarts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import yaml

from payswitch.local.append_only import cut_open_transaction
from tests.documented import REPOSITORY
from tests.support import RedisServer

COMPOSE = REPOSITORY / "compose.yaml"
MANIFEST = "appendonlydir/appendonly.aof.manifest"
OPENED = b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$1\r\nc\r\n$1\r\n1\r\n"
WHOLE = OPENED.replace(b"\nc\r", b"\na\r") + b"*1\r\n$4\r\nEXEC\r\n"

pytestmark = pytest.mark.store


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


def write_both(server: RedisServer, one: str, other: str) -> None:
    with redis.Redis(port=server.port) as client:
        client.eval("for _, key in ipairs(KEYS) do redis.call('SET', key, 1) end", 2, one, other)


def keys(server: RedisServer) -> set[str]:
    with redis.Redis(port=server.port, decode_responses=True) as client:
        return set(client.keys())


def file_of(folder: Path) -> Path:
    [file] = [each for each in folder.rglob("*.aof") if ".base." not in each.name]
    return file


def run_what_compose_runs(folder: Path) -> None:
    """The script before Redis in `compose.yaml`, with a Redis that does nothing."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    [shell, option, script, *_] = services["redis"]["command"]
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "redis-server").write_text("#!/bin/sh\n")
    (programs / "redis-server").chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    command = [shell, option, script.replace("$$", "$")]
    subprocess.run(command, cwd=folder, env={"PATH": path}, check=True)


REPAIRS: dict[str, Callable[[Path], object]] = {
    "payswitch up": cut_open_transaction,
    "compose.yaml": run_what_compose_runs,
}


@pytest.mark.parametrize("missing", [1, 9, 30, 68])
def test_half_a_transaction_is_not_executed_by_any_restart(
    server: RedisServer, tmp_path: Path, missing: int
) -> None:
    write_both(server, "a", "b")
    write_both(server, "half-c", "half-d")
    server.kill()
    os.truncate(file_of(tmp_path), file_of(tmp_path).stat().st_size - missing)
    for round_ in range(3):
        server.start()
        write_both(server, f"{round_}-e", f"{round_}-f")
        server.kill()
    server.start()
    assert keys(server) == {"a", "b", *(f"{n}-{key}" for n in range(3) for key in "ef")}


def test_what_an_older_redis_kept_in_one_file_is_taken_over_without_its_half_transaction(
    tmp_path: Path,
) -> None:
    (tmp_path / "appendonly.aof").write_bytes(b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n" + WHOLE + OPENED)
    server = RedisServer(tmp_path)
    for round_ in range(2):
        server.start()
        write_both(server, f"{round_}-e", f"{round_}-f")
        server.kill()
    server.start()
    assert keys(server) == {"a", "0-e", "0-f", "1-e", "1-f"}
    server.kill()
    assert (tmp_path / MANIFEST).is_file()


@pytest.mark.parametrize("repair", REPAIRS.values(), ids=REPAIRS)
@pytest.mark.parametrize("more", ["", " startoffset 8"], ids=["", "as Redis 8 writes it"])
def test_the_last_increment_is_cut_however_the_manifest_describes_it(
    tmp_path: Path, repair: Callable[[Path], object], more: str
) -> None:
    files = [("b.rdb", "b", b""), ("1.aof", "i", WHOLE + OPENED), ("2.aof", "i", WHOLE + OPENED)]
    (tmp_path / "appendonlydir").mkdir()
    with (tmp_path / MANIFEST).open("w") as manifest:
        for number, (name, kind, content) in enumerate(files, 1):
            (tmp_path / "appendonlydir" / name).write_bytes(content)
            extra = more if kind == "i" else ""
            manifest.write(f"file {name} seq {number} type {kind}{extra}\n")
    repair(tmp_path)
    kept = [(tmp_path / "appendonlydir" / name).read_bytes() for name, _, _ in files]
    assert kept == [b"", WHOLE + OPENED, WHOLE]


@pytest.mark.parametrize("repair", REPAIRS.values(), ids=REPAIRS)
def test_only_what_was_written_by_half_is_cut(
    server: RedisServer, tmp_path: Path, repair: Callable[[Path], object]
) -> None:
    write_both(server, "a", "b")
    before = len(file_of(tmp_path).read_bytes())
    write_both(server, "c", "d")
    server.kill()
    whole = file_of(tmp_path).read_bytes()
    opened = before + len(b"*1\r\n$5\r\nMULTI\r\n")
    for size in [*range(opened, len(whole), 7), len(whole) - 1]:
        file_of(tmp_path).write_bytes(whole[:size])
        repair(tmp_path)
        assert file_of(tmp_path).read_bytes() == whole[:before]
    for size in (before, before + 3, len(whole)):
        file_of(tmp_path).write_bytes(whole[:size])
        repair(tmp_path)
        assert file_of(tmp_path).read_bytes() == whole[:size]


@pytest.mark.parametrize("repair", REPAIRS.values(), ids=REPAIRS)
@pytest.mark.parametrize("value", ["MULTI", "MULTIPLE", "EXEC"])
def test_a_value_that_looks_like_a_transaction_is_none(
    server: RedisServer, tmp_path: Path, repair: Callable[[Path], object], value: str
) -> None:
    write_both(server, "a", "b")
    with redis.Redis(port=server.port) as client:
        client.set("c", value)
        client.set("d", "e")
    server.kill()
    before = file_of(tmp_path).read_bytes()
    repair(tmp_path)
    assert file_of(tmp_path).read_bytes() == before


@pytest.mark.parametrize("repair", REPAIRS.values(), ids=REPAIRS)
def test_a_first_start_has_nothing_to_cut(tmp_path: Path, repair: Callable[[Path], object]) -> None:
    repair(tmp_path)
    assert not list(tmp_path.rglob("*.aof"))
