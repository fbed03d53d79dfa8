"""How payments fall into partitions, and partitions into the slots of a cluster."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from payswitch.store import keys
from payswitch.store.partitions import Node, Partition, Partitions, partition_of, tags

PAYMENT = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"


class Nowhere:
    """Stands where the nodes are handed in."""

    def home(self, slot: int) -> str:
        return ""

    async def locate(self, slot: int) -> Node:
        raise NotImplementedError

    async def locate_again(self, slot: int, wrong: Exception) -> Node | None:
        raise NotImplementedError


def partition(tag: str) -> Partition:
    return Partition(0, tag, cast(Any, None), Nowhere())


@pytest.mark.parametrize(("count", "number"), [(1, 0), (16, 7), (256, 71)])
def test_a_payment_stays_in_its_partition_for_good(count: int, number: int) -> None:
    assert partition_of(PAYMENT, count) == number


def test_the_tags_are_the_same_for_good() -> None:
    assert tags(16)[:4] == ("18", "249", "72", "223")


@given(st.uuids(), st.integers(1, 256))
def test_every_payment_has_a_partition(payment: object, count: int) -> None:
    assert 0 <= partition_of(str(payment), count) < count


def test_what_is_no_id_has_a_partition_as_well() -> None:
    assert 0 <= partition_of("\\xff not ours", 16) < 16


def test_payments_fall_evenly_into_partitions() -> None:
    found = Counter(partition_of(str(uuid4()), 16) for _ in range(16_000))
    assert len(found) == 16
    assert min(found.values()) > 800


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16, 64, 256])
def test_each_tag_leads_into_its_own_range_of_slots(count: int) -> None:
    slots = [key_slot(f"payments:open:{{{tag}}}".encode()) for tag in tags(count)]
    assert [slot * count // SLOTS for slot in slots] == [*range(count)]


@pytest.mark.parametrize("nodes", range(1, 17))
def test_partitions_spread_evenly_over_nodes_with_equal_ranges(nodes: int) -> None:
    found = Counter(key_slot(tag.encode()) * nodes // SLOTS for tag in tags(16))
    assert {found[node] for node in range(nodes)} <= {16 // nodes, -(-16 // nodes)}


def test_without_a_tag_a_key_has_its_plain_name() -> None:
    only = partition("")
    assert only.key(keys.OPEN) == "payments:open"
    assert only.family(keys.HELD, "default") == "payments:held:default"
    assert only.record(PAYMENT) == f"payment:{PAYMENT}"
    assert only.job_id(PAYMENT) == PAYMENT


def test_every_key_of_a_partition_is_in_its_slot() -> None:
    one = partition("18")
    assert one.key(keys.OPEN) == "payments:open:{18}"
    assert one.record(PAYMENT) == f"payment:{{18}}{PAYMENT}"
    every = [one.key(keys.OPEN), one.family(keys.HELD, "default"), one.record(PAYMENT)]
    assert {key_slot(key.encode()) for key in every} == {one.slot} == {key_slot(b"18")}


def test_the_keys_of_the_whole_deployment_are_in_the_slot_of_the_selection() -> None:
    common = partition(keys.SELECTION)
    assert common.key(keys.SELECTION) == "selected_payment_processor"
    assert common.key(keys.HEALTH_LOCK) == "healthcheck:lock:{selected_payment_processor}"
    every = (keys.SELECTION, keys.OVERRIDE, keys.HEALTH_LOCK, keys.HEALTH_QUEUE)
    assert {key_slot(common.key(name).encode()) for name in every} == {common.slot}


@given(st.uuids())
def test_a_job_id_leads_back_to_its_payment(payment: object) -> None:
    for tag in ("", "18"):
        own = partition(tag)
        assert own.correlation_id(own.job_id(str(payment)).encode()) == str(payment)


def test_bytes_that_are_no_text_are_escaped() -> None:
    assert partition("18").correlation_id(b"{18}\xff") == "\\xff"


def test_a_payment_is_found_in_its_partition() -> None:
    every = [
        Partition(number, tag, cast(Any, None), Nowhere()) for number, tag in enumerate(tags(16))
    ]
    partitions = Partitions(every, partition(keys.SELECTION), "")
    assert partitions.of(PAYMENT) is every[7]
