"""`/openapi.json` against the running ingress and HAProxy: it says what they do, and all of it."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from payswitch.ingress.app import create_app
from payswitch.ingress.openapi import document
from payswitch.local.machine import find_haproxy
from payswitch.settings import Settings
from tests.end_to_end.contract import (
    AT_HAPROXY,
    AT_INGRESS,
    Contract,
    Operation,
    Servers,
    operations,
    running_servers,
)
from tests.end_to_end.hostile import WHOLE_DOORS, Edge, running_edge

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
DESCRIBED = [
    (operation, status, media_type)
    for operation in operations()
    for status, media_types in operation.statuses.items()
    for media_type in media_types or ("",)
]
"""Every answer that the document has, by its body's media type."""


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("edge"), purge="open") as edge:
        yield edge


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with running_servers(tmp_path_factory.mktemp("servers")) as servers:
        yield servers


@pytest.fixture(scope="module")
def contract() -> Contract:
    return Contract()


def name(value: object) -> str | None:
    return value.id if isinstance(value, Operation) else None


@pytest.mark.long
@pytest.mark.parametrize("door", WHOLE_DOORS)
def test_whatever_is_sent_is_answered_as_described(edge: Edge, door: str, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")  # of the extra `bench`
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION)),
            *("run", f"{edge.url(door)}/openapi.json", "--checks", "all"),
            *(
                "--max-examples=50",
                "--generation-deterministic",
                "--no-color",
                "--continue-on-failure",
            ),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(("operation", "status", "media_type"), DESCRIBED, ids=name)
async def test_every_answer_that_is_described_is_given(
    servers: Servers, contract: Contract, operation: Operation, status: int, media_type: str
) -> None:
    request = AT_INGRESS.get((operation.id, status, media_type))
    if request is None:
        if find_haproxy() is None:
            pytest.skip("haproxy is not installed")
        request = AT_HAPROXY[status, media_type]
    response = await request(servers, operation)
    assert response.status_code == status, response.text
    assert response.headers.get("content-type", "").partition(";")[0] == media_type
    contract.demand(operation, response)


def test_every_answer_that_has_an_example_is_described() -> None:
    described = {(operation.id, *answer) for operation, *answer in DESCRIBED}
    assert AT_INGRESS.keys() <= described
    assert described >= {
        (operation.id, *answer) for operation in operations() for answer in AT_HAPROXY
    }


def test_every_route_is_described_and_no_other() -> None:
    """But for the live page and the metrics, which are no part of the interface."""
    routes = {
        (method, getattr(route, "path", repr(route)))
        for route in create_app(Settings(page="off")).routes
        for method in getattr(route, "methods", None) or {"any"}
    }
    described = {(operation.method, operation.path) for operation in operations()}
    heads = {("HEAD", path) for method, path in described if method == "GET"}
    apart = {("GET", "/metrics"), ("HEAD", "/metrics")}
    assert routes == described | heads | apart


def test_another_path_or_method_is_answered_with_a_problem(servers: Servers) -> None:
    with httpx.Client(verify=False, base_url=servers.ingress["open"]) as client:
        nothing, wrong = client.get("/nothing/here"), client.delete("/payments")
    assert (nothing.status_code, wrong.status_code) == (404, 405)
    assert wrong.headers["allow"] == "POST"
    for response in (nothing, wrong):
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == response.status_code


def test_a_get_is_answered_as_head_without_a_body(servers: Servers) -> None:
    with httpx.Client(verify=False, base_url=servers.ingress["open"]) as client:
        for operation in operations():
            if operation.method == "GET":
                get, head = client.get(operation.target), client.head(operation.target)
                assert (head.status_code, head.content) == (get.status_code, b"")


def test_it_has_the_version_of_the_package() -> None:
    assert document()["info"]["version"] == importlib.metadata.version("payswitch")
