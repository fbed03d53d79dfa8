"""The live page in a real Chromium, before a real system under load."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from payswitch.durability import Durability
from payswitch.local.cluster_topology import NODES, primary_of
from payswitch.local.redis_cluster import LocalCluster
from payswitch.store import keys
from tests.end_to_end.conftest import StartSystem
from tests.end_to_end.harness import HOST, System, clean_environment, client
from tests.end_to_end.load import configure, drive
from tests.support import SLACK_S, eventually, free_port

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
in_chromium = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="Chromium and its driver are not installed"
)

WIDE, PHONE = (1280, 900), (375, 720)


class Page:
    """The page as somebody sees it."""

    def __init__(self, chrome: Chrome, url: str) -> None:
        self._chrome = chrome
        self._url = url

    def open(self, size: tuple[int, int] = WIDE, scheme: str = "light") -> None:
        """Load it in a window of this size for somebody who likes these colors."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._command("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", {"features": features})
        self._chrome.get(f"{self._url}/")

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of some JavaScript."""
        return self._chrome.execute_script(f"return {script}", *arguments)

    def text(self, selector: str) -> str:
        """What stands in the first element that is meant."""
        return str(self.run("document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def log(self) -> list[str]:
        """What the browser's console has had to say, violations of the policy among it."""
        entries = self._chrome.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries]

    async def shows(self, selector: str, test: Callable[[str], bool], what: str) -> None:
        """Wait until an element's text passes a test."""

        async def passes() -> bool:
            return test(await asyncio.to_thread(self.text, selector))

        await eventually(passes, what=what)

    async def is_live(self) -> None:
        """Wait for the first event."""
        await self.shows("#connection", lambda text: text == "Live", "the page is live")

    def _command(self, name: str, parameters: dict[str, Any]) -> None:
        self._chrome.execute_cdp_cmd(name, parameters)


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    """One browser for all tests."""
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=Service(DRIVER))
    yield chrome
    chrome.quit()


@pytest.fixture
async def page(chrome: Chrome, system: System) -> AsyncIterator[Page]:
    """The page; whatever a test does with it, the browser complains of nothing."""
    shown = Page(chrome, system.endpoint)
    shown.log()
    yield shown
    assert shown.log() == []
    chrome.get("about:blank")


def number(text: str) -> float:
    digits = "".join(each for each in text if each.isdigit() or each == ".")
    return float(digits or 0)


@in_chromium
async def test_numbers_and_charts_move_under_load(page: Page, system: System) -> None:
    page.open()
    await page.is_live()
    before = number(page.text("#settled-note"))
    await drive(system, rate=50, count=200)
    await page.shows(
        "#settled-note", lambda text: number(text) == before + 200, "all are counted as settled"
    )
    await page.shows("#settle-note", lambda text: text.startswith("p99 "), "times to settle")
    paths = "document.querySelectorAll('.chart path.s-1').length"
    assert page.run(paths) > 0
    label = page.run("document.querySelector('.chart svg').getAttribute('aria-label')")
    assert label.startswith("Settled per second, the last five minutes. default: ")


@in_chromium
async def test_a_failing_default_shows_within_seconds(page: Page, system: System) -> None:
    page.open()
    await page.is_live()
    await configure(system.default_url, "failure", True)
    try:
        load = asyncio.create_task(drive(system, rate=30, count=30 * 15))
        await page.shows("#findings", lambda text: "default" in text, "default's trouble")
        await page.shows("#headline", lambda text: "fallback" in text, "the way through fallback")
        await page.shows("#fees-note", lambda text: text.startswith("+"), "what it costs")
        await page.shows(".processor.s-1 h3", lambda text: "failing" in text, "default's health")
        assert page.run("document.getElementById('verdict').dataset.level") != "ok"
        await load
    finally:
        await configure(system.default_url, "failure", False)
    await page.shows("#selection", lambda text: text.startswith("default"), "default again")
    assert page.text("#durability") == f"A 202 survives {Durability.DISK.survives}."


@in_chromium
async def test_a_payment_is_found_with_its_history(page: Page, system: System) -> None:
    payment = await system.pay(1990)
    await system.settled(payment)
    page.open()
    find = "document.getElementById('payment').value = arguments[0],"
    find += "document.getElementById('search').requestSubmit()"
    page.run(find, payment)
    await page.shows("#found", lambda text: "Settled" in text, "the payment's history")
    found = page.text("#found")
    assert payment in found
    assert "19.90" in found
    assert "Sent to default" in found or "Sent to fallback" in found


@in_chromium
async def test_an_unknown_payment_is_said_to_be_so(page: Page) -> None:
    page.open()
    find = "document.getElementById('payment').value = '<b>no id',"
    find += "document.getElementById('search').requestSubmit()"
    page.run(find)
    await page.shows("#found", lambda text: "not a UUID" in text, "what is wrong")
    assert page.run("document.querySelector('#found b')") is None
    assert any("404" in message for message in page.log())


@in_chromium
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_every_screen_in_its_colors(
    page: Page, size: tuple[int, int], scheme: str
) -> None:
    page.open(size, scheme)
    await page.is_live()
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    color = page.run("getComputedStyle(document.body).backgroundColor")
    is_dark = number(color.split(",")[0]) < 128
    assert is_dark == (scheme == "dark")


@in_chromium
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
async def test_a_long_time_to_settle_fits_its_axis(
    page: Page, system: System, size: tuple[int, int]
) -> None:
    async with Redis.from_url(system.redis_url) as redis:
        newest = orjson.loads(await redis.lindex(keys.HISTORY, -1))
        late = {**newest, "at": newest["at"] + 1, "p50_ms": 11_000, "p99_ms": 11_000}
        await redis.rpush(keys.HISTORY, orjson.dumps(late))
    page.open(size)
    await page.shows("#charts", lambda text: "100 s" in text, "a tick above 11 s")
    left = "getBoundingClientRect().left"
    outside = f"(text) => text.{left} < text.closest('.chart').{left}"
    assert page.run(f"[...document.querySelectorAll('.chart text')].filter({outside})") == []


