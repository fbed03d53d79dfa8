"""The schedule of a run's faults. It follows from a seed alone, so that a run can be repeated."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from payswitch.settings import Settings

WARM_UP_S = 2.0
TOGETHER = "+"
"""Joins the names of several processors to one target: one alone may have no traffic."""
PRIMARY, REPLICA = "primary-", "replica-"
"""They begin the name of a shard's node, by the role that it has when the fault comes."""
ALL_NODES, SELECTION = "nodes", "selection"
"""All nodes of the cluster; those of the shard that holds the selected processor."""
ISLAND = "island"
"""The host with a node, a worker and an ingress."""

CLEAN_MODES = ("429", "429-retry-after")
"""A payment that meets one of them is certainly not recorded."""
UNCLEAR_MODES = (
    "commit-close",
    "commit-500",
    "commit-late",
    "close-commit",
    "close",
    "500",
    "not-json",
    "truncated",
    "huge",
    "half-header",
    "drip",
)
REFUSING_MODES = ("422-unknown", "400")
"""They rightly make dead letters: the processor says that it will not take the payment."""
LIMITING_MODES = ("429", "429-retry-after", "commit-429")
"""The last one may come from a gateway, if its second try met the limit."""
GATEWAY_MODES = ("gateway-early", "gateway-late", "gateway-commit")
"""A gateway before the processor answers 408, 429, 502, 503 or 504 in its stead."""
HEALTH_MODES = ("lie", "hang", "429", "wrong-types")

_Choose = Callable[[random.Random, "Scale"], dict[str, object]]
_Lasts = Callable[[random.Random, "Scale"], float]


