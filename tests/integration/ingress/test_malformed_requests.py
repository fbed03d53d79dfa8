"""Random and mutated requests: none is answered with 5xx, none that is no payment is accepted."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from functools import partial
from typing import TypeVar
from uuid import UUID, uuid4

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payswitch.ingress.bodies import MAX_BODY_BYTES
from tests.end_to_end.harness import HOST, client
from tests.end_to_end.hostile import DOORS, Answer, Edge, running_edge
from tests.support import SLACK_S

T = TypeVar("T")

TOGETHER = 30
"""Requests that are sent at the same time."""
COUNTS = [90, pytest.param(3400, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
"""How many of each of three kinds are sent: 270, and 10,200 in the long run."""


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("edge")) as edge:
        yield edge


def assert_clean(answers: list[Answer]) -> None:
    """No failure of ours, and every word of ours is problem JSON."""
    for answer in answers:
        assert answer.status < 500, answer
        if answer.status < 400 or not answer.body:
            continue
        if b"text/html" in answer.head:  # HAProxy about what is no HTTP at all
            assert answer.body.startswith(b"<html><body><h1>4"), answer
        else:
            assert re.search(rb"content-type: *application/problem\+json", answer.head, re.I)
            assert orjson.loads(answer.body)["status"] == answer.status


def is_payment(body: bytes, correlation_id: str) -> bool:
    """Whether a body is a payment with that id, as the standard library reads it."""
    document = json.loads(body, parse_float=Decimal, parse_int=Decimal)
    amount = document["amount"]
    return (
        str(UUID(document["correlationId"])) == correlation_id
        and type(amount) is Decimal
        and amount > 0
        and amount * 100 == (amount * 100).to_integral_value()
    )


async def exists(edge: Edge, correlation_id: str) -> bool:
    async with client(edge.url("ingress")) as http:
        found = await http.get(f"/payments/{correlation_id}")
    return found.status_code == 200


def send_many(
    edge: Edge,
    door: str,
    requests: st.SearchStrategy[T],
    count: int,
    send: Callable[[T], Awaitable[None]],
) -> None:
    """Send so many requests, some at a time; the same processes take a payment afterwards."""
    pids = edge.pids()

    @settings(max_examples=count // TOGETHER, suppress_health_check=list(HealthCheck))
    @given(st.lists(requests, min_size=TOGETHER, max_size=TOGETHER))
    def send_all(some: list[T]) -> None:
        async def together() -> None:
            await asyncio.gather(*map(send, some))

        asyncio.run(together())

    send_all()
    asyncio.run(edge.pay(door))
    assert edge.pids() == pids


# Bodies: members in any order and number, whose keys and values are right, nearly right or odd.
UUIDS = st.uuids().map(str)
IDS = st.one_of(
    UUIDS.map(json.dumps),
    UUIDS.map(str.upper).map(json.dumps),
    UUIDS.map(lambda each: json.dumps(f"urn:uuid:{each}")),
    UUIDS.map(lambda each: json.dumps(each.replace("-", ""))),
    UUIDS.map(lambda each: json.dumps(f"{{{each}}}")),
    UUIDS.map(lambda each: f'"\\u003{each[0]}{each[1:]}"'),
    UUIDS.map(lambda each: json.dumps(each[:-1] + "\uff11")),
)
NUMBERS = st.one_of(
    st.integers(1, 10**14).map(lambda cents: f"{cents // 100}.{cents % 100:02}"),
    st.floats().map(json.dumps),
    st.integers().map(str),
    st.decimals(allow_nan=False).map(str),
    st.sampled_from(["1e400", "-1e400", "-0", "-0.0", "1E2", "1e-2", "100e-2", "1e-400", "01"]),
    st.sampled_from(["+1", ".5", "1.", "0x10", "NaN", "-Infinity", "1e", "1_0", "9" * 5000]),
    st.integers(1, 400).map(lambda zeros: f"1.{'0' * zeros}"),
    st.integers(1, 400).map(lambda zeros: f"1.{'0' * zeros}1"),
)
VALUES = st.one_of(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ).map(json.dumps),
    st.integers(1, 3000).map(lambda depth: "[" * depth + "]" * depth),
    st.integers(1, 500).map(lambda depth: '{"a":' * depth + "1" + "}" * depth),
    st.sampled_from(['"\\ud800"', '"\\u0000"', '"\\x"', '"\x00"', '"', "'a'", "tru", "[", "//"]),
)
KEYS = st.sampled_from(
    ["correlationId", "amount", "correlationid", "", "am\\u006funt", "__proto__"]
)
MEMBERS = st.tuples(KEYS.map(lambda key: f'"{key}"'), st.one_of(VALUES, IDS, NUMBERS))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """An object that is a payment, or nearly one."""
    rights = [('"correlationId"', draw(IDS)), ('"amount"', draw(NUMBERS))]
    members = draw(st.permutations([*rights, *draw(st.lists(MEMBERS, max_size=2))]))
    text = ",".join(f"{key}:{value}" for key, value in members)
    return f"{{{text}}}".encode("utf-8", "surrogatepass")


BODIES = bodies()
ANY_BODY = st.one_of(
    BODIES,
    BODIES,
    BODIES.map(lambda body: b"\xef\xbb\xbf" + body),
    BODIES.map(lambda body: body.decode("utf-8", "replace").encode("utf-16")),
    VALUES.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=200),
)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("count", COUNTS)
def test_only_a_body_that_is_a_payment_is_accepted(edge: Edge, door: str, count: int) -> None:
    async def send(body: bytes) -> None:
        head = b"POST /payments HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d"
        whole = head % len(body) + b"\r\n\r\n" + body
        answers = await edge.talk(door, whole)
        assert_clean(answers)
        [answer] = answers
        if answer.status == 202:
            assert answer.accepted is not None
            assert is_payment(body, answer.accepted)
            assert await exists(edge, answer.accepted)
        else:
            allowed = {413} if len(body) > MAX_BODY_BYTES else {400, 409, 422}
            assert answer.status in allowed, answer

    send_many(edge, door, ANY_BODY, count, send)


# Requests that are HTTP, with any method, path, query and headers.
METHODS = st.sampled_from(
    [
        *("GET", "POST", "POST", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE"),
        *("FOO", "get"),
    ]
)
PATHS = st.one_of(
    st.sampled_from(
        ["/payments", "/payments", "/payments-summary", "/healthz", "/readyz", "/purge-payments"]
    ),
    st.sampled_from(
        ["/", "//", "/payments/", "/payments/../healthz", "/%00", "/payments/%ff", "*"]
    ),
    st.sampled_from(["http://y/payments", "/payments/%2e%2e", "/docs", "/payments;a=b", "/#a"]),
    UUIDS.map(lambda each: f"/payments/{each}"),
    st.text("abc/%.~;:@-_!$&'()*+,=0123456789", max_size=60).map(lambda rest: f"/{rest}"),
)
QUERIES = st.one_of(
    st.just(""),
    st.just("?from=2026-07-10T12:34:56.000Z&to=2026-07-10T12:35:56.000Z"),
    st.text("fromto=&%0123456789TZ:-+.", max_size=60).map(lambda rest: f"?{rest}"),
    st.sampled_from(
        ["?from=", "?from=%ff", "?to=9999-12-31T23:59:60Z", "?from=0000-00-00", "??&&"]
    ),
    st.sampled_from(["?from=a&from=b", "?from=%00", "?to=1e9", "?from=99999-01-01T00:00:00Z"]),
)
HEADERS = st.one_of(
    st.sampled_from(
        [
            "application/json",
            "text/plain",
            "",
            "application/json; charset=utf-16",
            "a/b",
            ";",
            "\xff",
        ]
    ).map(lambda value: f"Content-Type: {value}"),
    st.sampled_from(
        [
            *(
                "Content-Encoding: gzip",
                "Accept: text/html",
                "Accept-Encoding: \xff",
                "TE: trailers",
            ),
            *("Authorization: Bearer \xe9", "Authorization: Basic", "Expect: 100-continue"),
            *("Expect: 200-ok", "Range: bytes=0-1", "If-None-Match: *", "Upgrade: websocket"),
            *("Connection: upgrade", "Connection: content-length", "Max-Forwards: 0", "Via: 1.1 a"),
            *(
                "X-Forwarded-For: 127.0.0.1",
                "Host: y",
                "Cookie: a=b",
                "Trailer: X",
                "X: " + "a" * 900,
            ),
            *("X-HTTP-Method-Override: PUT", 'Forwarded: for="', "Sec-WebSocket-Key: a"),
        ]
    ),
    st.text("abcXYZ-_!#$%&'*+.^`|~019", min_size=1, max_size=30).map(lambda name: f"{name}: 1"),
)


@st.composite
def http_requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """The method, and all of a request."""
    method = draw(METHODS)
    lines = [f"{method} {draw(PATHS)}{draw(QUERIES)} HTTP/1.{draw(st.sampled_from('1110'))}"]
    lines += ["Host: x", "Connection: close", *draw(st.lists(HEADERS, max_size=4))]
    body = draw(st.just(b"") | BODIES)
    if draw(st.booleans()):
        lines.append("Transfer-Encoding: chunked")
        body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    else:
        lines.append(f"Content-Length: {len(body)}")
    return method, "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("count", COUNTS)
def test_no_method_path_or_header_makes_it_fail(edge: Edge, door: str, count: int) -> None:
    async def send(request: tuple[str, bytes]) -> None:
        method, data = request
        answers = await edge.talk(door, data, head=method == "HEAD")
        assert_clean(answers)
        for answer in answers:
            if answer.accepted:
                assert data.startswith(b"POST ")
                assert await exists(edge, answer.accepted)

    send_many(edge, door, http_requests(), count, send)


# Bytes that were a valid request before something happened to them.
VALID = st.sampled_from(["content-length", "chunked", "get", "pipelined"])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid request after some accidents."""
    data = bytearray(valid_request(draw(VALID), str(draw(st.uuids()))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["truncate", "flip", "insert", "remove", "repeat"])):
            case "truncate":
                del data[at:]
            case "flip":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "insert":
                data[at:at] = draw(st.sampled_from(ODD_BYTES) | st.binary(max_size=8))
            case "remove":
                del data[at : at + draw(st.integers(1, 20))]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 60))]
    return bytes(data)


