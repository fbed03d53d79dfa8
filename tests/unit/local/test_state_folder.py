"""The folder of `payswitch up`, and its ports."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from payswitch.local.machine import MachineError, Port, check_ports, make_own_folder, redis_folder


def test_what_redis_keeps_is_its_owners_alone(tmp_path: Path) -> None:
    with redis_folder(tmp_path / "state") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_new_folder_for_the_state_is_its_owners_alone(tmp_path: Path) -> None:
    make_own_folder(tmp_path / "state")
    assert mode_of(tmp_path / "state") == 0o700


def test_a_state_that_was_open_to_others_is_closed(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir(0o755)
    (tmp_path / "lock").touch(0o644)
    tmp_path.chmod(0o755)
    make_own_folder(tmp_path)
    modes = {each: mode_of(tmp_path / each) for each in ("", "redis", "lock")}
    assert modes == {"": 0o700, "redis": 0o700, "lock": 0o600}


def test_a_folder_that_others_use_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "letters").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(MachineError, match=r"holds 'letters', .* with --state"):
        make_own_folder(tmp_path)
    assert mode_of(tmp_path) == 0o755


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 80])
def test_a_host_that_is_none_is_one_line(host: str) -> None:
    with pytest.raises(MachineError, match=rf"^{host}:80 \(endpoint\): host name .*: {host}"):
        check_ports([Port("endpoint", host, 80, "--port")])
