"""One request for each status that `openapi.json` describes, and the servers that answer so."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import jsonschema_rs
import redis

from payswitch.ingress.openapi import document
from payswitch.local.machine import find_haproxy
from tests.end_to_end.harness import HOST, clean_environment, client
from tests.end_to_end.hostile import parse_answers
from tests.support import SLACK_S, RedisServer, eventually, free_port

TOKEN = "letmein"
_JSON = "application/json"
_PROBLEM = "application/problem+json"
_HEADERS = {"content-type": _JSON}


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the document."""

    id: str
    method: str
    path: str
    statuses: dict[int, tuple[str, ...]]
    """The media types of each status' bodies; none where there is no body."""

    @property
    def target(self) -> str:
        """A path that exists for it."""
        return self.path.replace("{id}", str(uuid4()))

    @property
    def body(self) -> bytes:
        """A body that it takes."""
        return payment(str(uuid4())) if self.id == "pay" else b""


def operations() -> list[Operation]:
    """All operations, in the document's order."""
    whole = document()
    shared = whole["components"]["responses"]

    def media_types(response: dict[str, Any]) -> tuple[str, ...]:
        resolved = shared[response["$ref"].rpartition("/")[2]] if "$ref" in response else response
        return tuple(resolved.get("content", ()))

    return [
        Operation(
            operation["operationId"],
            method.upper(),
            path,
            {int(status): media_types(each) for status, each in operation["responses"].items()},
        )
        for path, item in whole["paths"].items()
        for method, operation in item.items()
    ]


class Contract:
    """The document as what responses are measured by."""

    def __init__(self) -> None:
        self._whole = document()

    def demand(self, operation: Operation, response: httpx.Response) -> None:
        """Fail where the document does not describe this response."""
        methods = self._whole["paths"][operation.path]
        responses = methods[operation.method.lower()]["responses"]
        described = self._resolved(responses[str(response.status_code)])
        for name, each in described.get("headers", {}).items():
            header = self._resolved(each)
            if header.get("required") or name in response.headers:
                value = response.headers[name]
                self._validate(header["schema"], int(value) if value.isdecimal() else value)
        content = described.get("content")
        if content is None:
            assert response.content == b""
            return
        media_type = response.headers["content-type"].partition(";")[0]
        body = response.json() if media_type.endswith("json") else response.text
        self._validate(content[media_type]["schema"], body)

    def _resolved(self, described: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in described:
            return described
        _, _, kind, name = described["$ref"].split("/")
        resolved: dict[str, Any] = self._whole["components"][kind][name]
        return resolved

    def _validate(self, schema: dict[str, Any], value: Any) -> None:
        whole = {**schema, "components": self._whole["components"]}
        jsonschema_rs.validate(whole, value, validate_formats=True)


@dataclass(frozen=True)
class Servers:
    """Ingress instances by the settings that they have, on one Redis."""

    redis: RedisServer
    ingress: dict[str, str]
    """Base URLs: `open`, `off` and `token` by who may purge; `away` has no Redis."""
    folder: Path

    def client(self, name: str = "open") -> httpx.AsyncClient:
        """A client for one of them."""
        return client(self.ingress[name])


@contextlib.contextmanager
def running_servers(folder: Path) -> Iterator[Servers]:
    """Start them; they end with the context."""
    redis_server = RedisServer(folder)
    redis_server.start()
    away = f"redis://{HOST}:{free_port()}/0"
    environments = {
        "open": {
            "REDIS_URL": redis_server.url,
            "PAYSWITCH_PURGE": "open",
            "PAYSWITCH_ALLOWED_HOSTS": "payswitch.example",
        },
        "off": {"REDIS_URL": redis_server.url},
        "token": {
            "REDIS_URL": redis_server.url,
            "PAYSWITCH_PURGE": "token",
            "PAYSWITCH_PURGE_TOKEN": TOKEN,
        },
        "away": {"REDIS_URL": away, "PAYSWITCH_PURGE": "open"},
    }
    urls = {name: f"http://{HOST}:{free_port()}" for name in environments}
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "payswitch", "ingress"),
                *("--port", urls[name].rpartition(":")[2]),
            ],
            env=clean_environment(environment),
            stderr=subprocess.DEVNULL,
        )
        for name, environment in environments.items()
    ]
    try:
        asyncio.run(_all_alive(urls))
        yield Servers(redis_server, urls, folder)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(SLACK_S)
        redis_server.kill()


