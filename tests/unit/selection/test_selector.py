"""The Selector: its rule as a table, its properties, and the cache under the lock's token."""

from __future__ import annotations

from collections.abc import AsyncIterator

import fakeredis
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from payswitch.processors.outcomes import HealthReport
from payswitch.selection.selector import (
    Limits,
    Selection,
    Selector,
    decide,
    parse_selection,
    parse_standing,
    unselected,
)
from payswitch.store import keys
from tests.support import PROCESSORS

LOCK = "healthcheck:lock"
AT_MS = 1_795_363_500_123
DEFAULT_LIMITS = Limits()
SPEEDS = (0, 49, 50, 51, 200, 250, 251, 10_000)
REPORTS = st.none() | st.builds(HealthReport, st.booleans(), st.integers(0, 5000))
LIMITS = st.builds(Limits, st.integers(0, 2000), st.integers(0, 2000))


def failing(ms: int = 0) -> HealthReport:
    return HealthReport(True, ms)


def healthy(ms: int = 0) -> HealthReport:
    return HealthReport(False, ms)


NOT_HEALTHY = (None, *map(failing, SPEEDS))


def choice(
    default: HealthReport | None, fallback: HealthReport | None, limits: Limits = DEFAULT_LIMITS
) -> tuple[str, bool]:
    selection = decide({"default": default, "fallback": fallback}, limits)
    return selection.processor, selection.healthy


@pytest.fixture
async def redis() -> AsyncIterator[Redis]:
    """A Redis in which the token `mine` holds the lock."""
    client: Redis = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
    await client.set(LOCK, "mine")
    yield client
    await client.aclose()


# The decision.


@pytest.mark.parametrize("default_ms", SPEEDS)
@pytest.mark.parametrize("fallback", NOT_HEALTHY)
def test_a_healthy_default_is_chosen_over_a_fallback_that_is_not(
    default_ms: int, fallback: HealthReport | None
) -> None:
    assert choice(healthy(default_ms), fallback) == ("default", True)


@pytest.mark.parametrize("default", NOT_HEALTHY)
@pytest.mark.parametrize("fallback_ms", SPEEDS)
def test_a_healthy_fallback_is_chosen_over_a_default_that_is_not(
    default: HealthReport | None, fallback_ms: int
) -> None:
    assert choice(default, healthy(fallback_ms)) == ("fallback", True)


@pytest.mark.parametrize("default", NOT_HEALTHY)
@pytest.mark.parametrize("fallback", NOT_HEALTHY)
def test_with_nothing_healthy_default_is_chosen_and_marked_unhealthy(
    default: HealthReport | None, fallback: HealthReport | None
) -> None:
    assert choice(default, fallback) == ("default", False)


@pytest.mark.parametrize(
    ("default_ms", "fallback_ms", "chosen"),
    [
        # Default answers within 50 ms, inclusive: fallback's speed is no matter.
        *((default, fallback, "default") for default in (0, 49, 50) for fallback in SPEEDS),
        # Default is slow, fallback answers within 50 ms, inclusive.
        *((default, fallback, "fallback") for default in (51, 250, 10_000) for fallback in (0, 50)),
        # Both are slow: default, unless it is slower by more than 200 ms.
        (51, 51, "default"),
        (51, 10_000, "default"),
        (250, 51, "default"),
        (251, 51, "default"),
        (252, 51, "fallback"),
        (300, 100, "default"),
        (301, 100, "fallback"),
        (1000, 800, "default"),
        (1000, 799, "fallback"),
        (10_000, 10_000, "default"),
        (10_000, 9799, "fallback"),
    ],
)
def test_with_both_healthy_the_speeds_decide(
    default_ms: int, fallback_ms: int, chosen: str
) -> None:
    assert choice(healthy(default_ms), healthy(fallback_ms)) == (chosen, True)


@pytest.mark.parametrize(
    ("default_ms", "fallback_ms", "chosen"),
    [
        (1100, 0, "default"),
        (1101, 1100, "fallback"),
        (1101, 1101, "default"),
        (2601, 1101, "default"),
        (2602, 1101, "fallback"),
    ],
)
def test_the_limits_are_settings(default_ms: int, fallback_ms: int, chosen: str) -> None:
    limits = Limits(fast_enough_ms=1100, fallback_advantage_ms=1500)
    assert choice(healthy(default_ms), healthy(fallback_ms), limits) == (chosen, True)


def test_a_report_of_none_is_unknown() -> None:
    assert decide({"default": None, "fallback": None}, Limits()) == Selection(
        "default",
        False,
        "default unknown, fallback unknown",
        down=("default", "fallback"),
    )


