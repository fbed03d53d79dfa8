"""The counts of an ingress: the library's own objects, as several processes may serve one address.

Then each process writes its counts to files in a shared folder (`shared_counts.py`). The scraped
process adds up the files of all, ended ones included. Gauges aren't shared: every process sees the
same value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client import Counter as CounterObject
from prometheus_client import Histogram as HistogramObject
from prometheus_client.multiprocess import MultiProcessCollector

from payswitch.store.watch import RedisWatch
from payswitch.telemetry import metrics, shared_counts
from payswitch.telemetry.histogram import BOUNDS_S
from payswitch.telemetry.metrics import Facts

_VERDICTS = ("new", "same", "other", "metadata", "full", "sum", "broken", "late")
_REASONS = ("redis", "memory", "backlog", "ledger", "refused", "silent")
_STATUSES = (400, 403, 408, 409, 413, 415, 421, 422, 500, 503)


class IngressMetrics:
    """The counts of one ingress process. `watch` gives the state of Redis."""

    def __init__(self, watch: Callable[[], RedisWatch]) -> None:
        self._watch = watch
        own = CollectorRegistry()
        of = metrics.ACCEPT_SECONDS
        seconds = HistogramObject(of.name, of.meaning, of.labels, buckets=BOUNDS_S, registry=own)
        # Looked up once: a look-up costs as much as a count.
        self._refused, self._unavailable, self._failed = (
            seconds.labels(result).observe for result in ("refused", "unavailable", "failed")
        )
        self.accepted: Callable[[float], None] = seconds.labels("accepted").observe
        """Counts an accepted payment and the time to its answer (s)."""
        self._acceptances = _counter(metrics.ACCEPTANCES, _VERDICTS, own)
        self._verdicts = {each: self._acceptances.labels(each).inc for each in _VERDICTS}
        self._reasons = _counter(metrics.UNAVAILABLE, _REASONS, own)
        self._statuses = _counter(metrics.REFUSALS, map(str, _STATUSES), own)
        self._registry = self._with_facts(own)

    def refused(self, status: int, seconds: float) -> None:
        """Count an answer other than 202 and the time it took (s)."""
        self._statuses.labels(str(status)).inc()
        if status == 503:
            self._unavailable(seconds)
        elif status < 500:
            self._refused(seconds)
        else:
            self._failed(seconds)

    def unavailable(self, reason: str) -> None:
        """Count a payment answered 503, by reason."""
        self._reasons.labels(reason).inc()

    def verdicts(self, verdicts: Iterable[str]) -> None:
        """Count Redis' verdicts on a batch."""
        for verdict in verdicts:
            self._verdicts[verdict]()

    def counted(self) -> dict[str, int]:
        """This process' counts under the heartbeat's names, without those of 0."""
        return {
            **_counts("accepted", self._acceptances),
            **_counts("refused", self._statuses),
        }

    def scrape(self) -> bytes:
        """The text of a scrape: the counts of all processes."""
        return generate_latest(self._registry)

    def _with_facts(self, own: CollectorRegistry) -> CollectorRegistry:
        folder = shared_counts.shared()
        if folder is None:
            return metrics.registry_of(own, Facts(self._facts))
        shared_counts.remove_oldest_of_ended(folder)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
        registry.register(Facts(self._facts))
        return registry

    def _facts(self) -> Iterable[Metric]:
        yield metrics.build_info("ingress")
        watch = self._watch()
        yield metrics.SHORT_OF_MEMORY.one(watch.is_short)
        yield metrics.DURABILITY.by({(watch.durability,): watch.is_kept})
        yield metrics.REDIS_MEMORY.one(watch.memory.used)
        yield metrics.REDIS_MEMORY_LIMIT.one(watch.memory.limit)


def _counter(
    definition: metrics.Definition, values: Iterable[str], registry: CollectorRegistry
) -> CounterObject:
    """A counter by one label that starts at 0 for each of these values."""
    counter = CounterObject(
        definition.name, definition.meaning, definition.labels, registry=registry
    )
    for value in values:
        counter.labels(value)
    return counter


def _counts(prefix: str, counter: CounterObject) -> dict[str, int]:
    """This process' own counts, also if it shares them with others."""
    [family] = counter.collect()
    return {
        f"{prefix}:{label}": int(sample.value)
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
        for label in sample.labels.values()
    }