def payment(correlation_id: str, amount: str = "19.90") -> bytes:
    """A payment's body."""
    return b'{"correlationId":"%s","amount":%s}' % (correlation_id.encode(), amount.encode())


async def _all_alive(urls: dict[str, str]) -> None:
    for name, url in urls.items():
        async with client(url) as http:

            async def alive() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return (await http.get("/healthz")).status_code == 200
                return False

            await eventually(alive, what=f"the ingress {name} lives")


# At an ingress.


async def _plain(servers: Servers, operation: Operation) -> httpx.Response:
    async with servers.client() as http:
        return await http.request(
            operation.method, operation.target, content=operation.body, headers=_HEADERS
        )


async def _redis_away(servers: Servers, operation: Operation) -> httpx.Response:
    async with servers.client("away") as http:
        return await http.request(
            operation.method, operation.target, content=operation.body, headers=_HEADERS
        )


async def _pay_no_json(servers: Servers, operation: Operation) -> httpx.Response:
    async with servers.client() as http:
        return await http.post("/payments", content=b"{", headers=_HEADERS)


async def _pay_another_amount(servers: Servers, operation: Operation) -> httpx.Response:
    correlation_id = str(uuid4())
    async with servers.client() as http:
        await http.post("/payments", content=payment(correlation_id), headers=_HEADERS)
        return await http.post("/payments", content=payment(correlation_id, "1"), headers=_HEADERS)


async def _pay_with_too_much(servers: Servers, operation: Operation) -> httpx.Response:
    async with servers.client() as http:
        return await http.post("/payments", content=b" " * 70_000, headers=_HEADERS)


async def _pay_in_text(servers: Servers, operation: Operation) -> httpx.Response:
    async with servers.client() as http:
        return await http.post("/payments", content=b"{}", headers={"content-type": "text/plain"})


async def _pay_nothing(servers: Servers, operation: Operation) -> httpx.Response:
    async with servers.client() as http:
        return await http.post("/payments", content=payment(str(uuid4()), "0"), headers=_HEADERS)


async def _pay_where_something_else_is(servers: Servers, operation: Operation) -> httpx.Response:
    correlation_id = str(uuid4())
    with redis.Redis(port=servers.redis.port) as shell:
        shell.set(f"payment:{correlation_id}", "something else")
    async with servers.client() as http:
        return await http.post("/payments", content=payment(correlation_id), headers=_HEADERS)


async def _state_of_a_payment(servers: Servers, operation: Operation) -> httpx.Response:
    correlation_id = str(uuid4())
    async with servers.client() as http:
        await http.post("/payments", content=payment(correlation_id), headers=_HEADERS)
        return await http.get(f"/payments/{correlation_id}")


async def _state_of_a_spoilt_record(servers: Servers, operation: Operation) -> httpx.Response:
    correlation_id = str(uuid4())
    async with servers.client() as http:
        await http.post("/payments", content=payment(correlation_id), headers=_HEADERS)
        with redis.Redis(port=servers.redis.port) as shell:
            shell.hdel(f"payment:{correlation_id}", "state")
        return await http.get(f"/payments/{correlation_id}")


async def _summary_backwards(servers: Servers, operation: Operation) -> httpx.Response:
    window = {"from": "2026-07-10T12:00:00Z", "to": "2026-07-10T11:00:00Z"}
    async with servers.client() as http:
        return await http.get("/payments-summary", params=window)