def test_a_choice_names_the_processors_that_are_down_and_not_those_that_are_slow() -> None:
    reports = {"a": failing(), "b": healthy(9000), "c": None, "d": healthy(1)}
    found = decide(reports, Limits())
    assert (found.processor, found.down) == ("d", ("a", "c"))


# Any number of processors.

NAMES = ("a", "b", "c", "d", "e")
MANY = st.lists(REPORTS, min_size=1, max_size=5).map(lambda found: dict(zip(NAMES, found)))  # noqa: B905


@given(MANY, LIMITS)
def test_of_many_the_first_healthy_one_is_chosen_unless_speeds_speak_against_it(
    reports: dict[str, HealthReport | None], limits: Limits
) -> None:
    """What `decide` promises, said in another way."""
    speeds = {
        name: each.min_response_ms for name, each in reports.items() if each and not each.failing
    }
    chosen = decide(reports, limits)
    assert chosen.healthy is bool(speeds)
    if not speeds:
        assert chosen.processor == "a"
        return
    healthy = list(speeds)
    before = healthy[: healthy.index(chosen.processor)]
    after = healthy[len(before) + 1 :]
    fast, gain = limits.fast_enough_ms, limits.fallback_advantage_ms
    if speeds[chosen.processor] <= fast:
        assert all(speeds[name] > fast for name in before)
        return
    assert all(speed > fast for speed in speeds.values())
    assert all(speeds[chosen.processor] - speeds[name] <= gain for name in after)
    for place, name in enumerate(before):
        assert any(speeds[name] - speeds[later] > gain for later in healthy[place + 1 :])


@given(MANY, LIMITS, REPORTS)
def test_a_dearer_processor_that_is_down_changes_nothing(
    reports: dict[str, HealthReport | None], limits: Limits, last: HealthReport | None
) -> None:
    down = last and HealthReport(True, last.min_response_ms)
    with_it = decide({**reports, "z": down}, limits)
    assert (with_it.processor, with_it.healthy) == (
        decide(reports, limits).processor,
        decide(reports, limits).healthy,
    )


def test_one_processor_alone_is_chosen() -> None:
    assert decide({"only": healthy(9000)}, Limits()) == Selection("only", True, "only 9000 ms")


def test_the_reason_names_all_that_was_weighed() -> None:
    reports = {"a": failing(), "b": healthy(300), "c": healthy(20), "d": None}
    assert decide(reports, Limits()) == Selection(
        "c", True, "a failing, d unknown, b 300 ms, c 20 ms", down=("a", "d")
    )


@given(REPORTS, REPORTS, LIMITS)
def test_a_processor_that_is_not_healthy_is_never_chosen_while_the_other_is(
    default: HealthReport | None, fallback: HealthReport | None, limits: Limits
) -> None:
    reports = {"default": default, "fallback": fallback}
    alive = {name for name, report in reports.items() if report and not report.failing}
    assert not alive or decide(reports, limits).processor in alive


@given(REPORTS, REPORTS, LIMITS)
def test_a_selection_is_unhealthy_if_and_only_if_nothing_is_healthy(
    default: HealthReport | None, fallback: HealthReport | None, limits: Limits
) -> None:
    anything = any(report is not None and not report.failing for report in (default, fallback))
    assert choice(default, fallback, limits)[1] is anything


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 5000), LIMITS)
def test_a_default_that_becomes_faster_never_loses_the_selection(
    default_ms: int, faster_by: int, fallback_ms: int, limits: Limits
) -> None:
    before, _ = choice(healthy(default_ms), healthy(fallback_ms), limits)
    after, _ = choice(healthy(max(0, default_ms - faster_by)), healthy(fallback_ms), limits)
    assert (before, after) != ("default", "fallback")


# The cache.


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        b"default",
        b"{",
        b"\xff\xfe",
        b"null",
        b"1",
        b'"fallback"',
        b'["fallback", true]',
        b"{}",
        b'{"processor":"fallback"}',
        b'{"healthy":false}',
        b'{"processor":"fallback","healthy":"false"}',
        b'{"processor":"fallback","healthy":0}',
        b'{"processor":"fallback","healthy":null}',
        b'{"processor":"third","healthy":true}',
        b'{"processor":"Fallback","healthy":true}',
        b'{"processor":null,"healthy":true}',
        b'{"processor":2,"healthy":true}',
        b'{"processor":["fallback"],"healthy":true}',
        b'{"processor":{"fallback":1},"healthy":true}',
    ],
)
def test_what_is_no_selection_of_a_known_processor_reads_as_default(raw: bytes | None) -> None:
    assert parse_selection(raw, PROCESSORS) is None


def test_no_selection_is_taken_to_mean_a_healthy_default() -> None:
    assert (unselected(PROCESSORS).processor, unselected(PROCESSORS).healthy) == ("default", True)


