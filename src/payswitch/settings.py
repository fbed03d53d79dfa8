"""Every setting in one typed place: read from the environment, validated at start.

`docs/settings.md` lists them; a test holds the two together.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal, DecimalException
from importlib.util import find_spec
from itertools import combinations
from typing import Any, Literal
from urllib.parse import urlsplit

from payswitch.durability import MOST_PARTITIONS, Deployment, Durability
from payswitch.money import Currency
from payswitch.origins import parse_host_names
from payswitch.processor_url import parse_processor_url
from payswitch.redis_url import REDIS_URL, RedisUrlError, is_cluster, parse_redis_url
from payswitch.secret_files import SUFFIX, Given, SecretFileError, read_secret

MASK = "***"
"""Shown in place of a secret."""

MOST_PROCESSORS = 16
"""Each adds its calls, keys and metrics to every part."""

Secret = Literal["", "all", "password"]
"""The secret part of a value: none, all of it, or the password in a URL."""

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
"""Former settings; a part that starts with one of them set logs a warning."""

_LONGEST_SHOWN = 200

_PROCESSOR_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_NO_PROCESSOR_NAMES = frozenset({"auto", "both", "none"})
"""Words that commands take beside a processor's name."""


@dataclass(frozen=True)
class SettingProblem:
    """An error in the value of one variable, or in the values of several together."""

    variables: tuple[str, ...]
    message: str


