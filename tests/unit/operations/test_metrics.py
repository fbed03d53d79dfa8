"""The metrics of the whole that need no Redis: the nodes of a cluster."""

from __future__ import annotations

from prometheus_client import generate_latest

from payswitch.operations.metrics import of_shards
from payswitch.operations.shards import Shard
from payswitch.telemetry.metrics import Facts, registry_of
from tests.metrics import value

WELL = Shard("a:7000", [0, 1, 2], 1, 1)
POOR = Shard("b:7000", [3, 4], 0, 1)
SILENT = Shard("c:7000", [5], None, 1)
AWAY = Shard("d:7000", [6, 7, 8, 9], None, 1, "it does not answer in time")
NOWHERE = Shard("", [10], None, 1, "the cluster has no node for these partitions")


def shown(*shards: Shard) -> str:
    return generate_latest(registry_of(Facts(lambda: of_shards(shards)))).decode()


def test_a_node_that_is_away_or_lacks_replicas_closes_its_partitions() -> None:
    text = shown(WELL, POOR, SILENT, AWAY, NOWHERE)
    assert value(text, "payswitch_partitions_closed") == 2 + 4 + 1
    up = {node: value(text, "payswitch_redis_node_up", node=f"{node}:7000") for node in "abcd"}
    assert up == {"a": 1, "b": 1, "c": 1, "d": 0}
    assert value(text, "payswitch_redis_node_replicas", node="a:7000") == 1
    assert value(text, "payswitch_redis_node_replicas", node="b:7000") == 0
    assert value(text, "payswitch_redis_node_replicas_wanted") == 1


def test_what_is_not_known_is_not_shown() -> None:
    text = shown(SILENT, NOWHERE)
    assert value(text, "payswitch_redis_node_replicas", node="c:7000") is None
    assert 'node=""' not in text
    assert value(text, "payswitch_partitions_closed") == 1


def test_a_cluster_that_is_well_has_no_closed_partition() -> None:
    assert value(shown(WELL), "payswitch_partitions_closed") == 0
