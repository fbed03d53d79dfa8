"""What has not reached a processor when a worker dies, or within the lease's margin, never does."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys

import pytest

from tests.support import SLACK_S

_SENDER = """
import asyncio, sys, httpx
from payswitch.http.transport import Transport

async def main():
    transport = Transport()
    request = httpx.Request("POST", sys.argv[1], content=b"x" * 20_000_000)
    await transport.handle_async_request(request)

asyncio.run(main())
"""

_CUT_OFF = """
import asyncio, subprocess, time, httpx
from payswitch.http.transport import Transport

async def main():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    server = await asyncio.start_server(lambda reader, writer: reader.read(), "127.0.0.1", 8001)
    transport = Transport(acknowledge_timeout=0.3)
    call = asyncio.ensure_future(transport.handle_async_request(httpx.Request(
        "POST", "http://127.0.0.1:8001", content=b"x",
        extensions={"before_write": lambda: subprocess.run(["ip", "link", "set", "lo", "down"])},
    )))
    try:
        await asyncio.wait_for(call, 30)
    except httpx.TransportError as error:
        print(type(error).__name__)

asyncio.run(main())
"""


def read_all(peer: socket.socket) -> None:
    while peer.recv(65536):
        pass


def test_what_a_killed_process_has_not_sent_is_never_delivered() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        sender = subprocess.Popen([sys.executable, "-c", _SENDER, url])
        listener.settimeout(SLACK_S)
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(SLACK_S)
            assert peer.recv(1) == b"P"
            sender.kill()
            sender.wait()
            with pytest.raises(ConnectionResetError):
                read_all(peer)


def _may_unshare() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    with contextlib.suppress(OSError):
        return subprocess.run(["unshare", "-n", "true"], check=False).returncode == 0
    return False


@pytest.mark.skipif(not _may_unshare(), reason="no network namespace can be made here")
def test_a_call_into_a_dead_network_ends_with_its_bytes() -> None:
    """Without the limit the kernel would try again for 15 minutes, and deliver in the end."""
    run = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", _CUT_OFF],
        capture_output=True,
        text=True,
        timeout=SLACK_S * 2,
        check=False,
    )
    assert run.stdout.strip() == "ReadError", run.stderr