@dataclass(frozen=True, slots=True)
class Scale:
    """The system's times, in seconds, which scale the faults, and its parts."""

    lease_s: float
    max_delay_s: float
    workers: int
    processors: tuple[str, ...]
    """In order of preference."""
    deciding: tuple[str, ...]
    """Those whose protocol knows declined and pending payments."""
    shards: int = 0
    """Of a Redis Cluster; 0: there is a single Redis."""

    @classmethod
    def of(cls, settings: Settings, workers: int, shards: int = 0) -> Scale:
        """The scale of a system with these settings."""
        return cls(
            settings.lease_ms / 1000,
            settings.processor_max_delay_ms / 1000,
            workers,
            tuple(each.name for each in settings.processors),
            tuple(each.name for each in settings.processors if each.connector == "charges"),
            shards,
        )


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault: its kind, its target, its start and its length (0: it is over at once)."""

    at_s: float
    kind: str
    target: str
    lasts_s: float = 0.0
    details: dict[str, object] = field(default_factory=dict)

    @property
    def ends_s(self) -> float:
        """Its end, in seconds from the start of the load."""
        return self.at_s + self.lasts_s


@dataclass(frozen=True, slots=True)
class FaultKind:
    """A kind of fault: its frequency, its targets, its length."""

    group: str
    every_s: float
    targets: Callable[[Scale], Iterable[str]]
    lasts: _Lasts = lambda choose, scale: 0.0
    details: _Choose = lambda choose, scale: {}


def _any_processors(scale: Scale) -> Iterable[str]:
    """Each alone, and the first two, three and so on together, so that the next one must pay."""
    names = scale.processors
    groups = (names[:size] for size in range(2, len(names) + 1))
    return (*names, *map(TOGETHER.join, groups))


def _a_deciding_processor(scale: Scale) -> Iterable[str]:
    return scale.deciding


def _a_worker(scale: Scale) -> Iterable[str]:
    return [f"worker-{number}" for number in range(1, scale.workers + 1)]


def _any_process(scale: Scale) -> Iterable[str]:
    return [*_a_worker(scale), "ingress-1", "ingress-2", "health"]


def _a_primary(scale: Scale) -> Iterable[str]:
    """The primary that each shard has at that time."""
    return [f"{PRIMARY}{number + 1}" for number in range(scale.shards)]


def _a_replica(scale: Scale) -> Iterable[str]:
    return [f"{REPLICA}{number + 1}" for number in range(scale.shards)]


def _a_redis(scale: Scale) -> Iterable[str]:
    return [*_a_primary(scale), *_a_replica(scale)] or ["redis"]


def _any_clock(scale: Scale) -> Iterable[str]:
    nodes = [f"redis-{number + 1}" for number in range(2 * scale.shards)] or ["redis"]
    return [*_any_process(scale), *nodes]


def _of_a_cluster(target: str) -> Callable[[Scale], Iterable[str]]:
    return lambda scale: (target,) if scale.shards else ()


def _one(name: str) -> Callable[[Scale], Iterable[str]]:
    return lambda scale: (name,)


def _between(low: float, high: float) -> _Lasts:
    return lambda choose, scale: choose.uniform(low, high)


def _mix(*modes: str, most: int) -> _Choose:
    def details(choose: random.Random, scale: Scale) -> dict[str, object]:
        chosen = choose.sample(modes, min(len(modes), choose.randint(2, most)))
        return {"modes": {mode: round(choose.uniform(0.01, 0.08), 3) for mode in chosen}}

    return details


def _gateway_mix(choose: random.Random, scale: Scale) -> dict[str, object]:
    """Often enough to open circuit breakers, so that payments would go elsewhere."""
    return {"modes": {mode: round(choose.uniform(0.1, 0.3), 3) for mode in GATEWAY_MODES}}


def _health_mix(choose: random.Random, scale: Scale) -> dict[str, object]:
    chosen = choose.sample(HEALTH_MODES, choose.randint(1, 3))
    return {"modes": {mode: round(choose.uniform(0.2, 0.33), 3) for mode in chosen}}


def _refusals(choose: random.Random, scale: Scale) -> dict[str, object]:
    return {"modes": {REFUSING_MODES[0]: round(choose.uniform(0.002, 0.01), 4)}}


def _decide(decision: str, most: float) -> _Choose:
    return lambda choose, scale: {"decisions": {decision: round(choose.uniform(0.05, most), 3)}}


def _all_by_one_of(*modes: str) -> _Choose:
    """All payments meet the same fault, so that only the other processor helps."""
    return lambda choose, scale: {"modes": {choose.choice(modes): 1.0}}


def _delay(choose: random.Random, scale: Scale) -> dict[str, object]:
    return {"delay_ms": choose.choice((20, 100, 500, 1000, int(200 * scale.max_delay_s)))}


def _offset(choose: random.Random, scale: Scale) -> dict[str, object]:
    return {"offset_s": round(choose.uniform(-8, 8), 1)}


KINDS: dict[str, FaultKind] = {
    "delay": FaultKind("clean", 15, _any_processors, _between(3, 8), _delay),
    "failing": FaultKind("clean", 20, _any_processors, _between(2, 8)),
    "busy": FaultKind("clean", 15, _any_processors, _between(2, 6), _mix(*CLEAN_MODES, most=2)),
    "gone": FaultKind("processor", 25, _any_processors, _between(1, 5)),
    "silent": FaultKind("processor", 30, _any_processors, _between(4, 12)),
    "answers": FaultKind(
        "processor", 6, _any_processors, _between(3, 9), _mix(*UNCLEAR_MODES, most=6)
    ),
    "gateway": FaultKind("processor", 8, _any_processors, _between(3, 9), _gateway_mix),
    "limited": FaultKind(
        "processor", 12, _any_processors, _between(2, 6), _all_by_one_of(*LIMITING_MODES)
    ),
    "refusing": FaultKind(
        "processor", 20, _any_processors, _between(2, 5), _all_by_one_of(*REFUSING_MODES)
    ),
    "refusals": FaultKind("processor", 30, _any_processors, _between(2, 5), _refusals),
    "decline": FaultKind(
        "processor", 8, _a_deciding_processor, _between(4, 10), _decide("decline", most=0.2)
    ),
    "pending": FaultKind(
        "processor", 8, _a_deciding_processor, _between(4, 10), _decide("pending", most=0.4)
    ),
    "health": FaultKind("processor", 15, _any_processors, _between(5, 12), _health_mix),
    "kill": FaultKind("process", 12, _any_process),
    "stop": FaultKind("process", 25, _any_process),
    "freeze": FaultKind(
        "process", 40, _a_worker, lambda choose, scale: scale.lease_s * choose.uniform(1.1, 1.3)
    ),
    "reload": FaultKind("process", 20, _one("haproxy")),
    "redis-kill": FaultKind("redis", 30, _a_redis),
    "redis-pause": FaultKind("redis", 45, _a_redis, lambda choose, scale: 5.0),
    "redis-cut": FaultKind("redis", 15, _a_redis),
    "redis-flush": FaultKind("redis", 20, _a_redis),
    "redis-memory": FaultKind("redis", 45, _a_redis, _between(2, 5)),
    "node-wipe": FaultKind("cluster", 40, _a_primary),
    "failover": FaultKind("cluster", 25, _a_replica),
    "nodes-restart": FaultKind("cluster", 60, _of_a_cluster(ALL_NODES)),
    "cut-off": FaultKind("cluster", 45, _of_a_cluster(ISLAND), _between(5, 12)),
    "shard-pause": FaultKind("cluster", 150, _of_a_cluster(SELECTION), lambda choose, scale: 60.0),
    "clock": FaultKind("clock", 10, _any_clock, details=_offset),
    "duplicates": FaultKind("client", 0, _one("clients")),
    "retries": FaultKind("client", 0, _one("clients")),
    "drops": FaultKind("client", 0, _one("clients")),
}
GROUPS = ("clean", "processor", "process", "redis", "cluster", "client", "clock")


def kinds_of(text: str, *, cluster: bool) -> frozenset[str]:
    """The kinds in a list such as `processor,redis-kill`, which names kinds, groups, or `all`: all
    that a single Redis can have, or a cluster. The group `processor` holds `clean`.

    Raises `ValueError` for a name that is unknown, or that needs a cluster where there is none.
    """
    chosen: set[str] = set()
    for name in (part.strip() for part in text.split(",")):
        if name == "all":
            chosen.update(kind for kind in KINDS if cluster or KINDS[kind].group != "cluster")
        elif name in KINDS:
            chosen.add(name)
        elif name in GROUPS:
            groups = {name, "clean"} if name == "processor" else {name}
            chosen.update(kind for kind, each in KINDS.items() if each.group in groups)
        else:
            known = ", ".join(("all", *GROUPS, *KINDS))
            raise ValueError(f"{name!r} is no fault; there are {known}")
    strangers = sorted(kind for kind in chosen if KINDS[kind].group == "cluster")
    if strangers and not cluster:
        raise ValueError(f"{', '.join(strangers)}: only with --redis cluster")
    return frozenset(chosen)


def is_clean(kinds: frozenset[str]) -> bool:
    """Whether these faults leave no payment in doubt: then the summary must equal the books even
    during the run."""
    return all(KINDS[kind].group in ("clean", "client") for kind in kinds)


def plan(seed: int, seconds: float, kinds: frozenset[str], scale: Scale) -> list[PlannedFault]:
    """The faults of a run, in order. Each kind that fits and has a target comes at least once; all
    end within `seconds`."""
    events: list[PlannedFault] = []
    for name, kind in KINDS.items():
        targets = list(kind.targets(scale))
        if name not in kinds or not kind.every_s or not targets:
            continue
        choose = random.Random(f"{seed}:{name}")
        at_s = WARM_UP_S + choose.uniform(0, min(kind.every_s, seconds / 2))
        while at_s < seconds:
            lasts_s = kind.lasts(choose, scale)
            if at_s + lasts_s > seconds:
                if any(event.kind == name for event in events):
                    break
                at_s = max(WARM_UP_S, seconds - lasts_s)
                lasts_s = min(lasts_s, max(0.0, seconds - at_s))
            target = choose.choice(targets)
            events.append(PlannedFault(at_s, name, target, lasts_s, kind.details(choose, scale)))
            at_s += kind.every_s * choose.uniform(0.5, 1.5)
    return sorted(events, key=lambda event: (event.at_s, event.kind))