class SettingsError(ValueError):
    """One or more variables hold a value that is not allowed; the message names them all."""

    def __init__(self, problems: Sequence[SettingProblem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Variable:
    """The environment variable of one setting."""

    name: str
    parse: Callable[[str], Any]
    allowed: str
    purpose: str
    secret: Secret = ""

    @property
    def file_name(self) -> str | None:
        """The variable that may name a file with the value instead; None unless it is a secret."""
        return self.name + SUFFIX if self.secret else None

    def read(self, environment: Mapping[str, str]) -> Given:
        """The value in the environment. Raises `SecretFileError`."""
        if self.secret:
            return read_secret(environment, self.name)
        return Given(environment.get(self.name, ""))

    def shown(self, value: Any) -> Any:
        """A valid value with its secret masked."""
        if self.secret == "all":
            return MASK if value else value
        return _without_password(value) if self.secret else value

    def refused(self, given: Given) -> str:
        """The assignment of an invalid value for an error message; hides possible secrets."""
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


def _parse_processor_url(text: str) -> str:
    parse_processor_url(text)
    return text.rstrip("/")


def _parse_host_names(text: str) -> str:
    return ",".join(sorted(parse_host_names(text)))


def _parse_processor_names(text: str) -> str:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not _PROCESSOR_NAME.fullmatch(name) or name in _NO_PROCESSOR_NAMES:
            raise ValueError(text)
        if name.endswith(SUFFIX.lower()):  # else PAYSWITCH_TOKEN_A_FILE would have two meanings
            raise ValueError(text)
    if len(set(names)) < len(names) or len(names) > MOST_PROCESSORS:
        raise ValueError(text)
    return ",".join(names)


def _parse_share(text: str) -> str:
    try:
        share = Decimal(text)
        is_share = 0 <= share <= 1
    except DecimalException:
        raise ValueError(text) from None
    if not is_share:
        raise ValueError(text)
    return text


def _parse_currency(text: str) -> str:
    return Currency(text).code


def _parse_text(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise ValueError(text)
    return text


_PROCESSOR_URL = (
    _parse_processor_url,
    "a URL starting with http:// or https://, without a query or fragment",
)
_HOST_NAMES = _parse_host_names, "host names without ports, separated by commas"
_CURRENCY = _parse_currency, "the code of a currency in ISO 4217, such as BRL, JPY or BHD"
_TEXT = _parse_text, "printable ASCII"
_PROCESSOR_NAMES = (
    _parse_processor_names,
    f"1 to {MOST_PROCESSORS} different names separated by commas, each of lower-case letters, "
    "digits and _, and none `auto`, `both`, `none` or ending with `_file`",
)
_SHARE = _parse_share, "a share from 0 to 1, such as 0.05"


def _choice(*values: str) -> tuple[Callable[[str], str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(text)
        return text

    return parse, "one of " + ", ".join(values)


_MS = 24 * 3600 * 1000


@dataclass(frozen=True)
class ProcessorSettings:
    """The settings of one processor. Each variable's name ends with the processor's."""

    name: str
    url: str = _setting(
        "PAYMENT_PROCESSOR_URL",
        "",
        _PROCESSOR_URL,
        "Base URL of the processor. Credentials in it, as in `https://user:password@host`, are "
        "sent as HTTP Basic.",
        secret="password",
    )
    connector: str = _setting(
        "PAYSWITCH_CONNECTOR",
        "rinha",
        _TEXT,
        "The protocol that the processor speaks: `rinha`, `charges`, or a connector of your own, "
        "see [Connect your provider](how-to/connect-a-provider.md).",
    )
    token: str = _setting(
        "PAYSWITCH_TOKEN",
        "",
        _TEXT,
        "The token with which the connector calls the processor.",
        secret="all",
    )
    fee: str = _setting(
        "PAYSWITCH_FEE",
        "",
        _SHARE,
        "The share of each amount that the processor takes, where it can't be asked.",
    )

    @property
    def fixed_fee(self) -> Decimal | None:
        """The fee that is set, if any."""
        return Decimal(self.fee) if self.fee else None


_DEFAULT_URLS = {"default": "http://localhost:8001", "fallback": "http://localhost:8002"}
"""Where the simulators of `payswitch up` listen."""


def _default_processor(name: str) -> ProcessorSettings:
    return ProcessorSettings(name, _DEFAULT_URLS.get(name, ""))


@dataclass(frozen=True)
class Settings:
    """Every setting. Times are in milliseconds unless the name says otherwise."""

    redis_url: str = _setting(
        "REDIS_URL",
        "redis://127.0.0.1:6379/0",
        (parse_redis_url, REDIS_URL),
        "The Redis that holds queue, records, ledger and selection.",
        secret="password",
    )
    processor_names: str = _setting(
        "PAYSWITCH_PROCESSORS",
        "default,fallback",
        _PROCESSOR_NAMES,
        "The processors' names in order of preference, the cheapest first.",
    )
    processor_admin_token: str = _setting(
        "PAYSWITCH_PROCESSOR_ADMIN_TOKEN",
        "123",
        _TEXT,
        "The `X-Rinha-Token` for the admin calls of `rinha` processors without a token of their "
        "own: `payswitch reconcile` and the health worker's question for the fee.",
        secret="all",
    )
    accept_limit_ms: int = _setting(
        "PAYSWITCH_ACCEPT_LIMIT_MS",
        1200,
        _whole(100, 60_000),
        "A payment that Redis has not acknowledged after this long is answered 503. Redis does not "
        "start on it later.",
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
    currency_code: str = _setting(
        "PAYSWITCH_CURRENCY",
        "BRL",
        _CURRENCY,
        "The currency of all amounts, which have at most its decimals: two of `BRL`, none of "
        "`JPY`, three of `BHD`. A payment in another one is refused.",
    )
    unknown_members: str = _setting(
        "PAYSWITCH_UNKNOWN_MEMBERS",
        "refuse",
        _choice("refuse", "ignore"),
        "A payment with other members than `correlationId`, `amount`, `currency` and `metadata` is "
        "answered 422 (`refuse`), or taken without them (`ignore`).",
    )
    purge: str = _setting(
        "PAYSWITCH_PURGE",
        "off",
        _choice("open", "token", "off"),
        "`POST /purge-payments` is open to anyone (`open`), to holders of the token (`token`) or "
        "to nobody (`off`).",
    )
    purge_token: str = _setting(
        "PAYSWITCH_PURGE_TOKEN",
        "",
        _TEXT,
        "The bearer token that `PAYSWITCH_PURGE=token` requires.",
        secret="all",
    )
    allowed_hosts: str = _setting(
        "PAYSWITCH_ALLOWED_HOSTS",
        "",
        _HOST_NAMES,
        "Host names of the endpoint. A request for another host is answered 421, which stops DNS "
        "rebinding by a web page; addresses and `localhost` are always allowed. Empty: any name.",
    )
    redis_trust: str = _setting(
        "PAYSWITCH_REDIS_TRUST",
        "warn",
        _choice("warn", "require"),
        "If Redis may keep less than `PAYSWITCH_DURABILITY` promises: log a warning (`warn`), or "
        "refuse to use it, at start and after a failover (`require`); see [guarantees]"
        "(guarantees.md#what-survives-which-failure).",
    )
    durability: Durability = _setting(  # noqa: RUF009 - its default is immutable
        "PAYSWITCH_DURABILITY",
        Durability.DISK,
        (Durability, "one of " + ", ".join(Durability)),
        "What a 202 stands for: the payment is on Redis' disk (`disk`), besides at replicas "
        "(`replicas`, in a cluster), or in the kernel of Redis' host (`process`); see [guarantees]"
        "(guarantees.md#what-a-202-stands-for).",
    )
    replicas: int = _setting(
        "PAYSWITCH_REPLICAS",
        1,
        _whole(1, 5),
        "With `PAYSWITCH_DURABILITY=replicas`: how many replicas each shard has, and confirm each "
        "payment.",
    )
    partitions: int = _setting(
        "PAYSWITCH_PARTITIONS",
        16,
        _whole(1, MOST_PARTITIONS),
        "How many partitions the payments of a cluster fall into, fixed when `payswitch init` "
        "begins the deployment. A single Redis has one.",
    )
    worker_slots: int = _setting(
        "PAYSWITCH_WORKER_SLOTS",
        512,
        _whole(1, 10_000),
        "The most payments that one worker process has in hand.",
    )
    processor_slots: int = _setting(
        "PAYSWITCH_PROCESSOR_SLOTS",
        384,
        _whole(1, 10_000),
        "The most calls that one worker process has under way to one processor.",
    )
    claim_pause_ms: int = _setting(
        "PAYSWITCH_CLAIM_PAUSE_MS",
        20,
        _whole(0, 1000),
        "A worker that has just claimed a few payments waits this long before the next claim, and "
        "up to a quarter longer right after another worker's. A longer pause saves CPU in workers "
        "and Redis, and delays payments.",
    )
    workers_yield: str = _setting(
        "PAYSWITCH_WORKERS_YIELD",
        "off",
        _choice("on", "off"),
        "`on`: workers and health check use only CPU that no other process wants (Linux' "
        "SCHED_IDLE). For workers that share their cores with the ingress and Redis.",
    )
    lease_ms: int = _setting(
        "PAYSWITCH_LEASE_MS",
        15_000,
        _whole(200, _MS),
        "How long a worker may hold a payment before another takes over, so the time to recover "
        "from a killed worker.",
    )
    lease_margin_ms: int = _setting(
        "PAYSWITCH_LEASE_MARGIN_MS",
        500,
        _whole(1, _MS),
        "A call to a processor is not sent if less than this is left of the lease.",
    )
    processor_max_delay_ms: int = _setting(
        "PAYSWITCH_PROCESSOR_MAX_DELAY_MS",
        10_000,
        _whole(1, _MS),
        "The longest time that a processor takes to record a payment after receiving it, its own "
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
        "How long a worker that is told to stop may take to finish payments in flight.",
    )
    retention_ms: int = _setting(
        "PAYSWITCH_RETENTION_MS",
        7 * _MS,
        _whole(1000, 3650 * _MS),
        "How long a settled payment's record is kept, a late duplicate is recognised, and the "
        "ledger is exact to the millisecond.",
    )
    sweep_ms: int = _setting(
        "PAYSWITCH_SWEEP_MS",
        30_000,
        _whole(100, _MS),
        "How often the cluster checks that every open payment is in the queue.",
    )
    fast_enough_ms: int = _setting(
        "PAYSWITCH_FAST_ENOUGH_MS",
        50,
        _whole(0, _MS),
        "The first healthy processor that answers within this is selected.",
    )
    fallback_advantage_ms: int = _setting(
        "PAYSWITCH_FALLBACK_ADVANTAGE_MS",
        200,
        _whole(0, _MS),
        "If all healthy processors are slower, the first one is selected that no later one beats "
        "by more than this.",
    )
    patience_ms: int = _setting(
        "PAYSWITCH_PATIENCE_MS",
        0,
        _whole(0, _MS),
        "How long a payment waits for a preferred processor that is down or refuses, before the "
        "next one takes it; see [patience](design.md#patience). 0: not at all.",
    )
    page: str = _setting(
        "PAYSWITCH_PAGE",
        "on",
        _choice("on", "off"),
        "`on`: the endpoint serves the live page at `/` and its `/events`.",
    )
    processor_fees: str = _setting(
        "PAYSWITCH_PROCESSOR_FEES",
        "ask",
        _choice("ask", "off"),
        "`ask`: every ten minutes the health worker reads the processors' fees from their admin "
        "summary, for the page and `payswitch status`.",
    )
    metrics_host: str = _setting(
        "PAYSWITCH_METRICS_HOST",
        "127.0.0.1",
        _TEXT,
        "The address at which a worker or the health worker serves `/metrics`.",
    )
    metrics_port: int = _setting(
        "PAYSWITCH_METRICS_PORT",
        0,
        _whole(0, 65_535),
        "The port at which a worker or the health worker serves `/metrics`; 0: none. `payswitch "
        "up` counts up from it, see [metrics](metrics.md).",
    )
    log_level: str = _setting(
        "PAYSWITCH_LOG_LEVEL",
        "info",
        _choice("debug", "info", "warning", "error"),
        "The lowest level of log lines that are written.",
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
        "`otlp`: send traces to a collector with OTLP over HTTP, which needs the extra `traces`; "
        "see [traces](how-to/traces.md).",
    )
    processors: tuple[ProcessorSettings, ...] = (
        _default_processor("default"),
        _default_processor("fallback"),
    )
    """As `processor_names` orders them."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read and validate every setting; an unset or empty variable means its default.

        Raises `SettingsError`.
        """
        names = named_processors(environment) or Settings.processor_names.split(",")
        given: dict[str, Given] = {}
        values: dict[str, Any] = {}
        problems: dict[str, SettingProblem] = {}
        known = variables(names)
        for name, variable in known.items():
            try:
                given[name] = variable.read(environment)
                if given[name].text:
                    values[name] = variable.parse(given[name].text)
            except SecretFileError as error:
                problems[name] = SettingProblem((variable.name,), str(error))
            except ValueError as error:
                why = (
                    str(error)
                    if isinstance(error, RedisUrlError)
                    else f"must be {variable.allowed}"
                )
                message = f"{variable.refused(given[name])}: {why}"
                problems[name] = SettingProblem((variable.name,), message)
        processors = tuple(_take_processor(name, values) for name in names)
        settings = cls(**values, processors=processors)
        found = [*problems.values(), *settings._contradictions(given, problems.keys())]
        if found:
            raise SettingsError(found)
        return settings

    def _contradictions(
        self, given: Mapping[str, Given], unknown: Set[str]
    ) -> Iterator[SettingProblem]:
        """Values that are valid one by one but not together, except where one is unknown."""
        known = variables(self.processor_names.split(","))
        for is_kept, names, rule in self._rules():
            if is_kept or not unknown.isdisjoint(names):
                continue
            values = (
                known[name].refused(replace(given[name], text=str(self.value(name))))
                for name in names
            )
            yield SettingProblem(
                tuple(known[name].name for name in names), f"{', '.join(values)}: {rule}"
            )

    def _rules(self) -> Iterator[tuple[bool, tuple[str, ...], str]]:
        """The rules between settings: whether each holds, its settings, and its words."""
        yield (
            (self.purge == "token") is bool(self.purge_token),
            ("purge", "purge_token"),
            "PAYSWITCH_PURGE=token and PAYSWITCH_PURGE_TOKEN go together",
        )
        yield (
            self.durability is not Durability.REPLICAS or is_cluster(self.redis_url),
            ("durability", "redis_url"),
            "PAYSWITCH_DURABILITY=replicas is for a cluster, redis+cluster://",
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
        for each in self.processors:
            yield (
                bool(each.url),
                (_key(each.name, "url"),),
                f"the processor {each.name} needs a URL",
            )
        for one, other in combinations(self.processors, 2):
            yield (
                one.url != other.url or not one.url,
                (_key(one.name, "url"), _key(other.name, "url")),
                f"PAYMENT_PROCESSOR_URL_{one.name.upper()} and "
                f"PAYMENT_PROCESSOR_URL_{other.name.upper()} must differ",
            )
        yield (
            self.patience_ms < self.payment_deadline_ms,
            ("patience_ms", "payment_deadline_ms"),
            "PAYSWITCH_PATIENCE_MS must be below PAYSWITCH_PAYMENT_DEADLINE_MS",
        )
        yield (
            self.traces == "off" or _is_installed("opentelemetry.exporter.otlp.proto.http"),
            ("traces",),
            "it needs the extra `traces`: pip install 'payswitch[traces]'",
        )

    @property
    def deployment(self) -> Deployment:
        """What a deployment in a cluster is begun with."""
        replicas = self.replicas if self.durability is Durability.REPLICAS else 0
        return Deployment(self.partitions, self.durability, replicas)

    @property
    def allowed_host_names(self) -> frozenset[str]:
        """The names that `PAYSWITCH_ALLOWED_HOSTS` lists."""
        return parse_host_names(self.allowed_hosts)

    @property
    def currency(self) -> Currency:
        """The currency that `PAYSWITCH_CURRENCY` names."""
        return Currency(self.currency_code)

    @property
    def processor_urls(self) -> dict[str, str]:
        """Base URL by processor name, in order of preference."""
        return {each.name: each.url for each in self.processors}

    def with_urls(self, **urls: str) -> Settings:
        """These settings with some processors at other URLs, or with more processors; each keeps
        its other settings."""
        known = {each.name: each for each in self.processors}
        processors = tuple(
            replace(known.get(name, ProcessorSettings(name)), url=url)
            for name, url in {**self.processor_urls, **urls}.items()
        )
        names = ",".join(each.name for each in processors)
        return replace(self, processor_names=names, processors=processors)

    def value(self, key: str) -> Any:
        """The value of the setting with this key of `variables`."""
        name, dot, of_processor = key.partition(".")
        if not dot:
            return getattr(self, name)
        [processor] = [each for each in self.processors if each.name == name]
        return getattr(processor, of_processor)

    @staticmethod
    def default(key: str) -> Any:
        """The default of the setting with this key of `variables`."""
        name, dot, of_processor = key.partition(".")
        return getattr(_default_processor(name), of_processor) if dot else getattr(Settings, name)


def named_processors(environment: Mapping[str, str]) -> list[str]:
    """The names in `PAYSWITCH_PROCESSORS`; none if it is not set or not valid."""
    with contextlib.suppress(ValueError):
        return _parse_processor_names(environment.get("PAYSWITCH_PROCESSORS", "")).split(",")
    return []


def variables(processors: Sequence[str] = ("default", "fallback")) -> dict[str, Variable]:
    """Every environment variable, in order. The key is a field of `Settings`, or a processor's name
    and a field of `ProcessorSettings`, as in `default.url`."""
    found: dict[str, Variable] = {}
    for entry in fields(Settings):
        if "variable" in entry.metadata:
            found[entry.name] = entry.metadata["variable"]
        if entry.name == "processor_names":
            found |= {
                _key(name, each.name): _of_processor(each.metadata["variable"], name)
                for name in processors
                for each in fields(ProcessorSettings)
                if "variable" in each.metadata
            }
    return found


def _key(processor: str, name: str) -> str:
    return f"{processor}.{name}"


def _of_processor(variable: Variable, processor: str) -> Variable:
    return replace(variable, name=f"{variable.name}_{processor.upper()}")


def _take_processor(name: str, values: dict[str, Any]) -> ProcessorSettings:
    """The settings of one processor, taken out of all values."""
    own = {
        each.name: values.pop(_key(name, each.name))
        for each in fields(ProcessorSettings)
        if _key(name, each.name) in values
    }
    return replace(_default_processor(name), **own)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _without_password(url: str) -> str:
    """A URL with its passwords masked, before the host and in the query. A user without a password
    is masked as well: it may be a password whose colon was forgotten."""
    parts = urlsplit(url)
    credentials, at, host = parts.netloc.rpartition("@")
    user, colon, _ = credentials.partition(":")
    hidden = f"{user if colon else ''}{colon}{MASK}" if at else ""
    query = re.sub(r"(?i)([^&=]*password[^&=]*=)[^&]*", rf"\g<1>{MASK}", parts.query)
    return parts._replace(netloc=f"{hidden}{at}{host}", query=query).geturl()