ODD_BYTES = [b"\r\n", b"\n", b"\r", b"\0", b"\x0b", b" ", b"\t", b":", b",", b"\r\n\r\n", b"0"]


def valid_request(kind: str, correlation_id: str) -> bytes:
    """One request, or two that follow each other."""
    body = b'{"correlationId":"%b","amount":19.90}' % correlation_id.encode()
    post = b"POST /payments HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    whole = post + b"Content-Length: %d\r\n" % len(body)
    return {
        "content-length": whole + b"Connection: close\r\n\r\n" + body,
        "chunked": post
        + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body)
        + body
        + b"\r\n0\r\n\r\n",
        "get": b"GET /payments/%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        % correlation_id.encode(),
        "pipelined": whole
        + b"\r\n"
        + body
        + b"GET /payments-summary HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    }[kind]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("count", COUNTS)
def test_no_broken_bytes_make_it_fail(edge: Edge, door: str, count: int) -> None:
    async def send(data: bytes) -> None:
        answers = await edge.talk(door, data, quiet=partial(asyncio.sleep, 0.4))
        assert_clean(answers)
        for answer in answers:
            if answer.accepted:
                assert answer.accepted.encode() in data.lower()
                assert await exists(edge, answer.accepted)

    send_many(edge, door, mutated(), count, send)


