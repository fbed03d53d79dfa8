"""`docs/how-to/redis-password-tls.md`, carried out as it is written."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import redis as blocking

from payswitch.settings import Settings
from payswitch.store.client import connect
from payswitch.store.errors import in_words
from payswitch.store.watch import RedisWatch
from tests.documented import REPOSITORY
from tests.support import eventually, find_redis, free_port, serves_tls

PAGE = (REPOSITORY / "docs" / "how-to" / "redis-password-tls.md").read_text()
USERS, CONF = (
    next(each for each in re.findall(r"^```text\n(.*?)^```$", PAGE, re.M | re.S) if word in each)
    for word in ("user default off", "tls-port")
)
COMMANDS = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)


def commands(*programs: str) -> list[str]:
    """Those of the page that begin with one of these words."""
    return [each for each in COMMANDS if each.split()[0] in programs]


def exported() -> dict[str, str]:
    """What the page has the user export."""
    words = [shlex.split(each)[1] for each in commands("export")]
    return dict(word.split("=", 1) for word in words)


class Place:
    """A folder in which the page is carried out, with a port of its own."""

    def __init__(self, folder: Path, *, tls: bool) -> None:
        self.folder = folder
        self.tls = tls
        self.port = free_port()
        self.url = self._url(exported()["REDIS_URL"], tls=tls)
        (folder / "users.acl").write_text(USERS)
        conf = CONF.replace("tls-port 6379", f"tls-port {self.port}")
        if not tls:
            conf = re.sub(r"^tls-.*\n", "", conf, flags=re.MULTILINE)
            conf = conf.replace("port 0", f"port {self.port}")
        (folder / "redis.conf").write_text(conf)

    def _url(self, text: str, *, tls: bool) -> str:
        parts = urlsplit(text.replace("localhost:6379", f"localhost:{self.port}"))
        options = {**dict(parse_qsl(parts.query)), "ssl_ca_certs": str(self.folder / "ca.crt")}
        if tls:
            return parts._replace(query=urlencode(options)).geturl()
        return parts._replace(scheme="redis", query="").geturl()

    def run(self, command: str) -> str:
        """The output of one of the page's commands."""
        ended = subprocess.run(
            ["sh", "-c", command], cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


@pytest.fixture(params=["with TLS", "without TLS"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    tls = request.param == "with TLS"
    if tls and shutil.which("openssl") is None:
        pytest.skip("no openssl makes the certificates")
    if tls and not serves_tls():
        pytest.skip("this Redis was built without TLS")
    made = Place(tmp_path, tls=tls)
    for command in commands("openssl", "printf") if tls else []:
        made.run(command)
    [start] = commands("redis-server")
    server = subprocess.Popen(
        [find_redis(), *start.split()[1:]], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    yield made
    server.kill()
    server.wait()


async def test_payswitch_finds_nothing_missing_and_nothing_to_fear(place: Place) -> None:
    settings = Settings.from_environment({**exported(), "REDIS_URL": place.url})
    client = connect(settings.redis_url, limit_s=5)
    watch = RedisWatch(
        client, currency=settings.currency_code, demand=settings.redis_trust == "require"
    )

    async def is_usable() -> bool:
        await watch.look()
        return watch.not_ready is None

    await eventually(is_usable, what="Redis can be used")
    await client.aclose(close_connection_pool=True)
    if place.url.startswith("rediss:") and shutil.which("redis-cli"):
        [ping] = commands("redis-cli")
        assert place.run(ping.replace("redis-cli", f"redis-cli -p {place.port}")) == "PONG\n"


@pytest.mark.parametrize("who", ["with another password", "without the authority"])
async def test_a_stranger_is_told_the_reason(place: Place, who: str) -> None:
    parts = urlsplit(place.url)
    if who == "with another password":
        parts = parts._replace(netloc=parts.netloc.replace("tide-lamp-42", "other"))
        expected = "it does not take the user and the password"
    else:
        parts = parts._replace(scheme="rediss", query="")
        expected = "certificate not trusted" if place.tls else "does it speak TLS?"
    client = connect(parts.geturl(), limit_s=0.5)

    async def is_told() -> bool:
        with pytest.raises(blocking.RedisError) as caught:
            await client.ping()
        return expected in in_words(caught.value)  # before, nothing listens there

    await eventually(is_told, what=expected)
    await client.aclose(close_connection_pool=True)
