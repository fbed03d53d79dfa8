"""What listens beyond this machine by default is named on the security page."""

from __future__ import annotations

import click
import pytest

from payswitch.settings import Settings
from tests.commands import walk
from tests.documented import REPOSITORY
from tests.unit.deployment.test_compose import load

PAGE = (REPOSITORY / "docs" / "security.md").read_text()
HOSTS = [
    (" ".join(path), option.default)
    for path, command in walk()
    for option in command.params
    if isinstance(option, click.Option) and "--host" in option.opts
]


@pytest.mark.parametrize(("command", "host"), HOSTS)
def test_a_part_listens_on_this_machine_alone_by_default(command: str, host: str) -> None:
    assert host == "127.0.0.1"
    assert f"`payswitch {command}`" in PAGE


def test_metrics_are_served_to_this_machine_alone_and_only_where_it_is_said() -> None:
    assert (Settings.metrics_host, Settings.metrics_port) == ("127.0.0.1", 0)


@pytest.mark.parametrize("name", sorted(each.name for each in REPOSITORY.glob("compose*.yaml")))
def test_a_compose_file_is_on_the_page_with_what_it_publishes(name: str) -> None:
    [row] = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}`")]
    for service in load(name)["services"].values():
        for published in service.get("ports", ()):
            *host, port, _ = published.split(":")
            assert port in row
            assert (host == ["127.0.0.1"]) == ("127.0.0.1" in row)


def test_haproxy_is_on_the_page_with_where_it_listens() -> None:
    assert 'bind "${PAYSWITCH_BIND-:9999}"' in (REPOSITORY / "haproxy.cfg").read_text()
    [row] = [line for line in PAGE.splitlines() if line.startswith("| `haproxy -f haproxy.cfg`")]
    assert "every address, port 9999" in row