# Offers and wishes that concern one connection, of which a server may take no notice.
HOP_BY_HOP = {
    "h2c, as Java's client offers it": (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
    ),
    "websocket": (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ),
    "several protocols": b"Connection: keep-alive, upgrade\r\nUpgrade: TLS/1.0, foo/2\r\n",
    "an offer that Connection doesn't name": b"Upgrade: h2c\r\n",
    "an upgrade to nothing": b"Connection: upgrade\r\n",
    "names in Connection": b"Connection: x-a, te\r\nX-A: 1\r\nTE: trailers, deflate\r\n",
    "the content type in Connection": b"Connection: content-type\r\n",
    "Keep-Alive": b"Connection: Keep-Alive\r\nKeep-Alive: timeout=5, max=1\r\n",
    "Proxy-Connection": b"Proxy-Connection: keep-alive\r\n",
}


def post_with(headers: bytes, *, chunked: bool, trailer: bytes = b"") -> bytes:
    """A new payment with these headers."""
    body = b'{"correlationId":"%b","amount":1}' % str(uuid4()).encode()
    framing = b"Content-Length: %d\r\n" % len(body)
    if chunked:
        framing = b"Transfer-Encoding: chunked\r\n"
        body = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailer)
    return b"POST /payments HTTP/1.1\r\nHost: x\r\n" + headers + framing + b"\r\n" + body


