"""The user of Redis as the documentation makes one: its rights are enough, and one that is missing
is seen before a payment is accepted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
import redis as blocking
from arq.connections import ArqRedis

from payswitch.durability import Deployment
from payswitch.ingress.app import create_app
from payswitch.settings import Settings
from payswitch.store import scripts
from payswitch.store.client import Client, connect
from payswitch.store.rights import KEY_PATTERNS, NEEDS, arguments, in_acl_words, pattern_of
from payswitch.store.watch import RedisWatch
from tests.documented import REPOSITORY
from tests.integration.books import Books, books
from tests.integration.command import Payswitch
from tests.integration.harness import bench
from tests.support import SLACK_S, RedisServer, eventually

PAGE = REPOSITORY / "docs" / "how-to" / "redis-password-tls.md"
SEVERAL_KEYS = {"DEL", "EXISTS", "MGET", "UNLINK", "WATCH"}


def documented_rules() -> list[str]:
    """What the page says of the user `payswitch`."""
    [rules] = re.findall(r"^user payswitch (.*)$", PAGE.read_text(), re.MULTILINE)
    return str(rules).split()


def password() -> str:
    [word] = [each[1:] for each in documented_rules() if each.startswith(">")]
    return word


@pytest.fixture
def admin(redis_server: RedisServer) -> Iterator[blocking.Redis]:
    with blocking.Redis(port=redis_server.port, decode_responses=True) as client:
        if client.info("server")["redis_version"].startswith("6."):
            pytest.skip("Redis 6 can't tell what a user may do")
        allow(client, documented_rules())
        client.acl_log_reset()
        yield client
        client.acl_deluser("payswitch")


def allow(admin: blocking.Redis, rules: list[str]) -> None:
    """Give the user `payswitch` these rights and no others."""
    cast(Any, admin).execute_command("ACL", "SETUSER", "payswitch", "reset", *rules)


@pytest.fixture
def url(admin: blocking.Redis, redis_server: RedisServer) -> str:
    return redis_server.url.replace("redis://", f"redis://payswitch:{password()}@")


@pytest.fixture
async def watch(url: str) -> AsyncIterator[RedisWatch]:
    client = connect(url, limit_s=5)
    yield RedisWatch(client, currency="BRL", demand=True)
    await client.aclose(close_connection_pool=True)


@contextlib.asynccontextmanager
async def serving(url: str, *, trust: str = "warn") -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(redis_url=url, redis_trust=trust, purge="open"))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://ingress") as client:
            yield client


async def pay(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/payments", json={"correlationId": str(uuid4()), "amount": 19.9})


def test_the_page_names_the_patterns_that_are_needed() -> None:
    assert {each[1:] for each in documented_rules() if each.startswith("~")} == {*KEY_PATTERNS}


async def test_the_documented_user_lacks_nothing(watch: RedisWatch, admin: blocking.Redis) -> None:
    await watch.look()
    assert watch.unusable is None
    assert admin.acl_log() == []


@pytest.mark.parametrize("pattern", KEY_PATTERNS)
async def test_a_key_pattern_that_is_missing_is_named(
    watch: RedisWatch, admin: blocking.Redis, pattern: str
) -> None:
    allow(admin, [each for each in documented_rules() if each != f"~{pattern}"])
    await watch.look()
    assert watch.not_ready is not None
    assert watch.not_ready.endswith(f"lacks rights that Payswitch needs: ~{pattern}")
    # The first key of every script: Redis itself refuses the call.
    assert pattern == "payments:*" or admin.acl_log() == []


@pytest.mark.parametrize(
    ("rule", "missing"),
    [
        ("-zmscore", "+zmscore"),
        ("-time", "+time"),
        ("-@transaction", "+exec +multi +unwatch +watch"),
        ("-eval", "+eval"),
        ("-zadd -hset", "+hset +zadd"),
    ],
)
async def test_a_command_that_is_missing_is_named(
    watch: RedisWatch, admin: blocking.Redis, rule: str, missing: str
) -> None:
    await watch.look()  # Redis knows the script now: EVAL isn't needed for it
    allow(admin, [*documented_rules(), *rule.split()])
    watch._server_at("redis").unusable = "until the next look for rights"
    await watch.look()
    assert str(watch.unusable).endswith(f": {missing}")


async def test_scripts_that_are_forbidden_are_a_reason(
    watch: RedisWatch, admin: blocking.Redis
) -> None:
    allow(admin, [*documented_rules(), "-@scripting"])
    await watch.look()
    assert "evalsha" in str(watch.unusable)


async def test_an_ingress_accepts_nothing_that_no_worker_may_take_until_it_may(
    url: str, admin: blocking.Redis
) -> None:
    allow(admin, [each for each in documented_rules() if each != "~vitals:*"])
    async with serving(url) as client:
        ready, paid = await client.get("/readyz"), await pay(client)
        assert (ready.status_code, paid.status_code) == (503, 503)
        assert "~vitals:*" in ready.json()["detail"]
        assert paid.json()["detail"].startswith("the payment was not accepted: Redis can't be used")
        assert admin.keys("payment:*") == []
        allow(admin, documented_rules())

        async def is_accepted() -> bool:
            return (await pay(client)).status_code == 202

        await eventually(is_accepted, what="the ingress accepts")  # the last look stands a moment
        assert (await client.get("/readyz")).status_code == 200


@contextlib.asynccontextmanager
async def part(url: str, command: str, environment: Mapping[str, str]) -> AsyncIterator[None]:
    """`payswitch COMMAND` as a process of its own while the context is open."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "payswitch", command),
        env={**os.environ, "REDIS_URL": url, **environment},
    )
    try:
        yield
    finally:
        running.terminate()
        assert await asyncio.wait_for(running.wait(), SLACK_S) == 0


