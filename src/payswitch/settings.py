"""Every setting in one typed place: read from the environment, validated at start.

`docs/settings.md` lists them; a test holds the two together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from typing import Any, Literal
from urllib.parse import urlsplit

from payswitch.origins import parse_host_names
from payswitch.processor_url import parse_processor_url
from payswitch.redis_url import REDIS_URL, RedisUrlError, parse_redis_url
from payswitch.secret_files import SUFFIX, Given, SecretFileError, read_secret

MASK = "***"
"""Stands for a secret."""

Secret = Literal["", "all", "password"]
"""How much of a value is a secret: nothing, all of it, or the password in a URL."""

REMOVED = (
    "PAYSWITCH_BREAKER_FAILURES",
    "PAYSWITCH_BREAKER_PROBE_MS",
    "PAYSWITCH_BREAKER_REFUSALS",
    "PAYSWITCH_HEALTH_LIMIT_MS",
    "PAYSWITCH_HEALTH_LOCK_MS",
    "PAYSWITCH_HEALTH_THROTTLE_MS",
    "PAYSWITCH_PROCESSOR_CONNECT_LIMIT_MS",
    "PAYSWITCH_SELECTION_MS",
)
"""Variables that were settings once: a start says so where one is set."""

_LONGEST_SHOWN = 200


@dataclass(frozen=True)
class SettingProblem:
    """What is wrong with the value of a variable, or with those of several together."""

    variables: tuple[str, ...]
    message: str


class SettingsError(ValueError):
    """One or more variables hold a value that is not allowed; the message names them all."""

    def __init__(self, problems: Sequence[SettingProblem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Variable:
    """How one setting is read: its variable, its parser and what it is for."""

    name: str
    parse: Callable[[str], Any]
    allowed: str
    purpose: str
    secret: Secret = ""

    @property
    def file_name(self) -> str | None:
        """The variable that may name a file with the value instead; only of a secret."""
        return self.name + SUFFIX if self.secret else None

    def read(self, environment: Mapping[str, str]) -> Given:
        """What the environment says. Raises `SecretFileError`."""
        if self.secret:
            return read_secret(environment, self.name)
        return Given(environment.get(self.name, ""))

    def shown(self, value: Any) -> Any:
        """A value that is allowed, its secret masked."""
        if self.secret == "all":
            return MASK if value else value
        return _without_password(value) if self.secret else value

    def refused(self, given: Given) -> str:
        """The assignment of a value that is not allowed; not of what may hold a secret."""
        text = given.text
        if given.path:
            return f"{self.file_name}={given.path!r} (content not shown)"
        if not text:
            return f"{self.name}=''"
        if self.secret == "all" or "@" in text or "password" in text.lower():
            return f"{self.name}=(not shown)"
        cut = text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
        return f"{self.name}={cut!r}"


def _setting(
    name: str,
    default: Any,
    kind: tuple[Callable[[str], Any], str],
    purpose: str,
    *,
    secret: Secret = "",
) -> Any:
    parse, allowed = kind
    variable = Variable(name, parse, allowed, purpose, secret)
    return field(default=default, metadata={"variable": variable})


def _whole(low: int, high: int) -> tuple[Callable[[str], int], str]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit():
            raise ValueError(text)
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse, f"a whole number from {low} to {high}"


def _processor_url() -> tuple[Callable[[str], str], str]:
    def parse(text: str) -> str:
        parse_processor_url(text)
        return text.rstrip("/")

    return parse, "a URL with http:// or https:// and without a query or fragment"


def _redis_url() -> tuple[Callable[[str], str], str]:
    return parse_redis_url, REDIS_URL


def _host_names() -> tuple[Callable[[str], str], str]:
    def parse(text: str) -> str:
        return ",".join(sorted(parse_host_names(text)))

    return parse, "host names without ports, separated by commas"


def _is_one_word(text: str) -> bool:
    return text.isprintable() and " " not in text


def _choice(*values: str) -> tuple[Callable[[str], str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(text)
        return text

    return parse, "one of " + ", ".join(values)


def _text() -> tuple[Callable[[str], str], str]:
    def parse(text: str) -> str:
        if not text.isascii() or not text.isprintable():
            raise ValueError(text)
        return text

    return parse, "printable ASCII"


_MS = 24 * 3600 * 1000


@dataclass(frozen=True)
class Settings:
    """What can be set. Times are milliseconds unless the name says otherwise."""

    redis_url: str = _setting(
        "REDIS_URL",
        "redis://127.0.0.1:6379/0",
        _redis_url(),
        "The Redis that holds queue, records, ledger and selection.",
        secret="password",
    )
    processor_url_default: str = _setting(
        "PAYMENT_PROCESSOR_URL_DEFAULT",
        "http://localhost:8001",
        _processor_url(),
        "Base URL of the processor `default`, the cheaper one. What stands before an `@` in it, as "
        "`user:password`, is sent as Basic credentials.",
        secret="password",
    )
    processor_url_fallback: str = _setting(
        "PAYMENT_PROCESSOR_URL_FALLBACK",
        "http://localhost:8002",
        _processor_url(),
        "Base URL of the processor `fallback`, likewise.",
        secret="password",
    )
    processor_admin_token: str = _setting(
        "PAYSWITCH_PROCESSOR_ADMIN_TOKEN",
        "123",
        _text(),
        "The `X-Rinha-Token` for the processors' admin calls: those of `payswitch reconcile`, and "
        "the health worker's for the fee.",
        secret="all",
    )
    accept_limit_ms: int = _setting(
        "PAYSWITCH_ACCEPT_LIMIT_MS",
        1200,
        _whole(100, 60_000),
        "A payment that Redis has not acknowledged after this long is answered 503. "
        "Redis does not begin with it later.",
    )
    max_backlog: int = _setting(
        "PAYSWITCH_MAX_BACKLOG",
        5_000_000,
        _whole(1, 1_000_000_000),
        "With this many payments unpaid, new ones are answered 503.",
    )
    max_memory_percent: int = _setting(
        "PAYSWITCH_MAX_MEMORY_PERCENT",
        85,
        _whole(1, 100),
        "With more than this share of Redis' `maxmemory` in use, new payments are answered 503.",
    )
    purge: str = _setting(
        "PAYSWITCH_PURGE",
        "off",
        _choice("open", "token", "off"),
        "`POST /purge-payments`: anyone may (`open`), only with the token (`token`), or nobody "
        "(`off`).",
    )
    purge_token: str = _setting(
        "PAYSWITCH_PURGE_TOKEN",
        "",
        _text(),
        "The bearer token that `PAYSWITCH_PURGE=token` demands.",
        secret="all",
    )
    allowed_hosts: str = _setting(
        "PAYSWITCH_ALLOWED_HOSTS",
        "",
        _host_names(),
        "The names under which clients call the endpoint. A request for another host is answered "
        "421, so that no web page gets in by DNS rebinding; addresses and `localhost` are always "
        "allowed. Empty: any name.",
    )
    redis_trust: str = _setting(
        "PAYSWITCH_REDIS_TRUST",
        "warn",
        _choice("warn", "require"),
        "What a part does where Redis may lose acknowledged payments: say so (`warn`), or refuse "
        "it, at start and after a failover (`require`); see [guarantees]"
        "(guarantees.md#what-survives-which-failure).",
    )
    worker_slots: int = _setting(
        "PAYSWITCH_WORKER_SLOTS",
        512,
        _whole(1, 10_000),
        "Payments that one worker process has in hand at most.",
    )
    processor_slots: int = _setting(
        "PAYSWITCH_PROCESSOR_SLOTS",
        384,
        _whole(1, 10_000),
        "Calls that one worker process has under way at most to one processor.",
    )
    claim_pause_ms: int = _setting(
        "PAYSWITCH_CLAIM_PAUSE_MS",
        20,
        _whole(0, 1000),
        "A worker that has just taken a few payments waits this long before it takes again, and up "
        "to a quarter longer right after another worker: the longer, the less CPU in the workers "
        "and in Redis, and the later a payment is sent.",
    )
    workers_yield: str = _setting(
        "PAYSWITCH_WORKERS_YIELD",
        "off",
        _choice("on", "off"),
        "Whether workers and health check take only the CPU that nobody else on the machine wants "
        "(Linux' SCHED_IDLE). For workers that share their cores with the ingress and Redis.",
    )
    lease_ms: int = _setting(
        "PAYSWITCH_LEASE_MS",
        15_000,
        _whole(200, _MS),
        "How long a worker may hold a payment before another takes over: the time to recover from "
        "a killed worker.",
    )
    lease_margin_ms: int = _setting(
        "PAYSWITCH_LEASE_MARGIN_MS",
        500,
        _whole(1, _MS),
        "A call to a processor does not leave when less than this is left of the lease.",
    )
    processor_max_delay_ms: int = _setting(
        "PAYSWITCH_PROCESSOR_MAX_DELAY_MS",
        10_000,
        _whole(1, _MS),
        "The longest that a processor takes from receiving a payment to recording it, its own "
        "queueing included. Exactly-once rests on it.",
    )
    processor_find_limit_ms: int = _setting(
        "PAYSWITCH_PROCESSOR_FIND_LIMIT_MS",
        5000,
        _whole(1, _MS),
        "Time limit for asking a processor whether it has a payment.",
    )
    payment_deadline_ms: int = _setting(
        "PAYSWITCH_PAYMENT_DEADLINE_MS",
        _MS,
        _whole(1000, 365 * _MS),
        "A payment that is unpaid this long after it was accepted becomes a dead letter.",
    )
    retry_base_ms: int = _setting(
        "PAYSWITCH_RETRY_BASE_MS",
        50,
        _whole(1, 10_000),
        "The first pause before another try; it doubles, with jitter, up to "
        "`PAYSWITCH_RETRY_CAP_MS`.",
    )
    retry_cap_ms: int = _setting(
        "PAYSWITCH_RETRY_CAP_MS",
        10_000,
        _whole(1, _MS),
        "The longest pause before another try; also caps a processor's `Retry-After`.",
    )
    stop_limit_ms: int = _setting(
        "PAYSWITCH_STOP_LIMIT_MS",
        12_000,
        _whole(1000, _MS),
        "A worker that is told to stop finishes what is in flight for at most this long.",
    )
    retention_ms: int = _setting(
        "PAYSWITCH_RETENTION_MS",
        7 * _MS,
        _whole(1000, 3650 * _MS),
        "How long a settled payment's record is kept, a late duplicate recognised, and the ledger "
        "exact to the millisecond.",
    )
    sweep_ms: int = _setting(
        "PAYSWITCH_SWEEP_MS",
        30_000,
        _whole(100, _MS),
        "How often the cluster checks that every open payment is queued.",
    )
    fast_enough_ms: int = _setting(
        "PAYSWITCH_FAST_ENOUGH_MS",
        50,
        _whole(0, _MS),
        "A healthy processor that answers within this is taken, `default` first.",
    )
    fallback_advantage_ms: int = _setting(
        "PAYSWITCH_FALLBACK_ADVANTAGE_MS",
        200,
        _whole(0, _MS),
        "When both are slow, `default` is taken unless it is slower than `fallback` by more than "
        "this.",
    )
    page: str = _setting(
        "PAYSWITCH_PAGE",
        "on",
        _choice("on", "off"),
        "The live page at `/` of the endpoint, with its `/events`.",
    )
    processor_fees: str = _setting(
        "PAYSWITCH_PROCESSOR_FEES",
        "ask",
        _choice("ask", "off"),
        "Whether the health worker asks the processors' admin summary what they take, every ten "
        "minutes, so that page and `payswitch status` can say what was paid.",
    )
    metrics_host: str = _setting(
        "PAYSWITCH_METRICS_HOST",
        "127.0.0.1",
        _text(),
        "The address at which a worker or the health worker serves its `/metrics`.",
    )
    metrics_port: int = _setting(
        "PAYSWITCH_METRICS_PORT",
        0,
        _whole(0, 65_535),
        "The port at which a worker or the health worker serves its `/metrics`; 0: not at all. "
        "Under `payswitch up` the first of them, see [metrics](metrics.md).",
    )
    log_level: str = _setting(
        "PAYSWITCH_LOG_LEVEL",
        "info",
        _choice("debug", "info", "warning", "error"),
        "The least level of log lines that are written.",
    )
    log_format: str = _setting(
        "PAYSWITCH_LOG_FORMAT",
        "text",
        _choice("text", "json"),
        "Log lines for people (`text`) or one JSON object a line (`json`); see [logs](logs.md).",
    )
    traces: str = _setting(
        "PAYSWITCH_TRACES",
        "off",
        _choice("off", "otlp"),
        "Traces for a collector that takes OTLP over HTTP (`otlp`), which needs the extra "
        "`traces`; see [traces](how-to/traces.md).",
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read and validate every setting; an unset or empty variable means its default.

        Raises `SettingsError` that names every variable whose value is not allowed.
        """
        source = os.environ if environment is None else environment
        given: dict[str, Given] = {}
        values: dict[str, Any] = {}
        problems: dict[str, SettingProblem] = {}
        for name, variable in variables().items():
            try:
                given[name] = variable.read(source)
                if given[name].text:
                    values[name] = variable.parse(given[name].text)
            except SecretFileError as error:
                problems[name] = SettingProblem((variable.name,), str(error))
            except ValueError as error:
                why = str(error) if isinstance(error, RedisUrlError) else variable.allowed
                message = f"{variable.refused(given[name])}: {why}"
                problems[name] = SettingProblem((variable.name,), message)
        settings = cls(**values)
        found = [*problems.values(), *settings._contradictions(given, problems.keys())]
        if found:
            raise SettingsError(found)
        return settings

    def _contradictions(
        self, given: Mapping[str, Given], unknown: Set[str]
    ) -> Iterator[SettingProblem]:
        """Settings that are allowed one by one but not together; those of which a part is unknown
        are not judged."""
        known = variables()
        for is_kept, names, rule in self._rules():
            if is_kept or not unknown.isdisjoint(names):
                continue
            values = (
                known[name].refused(replace(given[name], text=str(getattr(self, name))))
                for name in names
            )
            yield SettingProblem(
                tuple(known[name].name for name in names), f"{', '.join(values)}: {rule}"
            )

    def _rules(self) -> Iterator[tuple[bool, tuple[str, ...], str]]:
        """What must hold between settings: whether it does, which ones, and the rule in words."""
        yield (
            (self.purge == "token") is bool(self.purge_token),
            ("purge", "purge_token"),
            "PAYSWITCH_PURGE=token and PAYSWITCH_PURGE_TOKEN go together",
        )
        yield (
            self.lease_ms > self.processor_max_delay_ms + self.lease_margin_ms,
            ("lease_ms", "processor_max_delay_ms", "lease_margin_ms"),
            "PAYSWITCH_LEASE_MS must be above PAYSWITCH_PROCESSOR_MAX_DELAY_MS plus "
            "PAYSWITCH_LEASE_MARGIN_MS",
        )
        yield (
            self.retention_ms > self.lease_ms + self.processor_max_delay_ms,
            ("retention_ms", "lease_ms", "processor_max_delay_ms"),
            "PAYSWITCH_RETENTION_MS must be above PAYSWITCH_LEASE_MS plus "
            "PAYSWITCH_PROCESSOR_MAX_DELAY_MS",
        )
        yield (
            self.processor_url_default != self.processor_url_fallback,
            ("processor_url_default", "processor_url_fallback"),
            "PAYMENT_PROCESSOR_URL_DEFAULT and PAYMENT_PROCESSOR_URL_FALLBACK must differ",
        )
        yield (
            self.traces == "off" or _is_installed("opentelemetry.exporter.otlp.proto.http"),
            ("traces",),
            "it needs the extra `traces`: pip install 'payswitch[traces]'",
        )

    @property
    def allowed_host_names(self) -> frozenset[str]:
        """The names that `PAYSWITCH_ALLOWED_HOSTS` lists."""
        return parse_host_names(self.allowed_hosts)

    @property
    def processor_urls(self) -> dict[str, str]:
        """Base URL by processor name, the cheaper one first."""
        return {"default": self.processor_url_default, "fallback": self.processor_url_fallback}


def variables() -> dict[str, Variable]:
    """The environment variable of each field of `Settings`, in order."""
    return {entry.name: entry.metadata["variable"] for entry in fields(Settings)}


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _without_password(url: str) -> str:
    """A URL whose password, there or in the query, is masked. A user without a password is, too:
    who forgets the colon has written a password."""
    parts = urlsplit(url)
    credentials, at, host = parts.netloc.rpartition("@")
    user, colon, _ = credentials.partition(":")
    hidden = f"{user if colon else ''}{colon}{MASK}" if at else ""
    query = re.sub(r"(?i)([^&=]*password[^&=]*=)[^&]*", rf"\g<1>{MASK}", parts.query)
    return parts._replace(netloc=f"{hidden}{at}{host}", query=query).geturl()


DEFAULT = "default"

FALLBACK = "fallback"

PROCESSORS = (DEFAULT, FALLBACK)
