"""Ports for metrics, and where Prometheus learns of them."""

from __future__ import annotations

import socket
from itertools import islice
from pathlib import Path

import orjson
import pytest

from payswitch.local.machine import LOCAL, MachineError
from payswitch.local.metrics_targets import FILE, free_ports, targets_in


def test_ports_that_are_taken_or_meant_for_others_are_left_out() -> None:
    with socket.create_server((LOCAL, 0)) as taken:
        first = taken.getsockname()[1]
        found = list(islice(free_ports(LOCAL, first, {first + 1}), 2))
    assert not {first, first + 1} & {*found}
    assert found == sorted(found)


def test_there_is_none_beyond_the_last_port() -> None:
    assert list(free_ports(LOCAL, 65_536, ())) == []


def test_an_address_that_is_not_of_this_machine_is_one_line() -> None:
    with pytest.raises(MachineError, match=r"192\.0\.2\.1"):
        next(free_ports("192.0.2.1", 20_000, ()))


def test_the_file_is_there_for_as_long_as_the_parts_are(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with targets_in(folder, {"worker-1": "127.0.0.1:9101"}):
        [target] = orjson.loads((folder / FILE).read_bytes())
        assert target == {"targets": ["127.0.0.1:9101"], "labels": {"name": "worker-1"}}
    assert not (folder / FILE).exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="file"), targets_in(tmp_path / "file" / "x", {}):
        pass