async def test_a_worker_that_lacks_a_right_says_so_and_takes_nothing_until_it_has_it(
    redis: ArqRedis, url: str, admin: blocking.Redis, capfd: pytest.CaptureFixture[str]
) -> None:
    async with bench(redis) as b:
        payment = await b.accept()
        allow(admin, [each for each in documented_rules() if each != "~ledger:*"])
        urls = {
            "PAYMENT_PROCESSOR_URL_DEFAULT": b.default.url,
            "PAYMENT_PROCESSOR_URL_FALLBACK": b.fallback.url,
        }
        async with part(url, "worker", urls):
            said = ""

            async def has_said_so() -> bool:
                nonlocal said
                said += capfd.readouterr().err
                return "\n" in said

            await eventually(has_said_so, what="the worker says what is missing")
            assert said.endswith("its user lacks rights that Payswitch needs: ~ledger:*\n")
            assert (await b.record(payment)).state == "queued"
            allow(admin, documented_rules())

            async def is_settled() -> bool:
                return (await b.record(payment)).state == "settled"

            await eventually(is_settled, what="the payment is settled")


class Monitor:
    """Every command that Redis is given meanwhile, with its keys."""

    def __init__(self, admin: blocking.Redis) -> None:
        self._admin = admin
        self._is_over = False
        self.seen: set[tuple[str, str]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        listening = asyncio.create_task(asyncio.to_thread(self._listen))
        try:
            yield
        finally:
            self._is_over = True
            self._admin.ping()
            await listening

    def _listen(self) -> None:
        with cast(Any, self._admin).monitor() as lines:
            for line in lines.listen():
                if self._is_over:
                    return
                command, *arguments = str(line["command"]).split(" ")
                keys = arguments if command.upper() in SEVERAL_KEYS else arguments[:1]
                self.seen |= {(command.upper(), key) for key in keys}


async def work(b: Books, payswitch: Payswitch, client: httpx.AsyncClient) -> None:
    """Everything that the parts and an operator do."""
    payment = await pay(client)
    assert payment.status_code == 202
    dead, resolved = [
        await b.leave_unpaid("dead", at=time.time_ns() // 1_000_000) for _ in range(2)
    ]

    async def all_settled() -> bool:
        return not await b.redis.zcard("payments:open")

    async def health_runs() -> bool:
        return bool(await b.redis.exists("arq:queue:health:health-check"))

    for commands in (
        [("select", "fallback"), ("pause", "--for", "5m"), ("dead", "list")],
        [("dead", "resolve", dead, resolved, "--reason", "refunded")],
        [("dead", "list", "--resolved"), ("incidents", "list", "--resolved")],
        [("dead", "replay", dead, "--even-resolved")],
        [("select", "auto"), ("resume",), ("dead", "replay", "--all")],
        [("audit",), ("payment", dead), ("incidents", "list"), ("status",)],
    ):
        for ended in await asyncio.gather(*(payswitch(*command) for command in commands)):
            assert (ended.code, ended.err) == (0, "")
        if ("resume",) in commands:
            await eventually(all_settled, what="all payments are settled")
    await eventually(health_runs, what="the health worker takes jobs")
    for path in ("/payments-summary", payment.headers["location"], "/readyz"):
        assert (await client.get(path)).status_code == 200
    assert (await client.post("/purge-payments")).status_code == 200


async def test_the_documented_user_may_do_all_that_the_parts_and_commands_do(
    redis: ArqRedis, url: str, admin: blocking.Redis
) -> None:
    monitor = Monitor(admin)
    async with books(redis) as b, monitor.running(), serving(url, trust="require") as client:
        urls = {
            "PAYMENT_PROCESSOR_URL_DEFAULT": b.settings.processor_urls["default"],
            "PAYMENT_PROCESSOR_URL_FALLBACK": b.settings.processor_urls["fallback"],
        }
        async with part(url, "worker", urls), part(url, "health", urls):
            await work(b, Payswitch(url, urls), client)
    assert admin.acl_log() == []
    assert {each for each in monitor.seen if is_ours(each[1]) and not is_listed(*each)} == set()


def is_ours(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in KEY_PATTERNS)


def is_listed(command: str, key: str) -> bool:
    """Whether the parts look for the right to do this."""
    return any(
        command in commands.split() and pattern_of(key) == pattern_of(needed)
        for needed, commands in NEEDS.items()
        if needed
    )


def test_what_is_missing_is_said_in_the_words_of_an_acl() -> None:
    assert in_acl_words([]) == ""
    whole = [("vitals", command) for command in NEEDS["vitals"].split()]
    assert in_acl_words(whole) == "~vitals"
    assert in_acl_words([("payments:open", "ZADD")]) == "+zadd ~payments:*"
    assert in_acl_words([*whole, ("payments:sweep", "SET")]) == "~vitals +set ~payments:*"


LIKE_REDIS_8 = """
local function counting(command, ...)
  local arity = redis.call('COMMAND', 'INFO', command)[1][2]
  local count = select('#', ...) + 1
  if (arity > 0 and count ~= arity) or count < -arity then error('Wrong number of args') end
  return redis.acl_check_cmd(command, ...)
end
"""


def test_rights_are_asked_for_with_as_many_arguments_as_each_command_takes(
    admin: blocking.Redis,
) -> None:
    """Redis 8 counts them, Redis 7 doesn't."""
    script = scripts.source("look").replace("= redis.acl_check_cmd", "= counting")
    assert "= counting" in script
    [*_, missing, _] = cast(Any, admin).eval(
        LIKE_REDIS_8 + script, 1, "payments:generation", "BRL", "info", *arguments()
    )
    assert missing == []


# In a cluster.


async def watch_of_node(node: RedisServer, rules: list[str]) -> tuple[str | None, str | None]:
    """What a look at this node of a cluster says of a user with these rights: why it can't be used,
    and why it is away."""
    with blocking.Redis(port=node.port) as admin:
        allow(admin, rules)
    url = node.url.replace("://", f"://payswitch:{password()}@")
    client = connect(url, limit_s=SLACK_S, deployment=Deployment(16))
    try:
        watch = RedisWatch(client, currency="BRL", demand=False)
        await watch.look()
        [server] = watch.servers
        return server.unusable, server.away
    finally:
        await client.aclose(close_connection_pool=True)


@pytest.mark.usefixtures("partitioned")
async def test_in_a_cluster_the_documented_user_may_do_what_is_needed_besides(
    shared_node: RedisServer,
) -> None:
    [besides] = re.findall(r"^\+wait .*$", PAGE.read_text(), re.MULTILINE)
    rules = [*documented_rules(), *besides.split()]
    assert await watch_of_node(shared_node, rules) == (None, None)
    unusable, _ = await watch_of_node(shared_node, [*rules, "-wait"])
    assert str(unusable).endswith("rights that Payswitch needs: +wait")
    _, away = await watch_of_node(shared_node, [*rules, "-cluster|slots"])
    assert "its user lacks a right" in str(away)
    assert "cluster|slots" in str(away)


async def test_the_rights_that_are_asked_for_in_a_cluster_are_those_that_its_nodes_know(
    partitioned: Client, shared_node: RedisServer
) -> None:
    with blocking.Redis(port=shared_node.port) as admin:
        allow(admin, ["on", "nopass", "-@all", "~*", "+@all", "-cluster|slots"])
        user = blocking.Redis(port=shared_node.port, username="payswitch", password="x")
        with user:
            needed = arguments(in_cluster=True)
            generation = partitioned.partitions[0].generation
            script = scripts.source("look", partitioned.partitions.deployment)
            [_, _, _, missing, _] = cast(Any, user).eval(
                script, 1, generation, "BRL", "info", *needed
            )
    assert [each.decode() for each in missing] == ["", "CLUSTER|SLOTS"]
