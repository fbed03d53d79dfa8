"""The folder of `payswitch up`, and its ports."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from payswitch.machine import MachineError, Port, check_ports, redis_folder


def test_what_redis_keeps_is_its_owners_alone(tmp_path: Path) -> None:
    with redis_folder(tmp_path / "state") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 80])
def test_a_host_that_is_none_is_one_line(host: str) -> None:
    with pytest.raises(MachineError, match=rf"^{host}:80 \(endpoint\): host name .*: {host}"):
        check_ports([Port("endpoint", host, 80, "--port")])