@in_chromium
async def test_it_goes_on_by_itself_after_restarts_and_a_reload(
    chrome: Chrome, start_system: StartSystem
) -> None:
    system = start_system()
    page = Page(chrome, system.endpoint)
    page.open()
    await page.is_live()
    for part in ("ingress-1", "ingress-2"):
        pid = system.kill(part)
        await system.runs_again(part, pid)
    system.kill("haproxy", signal.SIGUSR2)
    await page.is_live()
    await drive(system, rate=20, count=20, again=True)
    await page.shows("#accepted-note", lambda text: number(text) == 20, "all payments")
    chrome.get("about:blank")
    page.log()


@contextlib.contextmanager
def ingress(**environment: str) -> Iterator[str]:
    """The URL of an ingress with these settings."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "payswitch", "ingress", f"--port={port}"],
        env=clean_environment(environment),
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(SLACK_S)


@in_chromium
async def test_any_number_of_processors_has_colors_of_its_own_in_the_order_of_preference(
    chrome: Chrome, system: System
) -> None:
    names = ["default", "fallback", "accepted", "p50", *(f"acme_{n}" for n in range(12))]
    urls = {f"PAYMENT_PROCESSOR_URL_{name.upper()}": f"http://{name}.test" for name in names}
    variables = {**urls, **system.named, "PAYSWITCH_PROCESSORS": ",".join(names)}
    with ingress(**variables) as url:
        await eventually(lambda: answers(url), what="the ingress answers")
        page = Page(chrome, url)
        page.open(PHONE)
        await page.is_live()
        of_all = "[...document.querySelectorAll('{}')].map(each => {})"
        assert page.run(of_all.format(".processor h3", "each.firstChild.data")) == names
        colors = page.run(of_all.format(".processor", "getComputedStyle(each).borderTopColor"))
        assert len(set(colors)) == len(names)
        failed = ".chart:last-child .legend"
        assert page.run(of_all.format(failed, "each.firstChild.data.trim()")) == names
        legend = "getComputedStyle(each, '::before').backgroundColor"
        assert page.run(of_all.format(failed, legend)) == colors
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        chrome.get("about:blank")
        assert page.log() == []


async def answers(url: str) -> bool:
    """Whether something serves HTTP there."""
    async with client(url) as http:
        with contextlib.suppress(httpx.TransportError):
            return (await http.get("/healthz")).status_code == 200
    return False


@in_chromium
@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_shard_that_is_away_is_named_and_the_numbers_of_before_are_dim(
    chrome: Chrome, start_system: StartSystem
) -> None:
    system = start_system("--redis=cluster", "--workers=1")
    page = Page(chrome, system.endpoint)
    page.open()
    await page.is_live()
    answers = "document.querySelectorAll('#nodes [data-tone=ok]').length"
    is_dim = "getComputedStyle(document.querySelector('.figures')).opacity < 1"
    await page.shows("#nodes", lambda _: page.run(answers) == 3, "three nodes answer")
    await page.shows("#processors", lambda text: "healthy" in text, "what the processors say")
    assert not page.run(is_dim)
    shard = await shard_of(system, slot=0)
    for name in shard:
        system.kill(name, signal.SIGSTOP)
    try:
        await page.shows("#headline", lambda text: "of the cluster" in text, "what is wrong")
        await page.shows("#nodes", lambda text: "away" in text, "the node that is away")
        assert page.run(is_dim)
        assert "healthy" in page.text("#processors")
        page.open()
        await page.shows("#nodes", lambda text: "away" in text, "the same when opened")
        assert page.run("document.getElementById('processors').offsetParent") is None
    finally:
        for name in shard:
            system.kill(name, signal.SIGCONT)
    await page.shows("#processors", lambda text: "healthy" in text, "all is known again")
    assert not page.run(is_dim)
    chrome.get("about:blank")


async def shard_of(system: System, slot: int) -> list[str]:
    """The names of the nodes that have a slot: the primary and its replica."""
    cluster = LocalCluster([HOST] * NODES, system.ports.redis, system.state / "redis-cluster")
    primary = primary_of(slot, await cluster.views())
    assert primary is not None
    async with RedisCluster(host=primary.host, port=primary.port) as redis:
        ports = {int(each.port) for each in redis.nodes_manager.slots_cache[slot]}
    return [each.name for each in cluster.nodes if each.address.port in ports]


async def test_events_come_through_the_load_balancer_for_as_long_as_they_last(
    system: System,
) -> None:
    seen = 0
    async with (
        client(system.endpoint) as http,
        http.stream("GET", "/events") as response,
        asyncio.timeout(SLACK_S),
    ):
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                seen += 1
                assert orjson.loads(line.removeprefix("data: "))["status"]["processors"]
    assert seen >= 5


async def test_viewers_who_take_nothing_keep_no_payment_out(system: System) -> None:
    host, port = system.endpoint.removeprefix("http://").split(":")
    writers = []
    statuses = []
    for _ in range(100):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        writers.append(writer)
        async with asyncio.timeout(SLACK_S):
            statuses.append(int((await reader.readline()).split()[1]))
    try:
        assert set(statuses) == {200, 503}
        load = await drive(system, rate=50, count=50)
        assert load.refused == []
        await system.settled(*load.accepted)
    finally:
        for writer in writers:
            writer.close()