@pytest.mark.parametrize(
    ("raw", "selection"),
    [
        (
            b'{"processor":"fallback","healthy":true,"reason":"why","at":"now"}',
            Selection("fallback", True, "why"),
        ),
        (b'{"processor":"default","healthy":false}', Selection("default", False, "")),
        (
            b'{"processor":"default","healthy":true,"reason":7}',
            Selection("default", True, "7"),
        ),
        (
            b'{"processor":"fallback","healthy":true,"down":["default","third"]}',
            Selection("fallback", True, "", down=("default",)),
        ),
        (b'{"processor":"fallback","healthy":true,"down":7}', Selection("fallback", True, "")),
    ],
)
def test_a_selection_is_read_from_its_json(raw: bytes, selection: Selection) -> None:
    assert parse_selection(raw, PROCESSORS) == selection


@given(st.binary(max_size=200))
def test_no_bytes_in_the_cache_raise_anything(raw: bytes) -> None:
    assert parse_standing((None, raw), PROCESSORS).processor in PROCESSORS


CACHED = b'{"processor":"default","healthy":false,"reason":"why"}'


@pytest.mark.parametrize("cached", [CACHED, b"{", None])
def test_an_operators_choice_stands_above_the_health_checks(cached: bytes | None) -> None:
    override = b'{"processor":"fallback","by":"ana","at":"now","reason":null}'
    assert parse_standing((override, cached), PROCESSORS) == Selection(
        "fallback", True, "chosen by ana", overridden=True
    )


@pytest.mark.parametrize(
    "override",
    [None, b"", b"{", b"null", b"[]", b"{}", b'{"processor":"third"}', b'{"processor":[]}'],
)
def test_what_is_no_operators_choice_leaves_it_to_the_health_check(override: bytes | None) -> None:
    assert parse_standing((override, CACHED), PROCESSORS) == Selection("default", False, "why")


@given(st.binary(max_size=200))
def test_no_bytes_in_the_override_raise_anything(raw: bytes) -> None:
    assert parse_standing((raw, CACHED), PROCESSORS).processor in ("default", "fallback")


# Writing and reading.


async def select(redis: Redis, token: str) -> Selection | None:
    return await Selector(redis, Limits()).select(
        {"default": failing(), "fallback": healthy(7)}, lock_key=LOCK, token=token, at_ms=AT_MS
    )


async def standing(redis: Redis) -> Selection:
    return parse_standing(await redis.mget(keys.SELECTIONS), PROCESSORS)


async def test_the_holder_of_the_lock_writes_the_selection(redis: Redis) -> None:
    await select(redis, "mine")
    assert orjson.loads(await redis.get(keys.SELECTION)) == {
        "processor": "fallback",
        "healthy": True,
        "reason": "default failing",
        "down": ["default"],
        "at": "2026-11-22T16:05:00.123Z",
    }


async def test_a_written_selection_is_returned(redis: Redis) -> None:
    assert await select(redis, "mine") == Selection(
        "fallback", True, "default failing", down=("default",)
    )


async def test_a_written_selection_is_read_again(redis: Redis) -> None:
    written = await select(redis, "mine")
    assert await standing(redis) == written


async def test_the_selector_respects_an_operators_choice(redis: Redis) -> None:
    await redis.set(keys.OVERRIDE, b'{"processor":"default"}')
    await select(redis, "mine")
    assert (await standing(redis)).processor == "default"
    await redis.delete(keys.OVERRIDE)
    assert (await standing(redis)).processor == "fallback"


async def test_a_selection_lives_for_ten_seconds(redis: Redis) -> None:
    await select(redis, "mine")
    assert 9_000 < await redis.pttl(keys.SELECTION) <= 10_000


async def test_another_token_than_the_locks_writes_nothing(redis: Redis) -> None:
    await redis.set(keys.SELECTION, "old")
    await select(redis, "another's")
    assert await redis.get(keys.SELECTION) == b"old"


@pytest.mark.parametrize("token", ["another's", "", "min", "mine "])
async def test_another_token_than_the_locks_gets_no_selection(redis: Redis, token: str) -> None:
    assert await select(redis, token) is None


async def test_nobody_writes_once_the_lock_has_expired(redis: Redis) -> None:
    await redis.delete(LOCK)
    await select(redis, "mine")
    assert await redis.exists(keys.SELECTION) == 0


async def test_an_empty_cache_reads_as_default(redis: Redis) -> None:
    assert await standing(redis) == unselected(PROCESSORS)


async def test_a_corrupt_cache_reads_as_default(redis: Redis) -> None:
    await redis.set(keys.SELECTION, b"\x00{")
    assert await standing(redis) == unselected(PROCESSORS)
