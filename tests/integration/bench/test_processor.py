"""The experiments with ways to call a processor see what is there."""

from __future__ import annotations

import socket

import httpx
import pytest

pytest.importorskip("httpx_aiohttp")
pytest.importorskip("pyreqwest")

from bench.processor import measure, simulator
from bench.processor_behaviour import (
    Peer,
    given_up,
    hook_is_next_to_write,
    hook_refuses,
    large_response,
    observe,
    read_request,
    shown,
    stale_connection,
    tells_apart,
)
from bench.processor_candidates import CANDIDATES, OURS, STOCK


async def test_our_transport_does_what_it_was_written_for() -> None:
    found = await observe(CANDIDATES[OURS])
    assert found.misleading == []
    assert found.hook == "yes"
    assert found.refusal == "nothing sent, payswitch.NotSent"
    assert found.given_up == "reset"
    assert (found.stale, found.stale_at_once) == ("noticed", "noticed")
    assert found.large_response == "RemoteProtocolError"


async def test_stock_httpx_closes_in_order_and_reads_any_size() -> None:
    assert await given_up(CANDIDATES[STOCK]) == "closed"
    assert await large_response(CANDIDATES[STOCK]) == "answer of 8,388,608 bytes"


async def test_a_check_that_is_followed_by_something_else_is_seen() -> None:
    assert await hook_is_next_to_write(CANDIDATES["aiohttp itself"]) == "something in between"
    found = await hook_is_next_to_write(CANDIDATES["pyreqwest"])
    assert found == "waits for a connection in between"


async def test_a_refusal_is_one_only_if_nothing_arrives() -> None:
    assert (await hook_refuses(CANDIDATES[STOCK])).startswith("nothing sent")


async def test_a_stale_connection_that_fails_the_call_is_not_called_noticed() -> None:
    found = await stale_connection(CANDIDATES["aiohttp itself"], pause_s=0)
    assert found != "noticed"


def test_an_error_misleads_if_it_says_the_contrary_of_what_happened() -> None:
    assert tells_apart({"refused": httpx.ConnectError(""), "reset": httpx.ReadError("")}) == []
    [problem] = tells_apart({"reset": httpx.ConnectError("")})
    assert problem == "reset: ConnectError, though it was written"
    [problem] = tells_apart({"refused": httpx.ReadError("")})
    assert problem == "refused: ReadError, which may have been written"


def test_errors_are_named_with_the_package_they_come_from() -> None:
    assert shown(httpx.ReadError("")) == "ReadError"
    assert shown(socket.gaierror()) == "socket.gaierror"
    assert shown("noticed") == "noticed"


@pytest.mark.long
def test_every_candidate_pays() -> None:
    with simulator() as url:
        for name in CANDIDATES:
            found = measure(name, url, 3, 0.0)
            assert found["cpu_us"] > 0, name
            assert found["posts_per_s"] > 0, name


def test_a_peer_serves_until_its_context_ends() -> None:
    received: list[bytes] = []
    with Peer(lambda connection: received.append(read_request(connection))).running() as peer:
        host, _, port = peer.url.removeprefix("http://").partition("/")[0].partition(":")
        socket.create_connection((host, int(port))).close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((host, int(port)))