async def both_answers(edge: Edge, door: str, first: bytes) -> bytes:
    """What comes over one connection, on which a plain payment follows."""
    reader, writer = await asyncio.open_connection(HOST, edge.ports[door])
    async with asyncio.timeout(SLACK_S):
        writer.write(first)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(post_with(b"Connection: close\r\n", chunked=False))
        rest = await reader.read()
    writer.close()
    return head + rest


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("headers", HOP_BY_HOP.values(), ids=HOP_BY_HOP)
async def test_what_concerns_one_connection_changes_no_answer(
    edge: Edge, door: str, headers: bytes, chunked: bool
) -> None:
    data = await both_answers(edge, door, post_with(headers, chunked=chunked))
    assert data.count(b"HTTP/1.1 202 Accepted\r\n") == 2, data


@pytest.mark.parametrize("door", DOORS)
async def test_an_offer_in_pieces_is_ignored_as_well(edge: Edge, door: str) -> None:
    data = post_with(HOP_BY_HOP["h2c, as Java's client offers it"], chunked=False)
    reader, writer = await asyncio.open_connection(HOST, edge.ports[door])
    async with asyncio.timeout(SLACK_S):
        for at in range(0, len(data), 40):
            writer.write(data[at : at + 40])
            await writer.drain()
            await asyncio.sleep(0)
        assert await reader.readline() == b"HTTP/1.1 202 Accepted\r\n"
    writer.close()


@pytest.mark.parametrize("door", DOORS)
async def test_a_trailer_is_no_header(edge: Edge, door: str) -> None:
    data = post_with(
        b"Trailer: content-type\r\n", chunked=True, trailer=b"Content-Type: text/plain\r\n"
    )
    data = await both_answers(edge, door, data)
    assert data.count(b"HTTP/1.1 202 Accepted\r\n") == 2, data


@pytest.mark.parametrize("door", DOORS)
async def test_a_client_of_an_older_kind_is_answered(edge: Edge, door: str) -> None:
    reader, writer = await asyncio.open_connection(HOST, edge.ports[door])
    async with asyncio.timeout(SLACK_S):
        writer.write(post_with(b"", chunked=False).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = await reader.read()
    writer.close()
    assert answer.partition(b"\r\n")[0].endswith(b" 202 Accepted")


@pytest.mark.parametrize("door", DOORS)
async def test_a_client_that_asks_before_its_body_is_told_to_go_on(edge: Edge, door: str) -> None:
    data = post_with(b"Expect: 100-continue\r\nConnection: close\r\n", chunked=False)
    head, separator, body = data.partition(b"\r\n\r\n")
    reader, writer = await asyncio.open_connection(HOST, edge.ports[door])
    async with asyncio.timeout(SLACK_S):
        writer.write(head + separator)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 202 Accepted\r\n")
    writer.close()
