"""`/metrics` of every part of a started system, and what is made of it: documentation, alerts,
dashboard."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys

import httpx
import orjson
import pytest
import yaml
from prometheus_client import generate_latest

from payswitch.local.machine import find_haproxy
from payswitch.local.metrics_targets import FILE
from payswitch.operations.metrics import of_shards
from payswitch.operations.shards import Shard
from payswitch.telemetry.metrics import Facts, registry_of
from tests.documented import REPOSITORY
from tests.end_to_end.conftest import StartSystem
from tests.end_to_end.harness import System, clean_environment, client
from tests.metrics import DEPLOY, Exposed, alerts, full_name, panels, parse, placeholders, value
from tests.support import SLACK_S, eventually

REFERENCE = REPOSITORY / "docs" / "metrics.md"
PARTS = ["haproxy", "ingress-1", "ingress-2", "worker-1", "worker-2", "health"]
PAYMENTS = 20
ROW = re.compile(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \| ([^|]*) \|", re.MULTILINE)

needs_haproxy = pytest.mark.skipif(find_haproxy() is None, reason="haproxy is not installed")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")


def targets(system: System) -> dict[str, str]:
    """Where each part serves its metrics, as Prometheus learns it."""
    return {
        each["labels"]["name"]: each["targets"][0]
        for each in orjson.loads((system.state / FILE).read_bytes())
    }


def scrape(system: System) -> dict[str, str]:
    """What every part shows now."""
    found = {}
    for name, address in targets(system).items():
        response = httpx.get(f"http://{address}/metrics", timeout=SLACK_S, verify=False)
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        found[name] = response.text
    return found


@pytest.fixture(scope="module")
def scraped(system: System) -> dict[str, str]:
    """What every part shows after some payments and a reconciliation."""

    async def pay() -> None:
        await system.settled(*[await system.pay(1990) for _ in range(PAYMENTS)])
        await eventually(reconciled, what="the books are compared")
        await eventually(knows_all, what="the health worker has seen it all")

    async def reconciled() -> bool:
        command = (sys.executable, "-P", "-m", "payswitch", "reconcile")
        return (await asyncio.to_thread(subprocess.run, command, env=environment)).returncode == 0

    async def knows_all() -> bool:
        text = (await asyncio.to_thread(scrape, system))["health"]
        settled = "payswitch_ledger_payments_total"
        totals = [value(text, settled, processor=name) or 0 for name in ("default", "fallback")]
        is_known = "payswitch_fees{" in text and "reconcile_differences 0" in text
        return is_known and sum(totals) == PAYMENTS

    environment = clean_environment(system.named)
    asyncio.run(pay())
    return scrape(system)


@pytest.fixture(scope="module")
def shown(scraped: dict[str, str]) -> list[str]:
    """The same, and what only a cluster shows."""
    nodes = registry_of(Facts(lambda: of_shards([Shard("a:7000", [0], 1, 1)])))
    return [*scraped.values(), generate_latest(nodes).decode()]


@pytest.fixture(scope="module")
def exposed(shown: list[str]) -> Exposed:
    return Exposed.by(shown)


@needs_haproxy
def test_every_part_but_haproxy_is_a_target(scraped: dict[str, str]) -> None:
    assert list(scraped) == PARTS[1:]


def test_every_part_says_what_it_is(scraped: dict[str, str]) -> None:
    for name, text in scraped.items():
        assert f'payswitch_build_info{{part="{name.partition("-")[0]}",version="' in text


def test_a_payment_is_counted_once_by_each_who_had_it(scraped: dict[str, str]) -> None:
    def total(sample: str, **labels: str) -> float:
        return sum(
            each.value
            for text in scraped.values()
            for family in parse(text)
            for each in family.samples
            if each.name == sample and labels.items() <= each.labels.items()
        )

    assert total("payswitch_accept_seconds_count", result="accepted") == PAYMENTS
    assert total("payswitch_acceptances_total", verdict="new") == PAYMENTS
    assert total("payswitch_queue_wait_seconds_count") == PAYMENTS
    assert total("payswitch_processor_call_seconds_count", outcome="paid") == PAYMENTS
    assert total("payswitch_settle_seconds_count") == PAYMENTS
    assert total("payswitch_settled_total") == PAYMENTS
    assert total("payswitch_ledger_payments_total") == PAYMENTS
    assert total("payswitch_ledger_amount_total") == pytest.approx(PAYMENTS * 19.9)


def test_a_histogram_ends_with_all_and_grows_with_its_bounds(scraped: dict[str, str]) -> None:
    histograms = [each for text in scraped.values() for each in parse(text)]
    histograms = [each for each in histograms if each.type == "histogram"]
    assert histograms
    for family in histograms:
        last = 0.0
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                last = 0.0 if sample.labels["le"] == "0.0005" else last
                assert sample.value >= last
                last = sample.value
            elif sample.name.endswith("_count"):
                assert sample.value == last


@needs_promtool
def test_promtool_finds_nothing_wrong_with_a_scrape(scraped: dict[str, str]) -> None:
    for name, text in scraped.items():
        check = subprocess.run(
            ["promtool", "check", "metrics"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (check.returncode, check.stdout, check.stderr) == (0, "", ""), name


def test_the_reference_lists_every_metric_and_no_other(shown: list[str]) -> None:
    found = {}
    for family in (each for text in shown for each in parse(text)):
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[full_name(family)] = (family.type, frozenset(labels))
    listed = {
        name: (kind, frozenset(re.findall(r"`([a-z_]+)`", labels)))
        for name, kind, labels in ROW.findall(REFERENCE.read_text())
    }
    assert listed == found


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_there_is(exposed: Exposed, rule: dict[str, str]) -> None:
    assert exposed.missing(rule["expr"], placeholders(str(rule["annotations"]))) == []


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_asks_for_what_there_is(
    exposed: Exposed, panel: dict[str, list[dict[str, str]]]
) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        assert exposed.missing(target["expr"], placeholders(target["legendFormat"])) == []


@pytest.mark.parametrize(
    "expression",
    [
        "payswitch_nothing",
        'payswitch_paused{processor="default"}',
        'payswitch_breaker_state{state="ajar"}',
        "sum by (outcome) (payswitch_settled_total)",
    ],
)
def test_what_there_is_not_would_be_found(exposed: Exposed, expression: str) -> None:
    assert exposed.missing(expression)


@needs_haproxy
@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics?name=x", "/%6detrics", "/metri%63s", "/metrics%0a"]
)
async def test_metrics_are_not_shown_outside(system: System, path: str) -> None:
    async with client(system.endpoint) as http:
        response = await http.get(httpx.URL(system.endpoint, raw_path=path.encode()))
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_the_banner_says_where_the_metrics_are(system: System) -> None:
    for name, address in targets(system).items():
        if not name.startswith("ingress"):
            port = address.rpartition(":")[2]
            assert re.search(rf"^  {name} .* http://localhost:{port}/metrics$", system.output, re.M)


def test_a_setting_turns_them_off_but_for_the_ingress(
    system: System, start_system: StartSystem
) -> None:
    system = start_system("--workers=1", PAYSWITCH_METRICS_PORT="0", **system.named)
    assert {name.partition("-")[0] for name in targets(system)} == {"ingress"}
    assert system.stop() == 0
    assert not (system.state / FILE).exists()


def test_deployed_targets_have_the_names_that_compose_gives() -> None:
    services = yaml.safe_load((DEPLOY.parent / "compose.yaml").read_text())["services"]
    [job] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    ports = {name: dns["port"] for dns in job["dns_sd_configs"] for name in dns["names"]}
    serving = {name for name in services if name not in ("redis", "haproxy", "operator")}
    assert ports.keys() == serving
    for name, port in ports.items():
        service = services[name]
        set_to = service["environment"]["PAYSWITCH_METRICS_PORT"]
        assert str(port) == ("9001" if name.startswith("ingress") else set_to)


def test_deployed_targets_are_where_up_writes_them() -> None:
    assert f"../.payswitch/{FILE}" in (DEPLOY / "prometheus.yml").read_text()
    assert os.path.relpath(DEPLOY.parent / ".payswitch", DEPLOY) == "../.payswitch"
