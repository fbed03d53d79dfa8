"""`REDIS_URL`: each option of redis-py is taken, or refused by its name with the reason."""

from __future__ import annotations

import inspect
from urllib.parse import parse_qsl, urlsplit

import pytest
from redis.asyncio import Connection, SSLConnection
from redis.asyncio.connection import (
    URL_QUERY_ARGUMENT_PARSERS,
    AbstractConnection,
    UnixDomainSocketConnection,
)

from payswitch.redis_url import OPTIONS, REFUSED, RedisUrlError, cluster_nodes, parse_redis_url
from payswitch.settings import Settings, SettingsError
from payswitch.store.client import connect
from tests.documented import REPOSITORY

SETTINGS = REPOSITORY / "docs" / "settings.md"


def of_redis_py() -> set[str]:
    """Every option that redis-py takes, some of which no text in a URL can mean."""
    kinds = (AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection)
    found = {*URL_QUERY_ARGUMENT_PARSERS}
    for kind in kinds:
        found |= {*inspect.signature(kind.__init__).parameters}
    return found - {"self", "kwargs"}


@pytest.mark.parametrize("name", sorted(of_redis_py() - {*OPTIONS}))
@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix"])
def test_an_option_that_is_not_taken_is_refused_by_its_name(name: str, scheme: str) -> None:
    with pytest.raises(RedisUrlError, match=rf"the option '?{name}'? is (not supported|unknown)"):
        parse_redis_url(f"{scheme}://host/1?{name}=1")


@pytest.mark.parametrize("name", REFUSED)
def test_the_reason_of_a_refusal_is_told_at_start(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"REDIS_URL": f"redis://host?{name}=True"})
    expected = f"REDIS_URL='redis://host?{name}=True': the option {name} is not supported: "
    assert str(caught.value) == expected + REFUSED[name]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://host?db=first", "the option db must be a whole number"),
        ("redis://host?db=-1", "the option db must be a whole number"),
        ("redis://host?db=", "the option db must be a whole number"),
        ("redis://host?db=1&db=2", "the option db must be a whole number"),
        ("redis://host?socket_keepalive=maybe", "must be true or false"),
        ("unix:///r?socket_keepalive=1", "is for redis:// and rediss://"),
        ("redis://host?client_name=a%20b", "must be printable ASCII"),
        ("redis://host?ssl_check_hostname=true", "the option ssl_check_hostname is for rediss://"),
        ("rediss://host?ssl_check_hostname=maybe", "must be true or false"),
        ("rediss://host?ssl_cert_reqs=maybe", "must be none, optional or required"),
        ("rediss://host?ssl_ca_certs=/nowhere", "ssl_ca_certs names no file that can be read"),
        (f"rediss://host?ssl_ca_certs={__file__}", "TLS can't be set up with these options"),
        (f"rediss://host?ssl_keyfile={__file__}", "ssl_certfile and ssl_keyfile go together"),
        (
            "rediss://host?ssl_cert_reqs=none&ssl_check_hostname=true",
            "TLS can't be set up with these options",
        ),
        ("redis://host?no_such_option=1", "the option 'no_such_option' is unknown"),
    ],
)
def test_a_value_that_cannot_work_is_named(url: str, message: str) -> None:
    with pytest.raises(RedisUrlError) as caught:
        parse_redis_url(url)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host?db=2", {"db": 2}),
        ("redis://host/3", {"db": 3}),
        ("unix:///r?db=2", {"db": 2}),
        ("redis://host?username=u&password=p%26w", {"username": "u", "password": "p&w"}),
        ("redis://u:p%40w@host", {"username": "u", "password": "p@w"}),
        ("redis://host?client_name=payswitch", {"client_name": "payswitch"}),
        ("redis://host?socket_keepalive=true", {"socket_keepalive": True}),
        ("redis://host?socket_keepalive=0", {"socket_keepalive": False}),
        ("rediss://host", {"ssl_check_hostname": True}),
        ("rediss://host?ssl_cert_reqs=optional", {"ssl_check_hostname": True}),
        ("rediss://host?ssl_check_hostname=true", {"ssl_check_hostname": True}),
        ("rediss://host?ssl_check_hostname=false", {"ssl_check_hostname": False}),
        ("rediss://host?ssl_cert_reqs=none", {"ssl_cert_reqs": "none"}),
    ],
)
async def test_an_option_that_is_taken_reaches_every_connection(
    url: str, expected: dict[str, object]
) -> None:
    client = connect(parse_redis_url(url), limit_s=1)
    given = client.connection_pool.connection_kwargs
    assert {name: given[name] for name in expected} == expected
    client.connection_pool.make_connection()  # type: ignore[no-untyped-call]


def test_the_options_are_documented() -> None:
    rows = SETTINGS.read_text().partition("## Options of `REDIS_URL`")[2].partition("\n## ")[0]
    assert {each for each in OPTIONS if f"`{each}`" not in rows} == set()


def test_no_reason_shows_a_password() -> None:
    url = "redis://host?password=hunter2&db=first&decode_responses=True"
    assert dict(parse_qsl(urlsplit(url).query))["password"] == "hunter2"
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"REDIS_URL": url})
    assert "hunter2" not in str(caught.value)


# Clusters.


@pytest.mark.parametrize(
    ("url", "base", "nodes"),
    [
        ("redis+cluster://a:7000,b:7001/", "redis://a:7000", [("a", 7000), ("b", 7001)]),
        ("redis+cluster://a", "redis://a", [("a", 6379)]),
        (
            "rediss+cluster://u:p%40@[::1]:7000,[::2]/?ssl_cert_reqs=none",
            "rediss://u:p%40@[::1]:7000?ssl_cert_reqs=none",
            [("::1", 7000), ("::2", 6379)],
        ),
    ],
)
def test_a_cluster_is_named_by_some_of_its_nodes(
    url: str, base: str, nodes: list[tuple[str, int]]
) -> None:
    assert parse_redis_url(url) == url
    assert cluster_nodes(url) == (base, nodes)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+cluster://", "then hosts"),
        ("redis+cluster://a:7000,", "then hosts"),
        ("redis+cluster://a:x", "then hosts"),
        ("redis+cluster://a:1,b:99999", "then hosts"),
        ("redis+cluster://a:7000/1", "no numbered databases"),
        ("redis+cluster://a:7000/?db=0", "no numbered databases"),
        ("redis+cluster://a:7000/?protocol=3", "protocol is not supported"),
        ("redis+cluster://a:7000/?ssl_cert_reqs=none", "is for rediss"),
        ("redis+cluster://a:7000#b", "write a #"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_refused(url: str, message: str) -> None:
    with pytest.raises(RedisUrlError, match=message):
        parse_redis_url(url)


def test_a_durability_by_replicas_is_for_a_cluster() -> None:
    replicas = {"PAYSWITCH_DURABILITY": "replicas"}
    with pytest.raises(SettingsError, match="is for a cluster"):
        Settings.from_environment(replicas)
    settings = Settings.from_environment({**replicas, "REDIS_URL": "redis+cluster://a:7000"})
    assert str(settings.deployment) == "partitions=16 durability=replicas replicas=1"
