"""The bench beside other queues runs through, with few payments and the peers that are here."""

from __future__ import annotations

from pathlib import Path

import httpx
import orjson
import pytest
from click.testing import CliRunner

from bench import common
from bench.local import running, running_redis
from bench.peers.__main__ import main
from bench.peers.programs import PEERS
from payswitch.local.machine import LOCAL
from tests.support import free_port, wait_until

WAITING = {"bullmq": "bull:payments:wait", "asynq": "asynq:{default}:pending"}
PAID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"


@pytest.mark.long
def test_it_measures_the_peers_beside_payswitch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [name for name, peer in PEERS.items() if peer.lack is None]
    if not here:
        pytest.skip("no peer can run here")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    done = CliRunner().invoke(main, ["--rounds", "1", "--payments", "100", "--at-once", "10"])
    assert done.exit_code == 0, done.output
    assert "at least once" in done.output
    found = orjson.loads((tmp_path / "peers.json").read_bytes())
    assert list(found["contenders"]) == [*here, "payswitch"]
    assert set(found["peers"]) == set(here)
    for measured in found["contenders"].values():
        assert measured["settled_per_s"]["median"] > 0
        parts = ("service_us", "simulators_us", "client_us")
        assert measured["all_us"]["median"] == pytest.approx(
            sum(measured[part]["median"] for part in parts)
        )
    assert (tmp_path / "peers.png").stat().st_size > 10_000


@pytest.mark.long
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_queues_an_id_once_whatever_its_amount(name: str) -> None:
    if lack := PEERS[name].lack:
        pytest.skip(lack)
    port = free_port()
    url = f"http://{LOCAL}:{port}/payments"
    command = PEERS[name].install().ingress(port)
    with (
        running_redis() as (redis_url, client),
        running(*command, environment={"REDIS_URL": redis_url}),
        httpx.Client() as http,
    ):
        wait_until(lambda: is_served(http, url), what="the ingress answers")
        for amount in (19.9, 20.5):
            answer = http.post(url, json={"correlationId": PAID, "amount": amount})
            assert answer.status_code == 202, answer.text
        assert client.llen(WAITING[name]) == 1
        assert 400 <= http.post(url, json={"correlationId": "1", "amount": 1}).status_code < 500


def is_served(http: httpx.Client, url: str) -> bool:
    try:
        http.get(url)
    except httpx.ConnectError:
        return False
    return True
