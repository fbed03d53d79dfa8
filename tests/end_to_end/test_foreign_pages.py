"""Web pages of somebody else, in a browser that reaches the endpoint."""

from __future__ import annotations

import asyncio
import http.server
import shutil
import threading
from collections.abc import Iterator
from uuid import uuid4

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from tests.end_to_end.harness import HOST
from tests.end_to_end.hostile import DOORS, WHOLE_DOORS, Answer, Edge, running_edge

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OURS = "payswitch.example"
FOREIGN = [
    b"Sec-Fetch-Site: cross-site",
    b"Sec-Fetch-Site: same-site",
    b"Origin: http://evil.example",
    b"Origin: http://127.0.0.1:1",
    b"Origin: null",
    b"oRIGIN: http://evil.example",
]
OWN = [
    b"X-Nothing: of a browser",
    b"Sec-Fetch-Site: same-origin",
    b"Origin: http://127.0.0.1",
    b"Origin: http://127.0.0.1\r\nSec-Fetch-Site: same-origin",
]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    folder = tmp_path_factory.mktemp("edge")
    with running_edge(folder, purge="open", PAYSWITCH_ALLOWED_HOSTS=OURS) as edge:
        yield edge


async def post(
    edge: Edge, door: str, path: str, header: bytes, body: bytes = b"", host: str = HOST
) -> Answer:
    head = b"POST %b HTTP/1.1\r\nHost: %b\r\n%b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    request = head % (path.encode(), host.encode(), header, len(body)) + body
    [answer] = await edge.talk(door, request)
    return answer


def a_payment() -> tuple[str, bytes]:
    correlation_id = str(uuid4())
    return correlation_id, b'{"correlationId":"%s","amount":666.66}' % correlation_id.encode()


def assert_refused(answer: Answer, status: int) -> None:
    assert answer.status == status, answer
    assert b"application/problem+json" in answer.head.lower()


@pytest.mark.parametrize("header", FOREIGN)
@pytest.mark.parametrize("door", DOORS)
async def test_a_payment_for_another_site_is_refused(edge: Edge, door: str, header: bytes) -> None:
    correlation_id, body = a_payment()
    assert_refused(await post(edge, door, "/payments", header, body), 403)
    assert correlation_id not in edge.payments()


@pytest.mark.parametrize("header", FOREIGN)
@pytest.mark.parametrize("door", WHOLE_DOORS)
async def test_a_purge_for_another_site_is_refused(edge: Edge, door: str, header: bytes) -> None:
    kept = await edge.pay(door)
    assert_refused(await post(edge, door, "/purge-payments", header), 403)
    assert kept in edge.payments()


@pytest.mark.parametrize("header", OWN)
@pytest.mark.parametrize("door", DOORS)
async def test_a_payment_of_a_program_or_of_the_own_page_is_taken(
    edge: Edge, door: str, header: bytes
) -> None:
    correlation_id, body = a_payment()
    answer = await post(edge, door, "/payments", header, body)
    assert answer.accepted == correlation_id


@pytest.mark.parametrize("door", DOORS)
async def test_a_payment_for_another_host_is_misdirected(edge: Edge, door: str) -> None:
    correlation_id, body = a_payment()
    same = b"Origin: http://rebound.example"
    answer = await post(edge, door, "/payments", same, body, host="rebound.example")
    assert_refused(answer, 421)
    assert correlation_id not in edge.payments()


@pytest.mark.parametrize("door", DOORS)
async def test_a_payment_for_a_listed_host_is_taken(edge: Edge, door: str) -> None:
    correlation_id, body = a_payment()
    answer = await post(edge, door, "/payments", b"X: y", body, host=f"{OURS}:9999")
    assert answer.accepted == correlation_id


@pytest.mark.parametrize("path", ["/", "/payments-summary", "/events", "/readyz", "/nothing"])
@pytest.mark.parametrize("door", WHOLE_DOORS)
async def test_nothing_is_told_to_a_page_of_another_host(edge: Edge, door: str, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: rebound.example\r\nConnection: close\r\n\r\n"
    [answer] = await edge.talk(door, request.encode())
    assert_refused(answer, 421)


class Quiet(http.server.BaseHTTPRequestHandler):
    """Answers everything with an empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """The origin of another page, at another port."""
    with http.server.ThreadingHTTPServer((HOST, 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server"):
        options.add_argument(argument)
    chrome = Chrome(options=options, service=Service(DRIVER))
    yield chrome
    chrome.quit()


FETCH = """
const [url, body, done] = arguments;
fetch(url, {method: "POST", mode: "no-cors", body: new Blob([body])})
  .then((response) => done(response.status), (error) => done(String(error)));
"""


@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="Chromium is not installed")
@pytest.mark.parametrize("door", WHOLE_DOORS)
async def test_in_a_browser_another_page_neither_pays_nor_purges(
    edge: Edge, door: str, chrome: Chrome, elsewhere: str
) -> None:
    kept = await edge.pay(door)
    bad_id, bad = a_payment()
    good_id, good = a_payment()

    def visit(page: str, path: str, body: bytes) -> object:
        chrome.get(page)
        return chrome.execute_async_script(FETCH, edge.url(door) + path, body.decode())

    for path, body in (("/payments", bad), ("/purge-payments", b"")):
        assert await asyncio.to_thread(visit, f"{elsewhere}/", path, body) == 0  # it can't see more
    paid = edge.payments()
    assert kept in paid
    assert bad_id not in paid
    own = f"{edge.url(door)}/healthz"
    assert await asyncio.to_thread(visit, own, "/payments", good) == 202
    assert good_id in edge.payments()