async def _purge_without_token(servers: Servers, operation: Operation) -> httpx.Response:
    async with servers.client("token") as http:
        return await http.post("/purge-payments", headers={"authorization": "Bearer guess"})


async def _purge_with_token(servers: Servers, operation: Operation) -> httpx.Response:
    async with servers.client("token") as http:
        return await http.post("/purge-payments", headers={"authorization": f"Bearer {TOKEN}"})


async def _purge_switched_off(servers: Servers, operation: Operation) -> httpx.Response:
    async with servers.client("off") as http:
        return await http.post("/purge-payments")


async def _for_another_site(servers: Servers, operation: Operation) -> httpx.Response:
    async with servers.client() as http:
        headers = {**_HEADERS, "origin": "http://elsewhere.example"}
        return await http.post(operation.target, content=operation.body, headers=headers)


async def _for_another_host(servers: Servers, operation: Operation) -> httpx.Response:
    async with servers.client() as http:
        headers = {**_HEADERS, "host": "rebound.example"}
        return await http.request(
            operation.method, operation.target, content=operation.body, headers=headers
        )


Request = Callable[[Servers, Operation], Awaitable[httpx.Response]]

AT_INGRESS: dict[tuple[str, int, str], Request] = {
    ("pay", 202, ""): _plain,
    ("pay", 400, _PROBLEM): _pay_no_json,
    ("pay", 403, _PROBLEM): _for_another_site,
    ("pay", 409, _PROBLEM): _pay_another_amount,
    ("pay", 413, _PROBLEM): _pay_with_too_much,
    ("pay", 415, _PROBLEM): _pay_in_text,
    ("pay", 422, _PROBLEM): _pay_nothing,
    ("pay", 500, _PROBLEM): _pay_where_something_else_is,
    ("pay", 503, _PROBLEM): _redis_away,
    ("payment", 200, _JSON): _state_of_a_payment,
    ("payment", 404, _PROBLEM): _plain,
    ("payment", 500, _PROBLEM): _state_of_a_spoilt_record,
    ("payment", 503, _PROBLEM): _redis_away,
    ("summary", 200, _JSON): _plain,
    ("summary", 422, _PROBLEM): _summary_backwards,
    ("summary", 503, _PROBLEM): _redis_away,
    ("purge", 200, _JSON): _purge_with_token,
    ("purge", 401, _PROBLEM): _purge_without_token,
    ("purge", 403, _PROBLEM): _purge_switched_off,
    ("purge", 503, _PROBLEM): _redis_away,
    ("alive", 200, _JSON): _plain,
    ("ready", 200, _JSON): _plain,
    ("ready", 503, _PROBLEM): _redis_away,
    ("openapi", 200, _JSON): _plain,
    ("page", 200, "text/html"): _plain,
    **{(operation.id, 421, _PROBLEM): _for_another_host for operation in operations()},
}
"""What makes an ingress give an answer, by operation, status and media type."""


# At HAProxy, before an ingress that misbehaves.


