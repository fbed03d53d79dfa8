"""Whether an address can be had, found out before anything is claimed."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from payswitch.http.listening import ListenError, create_sockets_with, free_path, numeric
from tests.support import free_port


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as short:  # pytest's own is too long for a socket's path
        yield Path(short).resolve()


@pytest.fixture
def listening(folder: Path) -> Iterator[Path]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        yield folder / "socket"


def refusal(path: Path) -> str:
    with pytest.raises(ListenError) as refused:
        free_path(path)
    return str(refused.value)


def test_a_free_path_is_left_as_it_was(folder: Path) -> None:
    assert free_path(folder / "socket") == folder / "socket"
    assert list(folder.iterdir()) == []


def test_what_a_killed_process_left_is_removed(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(folder / "socket"))
        dead.listen()
    free_path(folder / "socket")
    assert list(folder.iterdir()) == []


def test_a_socket_in_use_is_left_alone(listening: Path) -> None:
    assert refusal(listening) == f"socket {listening} is in use"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(listening))


def test_a_socket_is_made_in_a_folder_that_is_there(folder: Path) -> None:
    path = folder / "none" / "socket"
    assert refusal(path) == f"socket {path}: no such file or directory"


def test_a_file_or_folder_is_not_taken_for_a_socket(folder: Path) -> None:
    assert refusal(folder) == f"socket {folder}: this is a folder, not a socket"
    (folder / "file").write_text("kept")
    path = folder / "file"
    assert refusal(path) == f"socket {path}: this is another file, not a socket"
    assert path.read_text() == "kept"
    assert refusal(path / "socket").endswith("not a directory")


def test_a_path_is_as_long_as_a_sockets_may_be(folder: Path) -> None:
    room = 107 - len(os.fsencode(folder)) - 1
    free_path(folder / ("x" * room))
    too_long = folder / ("x" * (room + 1))
    assert refusal(too_long) == f"socket {too_long}: a path of over 107 bytes"


def test_links_in_a_circle_are_one_line(folder: Path) -> None:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    assert refusal(folder / "a").startswith(f"socket {folder / 'a'}: ")


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_socket_has_its_mode_from_its_first_moment_whatever_the_umask(
    folder: Path, mode: int
) -> None:
    before = os.umask(0o027)
    try:
        restore = create_sockets_with(mode)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
            made.bind(str(folder / "socket"))
        restore()
        assert stat.S_IMODE((folder / "socket").stat().st_mode) == mode
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("127.1", "127.0.0.1")],
)
def test_a_free_port_has_an_address_in_numbers(host: str, address: str) -> None:
    assert numeric(host, free_port()) == address


def test_a_name_is_listened_at_in_numbers() -> None:
    assert numeric("localhost", free_port()) in ("127.0.0.1", "::1")


def test_a_port_that_can_not_be_had_is_named_with_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"^port {port}: address already in use$"):
            numeric("127.0.0.1", port)
    port = free_port()
    with pytest.raises(ListenError, match=f"^port {port}: cannot assign requested address$"):
        numeric("192.0.2.1", port)
    with pytest.raises(ListenError, match=f"^port {port}: host name .*: nowhere.invalid"):
        numeric("nowhere.invalid", port)
    with pytest.raises(ListenError, match=f"^port {port}: host name not valid: a{{80}}$"):
        numeric("a" * 80, port)
