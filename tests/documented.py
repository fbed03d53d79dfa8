"""Every command that README and docs show in a `console` block, and who runs it.

A command is run from its page by the test that `ELSEWHERE` names for the page; or `NOT_RUN` says
why nobody runs it; or the page has a scene in `SCENES`, and test_documented_commands.py of the
end-to-end tests runs all of its other commands in a started system.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

PAID = "4a7901b8-7d26-4d9d-aa19-4dc1c7cf60b3"
"""The id in the pages' examples."""

ELSEWHERE = {
    "docs/how-to/connect-a-provider.md": "tests/integration/processors/test_connector_page.py",
    "docs/how-to/redis-password-tls.md": "tests/integration/store/test_redis_page.py",
    "docs/tutorial.md": "tests/end_to_end/test_tutorial.py",
    "docs/how-to/cluster.md": "tests/integration/local/test_cluster_page.py",
    "docs/how-to/several-hosts.md": "tests/end_to_end/test_several_hosts.py",
}

_DOCKER = "needs Docker or Podman and the images"
_MINUTES = "takes minutes"
_OTHER_HOSTS = "names other hosts; test_several_hosts runs such a system"
_SYSTEM = "starts a whole system, as test_tutorial does"
_SYSTEMD = "needs root and systemd; test_systemd has systemd read the units"
_REPLAYED = "the page's dead letter has been replayed; test_dead_command resolves one"
_OWN_REDIS = "stops or replaces the Redis that the other commands need"

NOT_RUN: dict[str, dict[str, str]] = {
    "README.md": {
        "make up": _SYSTEM,
        "make chaos": _MINUTES,
        "make test": "it would run itself",
    },
    "docs/chaos.md": {"make chaos": _MINUTES},
    "docs/commands.md": {
        "payswitch up": _SYSTEM,
        "payswitch chaos": _MINUTES,
        "payswitch dead resolve": _REPLAYED,
        "payswitch incidents resolve": "needs an incident; test_audit_command has one",
        "payswitch certify": "names another host; test_certify_command runs it",
        "payswitch processors moved": "needs a processor at another address than before",
    },
    "docs/containers.md": {"docker compose": _DOCKER, "curl localhost:9999": _DOCKER},
    "docs/dead-letters.md": {"payswitch dead resolve": _REPLAYED},
    "docs/how-to/backup.md": {
        "redis-cli shutdown": _OWN_REDIS,
        "redis-check-aof appendonlydir": _OWN_REDIS,
        "cp -r appendonlydir /mnt": _OWN_REDIS,
        "cd /mnt/elsewhere": _OWN_REDIS,
    },
    "docs/how-to/production.md": {
        "install -d": _DOCKER,
        "password=": _DOCKER,
        "echo": _DOCKER,
        "chmod": _DOCKER,
        "printf": _DOCKER,
        "docker compose": _DOCKER,
        "curl localhost:9999": _DOCKER,
        "alias payswitch=": _DOCKER,
    },
    "docs/http.md": {
        "curl -i 'localhost:9999/payments-summary?from=2025": (
            "needs payments older than the retention; test_ingress has them"
        ),
    },
    "docs/how-to/prometheus.md": {
        "make up": _SYSTEM,
        "prometheus": "needs Prometheus; test_deploy has promtool read the same file",
        "docker run": _DOCKER,
    },
    "docs/how-to/rolling-deploy.md": {
        "kill": "names processes of the reader",
        "payswitch ingress": _OTHER_HOSTS,
        "until curl": _OTHER_HOSTS,
        "redis-cli shutdown": _OWN_REDIS,
        "redis-check-aof": _OWN_REDIS,
        "redis-server": _OWN_REDIS,
    },
    "docs/how-to/scale-workers.md": {"make up": _SYSTEM},
    "docs/how-to/systemd.md": {
        "python3 -m venv": _SYSTEMD,
        "/opt/payswitch": _SYSTEMD,
        "cp -r deploy/systemd": _SYSTEMD,
        "systemctl": _SYSTEMD,
        "install -d": _SYSTEMD,
        "umask": _SYSTEMD,
        "echo": _SYSTEMD,
        "export": _SYSTEMD,
    },
    "docs/how-to/traces.md": {
        "pip install": "installs a package",
        "docker run": _DOCKER,
        "PAYSWITCH_TRACES=otlp": _DOCKER,
    },
    "docs/logs.md": {"PAYSWITCH_LOG_FORMAT=json payswitch up": _SYSTEM},
    "docs/performance.md": {
        "make bench": _MINUTES,
        "make rinha": _MINUTES,
        ".venv/bin/python -m bench.memory": "takes half a minute; as test_bench_memory",
    },
    "docs/rinha.md": {
        "make rinha": _MINUTES,
        "make entry": "writes into build/; test_rinha_entry runs the command itself",
    },
}

SCENES = {
    "README.md": "",
    "docs/clients.md": "",
    "docs/commands.md": "a dead letter",
    "docs/controls.md": "unpaid payments",
    "docs/dead-letters.md": "a dead letter",
    "docs/how-to/backup.md": "a payment",
    "docs/how-to/production.md": "",
    "docs/how-to/read-the-queue.md": "a payment",
    "docs/how-to/rolling-deploy.md": "",
    "docs/how-to/scale-workers.md": "",
    "docs/http.md": "",
    "docs/logs.md": "",
    "docs/reconciliation.md": "a payment",
    "docs/simulator.md": "a payment",
    "docs/troubleshooting.md": "",
}
"""What there has to be before a page's first command."""

BY_CHANCE = ("curl 'localhost:8001/admin/journal",)
"""Commands whose output depends on which faults a payment meets."""

_BLOCK = re.compile(r"^( *)```console\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """A command as a page has it, and what the page shows of its output."""

    page: str
    line: str
    shown: str

    @property
    def reason(self) -> str | None:
        """Why nobody runs it; None where somebody does."""
        reasons = NOT_RUN.get(self.page, {})
        return next((why for start, why in reasons.items() if self.line.startswith(start)), None)

    @property
    def is_by_chance(self) -> bool:
        """Whether it may show something else than the page does."""
        return self.line.startswith(BY_CHANCE)


def pages() -> list[str]:
    """README and every page, as paths from the repository's folder."""
    docs = sorted((REPOSITORY / "docs").rglob("*.md"))
    return ["README.md", *(page.relative_to(REPOSITORY).as_posix() for page in docs)]


def commands(page: str) -> list[Command]:
    """All commands of a page, in order."""
    return [
        command
        for indent, block in _BLOCK.findall((REPOSITORY / page).read_text())
        for command in _in_block(page, re.sub(rf"^{indent}", "", block, flags=re.MULTILINE))
    ]


def _in_block(page: str, block: str) -> list[Command]:
    found = []
    for each in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        first, *rest = each.splitlines()
        # A command goes on in lines that are indented; what it shows never is.
        more = [*itertools.takewhile(lambda line: line.startswith("  "), rest)]
        shown = "\n".join(rest[len(more) :]).strip()
        found.append(Command(page, "\n".join([first, *more]), shown))
    return found


def beside_the_blocks(page: str) -> str:
    """A page without its `console` blocks."""
    return _BLOCK.sub("", (REPOSITORY / page).read_text())