@contextlib.asynccontextmanager
async def _haproxy(folder: Path, *, ingress: str, waits_for: str) -> AsyncIterator[int]:
    """HAProxy before an ingress that `hangs`, `breaks` off or is `gone`; yields its port. It is as
    configured, but what it `waits_for` in vain it waits for shortly."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET /readyz HTTP/1.0"):  # HAProxy's own look
                writer.write(b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n")
            elif ingress == "breaks":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-le")
            else:
                await reader.read()
            await writer.drain()
        writer.close()

    *command, configured = _haproxy_command()
    text = await asyncio.to_thread(Path(configured).read_text)
    if waits_for:
        text, count = re.subn(rf"(timeout {waits_for}) \d+s", r"\1 200ms", text)
        assert count
    configuration = folder / f"haproxy-{uuid4()}.cfg"
    configuration.write_text(text)
    async with await asyncio.start_server(serve, HOST, 0) as backend:
        port = free_port()
        behind = free_port() if ingress == "gone" else backend.sockets[0].getsockname()[1]
        bindings = {"PAYSWITCH_BIND": f"{HOST}:{port}"}
        bindings |= {f"INGRESS_{n}": f"{HOST}:{behind}" for n in (1, 2)}
        process = await asyncio.create_subprocess_exec(
            *(*command, str(configuration)),
            env=clean_environment(bindings),
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await eventually(lambda: _listens(port), what="HAProxy listens")
            yield port
        finally:
            process.terminate()
            await process.wait()


def _haproxy_command() -> list[str]:
    command = find_haproxy()
    assert command is not None
    return command


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True


async def _exchange(
    servers: Servers,
    operation: Operation,
    *,
    ingress: str,
    head: bytes = b"",
    body: bytes = b"",
    waits_for: str = "",
) -> httpx.Response:
    """Send a request with more head, or another body, and return what HAProxy answers."""
    async with _haproxy(servers.folder, ingress=ingress, waits_for=waits_for) as port:
        reader, writer = await asyncio.open_connection(HOST, port)
        line = f"{operation.method} {operation.target} HTTP/1.1\r\nhost: x\r\n".encode()
        writer.write(line + (head or _length(body or operation.body)))
        async with asyncio.timeout(SLACK_S):
            received = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", received, re.IGNORECASE)
            assert length is not None, received
            received += await reader.readexactly(int(length[1]))
        writer.transport.abort()
    [answer] = parse_answers(received)
    lines = [line.split(": ", 1) for line in answer.head.decode().splitlines()]
    response = httpx.Response(
        answer.status,
        headers=[(name, value) for name, value in lines],
        content=answer.body,
        request=httpx.Request(operation.method, f"http://{HOST}{operation.target}"),
    )
    response.elapsed = timedelta(0)
    return response


def _length(body: bytes) -> bytes:
    return b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


async def _no_http(servers: Servers, operation: Operation) -> httpx.Response:
    return await _exchange(servers, operation, ingress="hangs", head=b"this is no header\r\n\r\n")


async def _no_chunk(servers: Servers, operation: Operation) -> httpx.Response:
    # More than the buffer in which HAProxy reads the head: then it is HTTP so far.
    chunks = b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 3000 + b"no chunk\r\n"
    return await _exchange(servers, operation, ingress="hangs", head=chunks)


async def _half_a_body(servers: Servers, operation: Operation) -> httpx.Response:
    half = _length(b"{}")[:-1]
    return await _exchange(servers, operation, ingress="hangs", head=half, waits_for="http-request")


async def _half_a_head(servers: Servers, operation: Operation) -> httpx.Response:
    return await _exchange(
        servers, operation, ingress="hangs", head=b"x-half: ", waits_for="http-request"
    )


async def _too_much(servers: Servers, operation: Operation) -> httpx.Response:
    return await _exchange(servers, operation, ingress="hangs", body=b" " * 70_000)


async def _ingress_breaks_off(servers: Servers, operation: Operation) -> httpx.Response:
    return await _exchange(servers, operation, ingress="breaks")


async def _ingress_gone(servers: Servers, operation: Operation) -> httpx.Response:
    return await _exchange(servers, operation, ingress="gone")


async def _ingress_hangs(servers: Servers, operation: Operation) -> httpx.Response:
    return await _exchange(servers, operation, ingress="hangs", waits_for="server")


AT_HAPROXY: dict[tuple[int, str], Request] = {
    (400, _PROBLEM): _no_chunk,
    (400, "text/html"): _no_http,
    (408, _PROBLEM): _half_a_body,
    (408, "text/html"): _half_a_head,
    (413, _PROBLEM): _too_much,
    (502, _PROBLEM): _ingress_breaks_off,
    (503, _PROBLEM): _ingress_gone,
    (504, _PROBLEM): _ingress_hangs,
}
"""What makes HAProxy answer by itself with a status and a media type, whatever the operation."""
