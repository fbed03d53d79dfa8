"""Every key of Redis that Python uses; the scripts of `payswitch/lua` name their own.

These are the names on a single Redis. In a cluster `Partition.key` adds the partition's hash tag.
`docs/redis.md` explains each key, and `rights.py` lists the commands that it needs.
"""

from __future__ import annotations

from arq.constants import default_queue_name, health_check_key_suffix

QUEUE = default_queue_name
"""arq's queue of the payments: ids by the instant at which each is due (ms)."""
HEALTH_QUEUE = f"{QUEUE}:health"
"""arq's queue of the health check."""

RECORD_PREFIX = "payment:"
"""The start of each payment's record key."""
OPEN = "payments:open"
"""The backlog: unpaid payments by the instant of their acceptance."""
IN_FLIGHT = "payments:in-flight"
"""Payments in a worker's hands by the end of their lease."""
DEAD = "payments:dead"
"""Dead letters by the instant at which each died."""
RESOLVED = "payments:resolved"
"""Resolved dead letters by the instant of their resolution."""
RESOLUTIONS = "payments:resolutions"
"""The number of dead letters resolved since the last purge."""
DECLINES = "payments:declines"
"""The number of payments that each processor has declined since the last purge."""
INCIDENTS = "payments:incidents"
RESOLVED_INCIDENTS = "payments:incidents:resolved"
"""Resolved incidents by the instant of their resolution."""
AUDIT = "payments:audit"
"""The stream of operators' acts; a purge keeps it."""
GENERATION = "payments:generation"
"""The number of purges so far. Each script gets it as its first key: it leads to the partition."""
DEPLOYMENT = "payments:deployment"
"""In a cluster: how this deployment was begun. Scripts refuse a partition that says otherwise."""
CONFIRMED = "payments:confirmed"
"""In a cluster: written before each wait for replicas, which wait for a write."""
WAITING = "payments:waiting"
"""By processor: the payments that wait for it."""
HELD = "payments:held"
"""By processor: the payments that are held until it works again."""
WAKE = "payments:wake"
"""The list on which an idle worker blocks."""
SAVED = "payments:saved"
"""The sums of the payments that were held, and then paid by the processor that they waited for."""
PAUSED = "payments:paused"
"""The operator's order to pause."""
PROCESSORS = "payments:processors"
"""The processors that workers know: URL by name."""
CURRENCY = "payments:currency"
"""The currency of all payments since the last purge."""
LEFTOVERS = "payments:leftovers"
"""The generation whose purge has left keys to remove."""
PROBE = "payments:probe"
"""The cluster's lock on probing while nothing is healthy."""
SWEEP = "payments:sweep"
"""The sweep's throttle."""

SELECTION = "selected_payment_processor"
OVERRIDE = "selection:override"
"""The operator's choice."""
SELECTIONS = (OVERRIDE, SELECTION)
"""Both keys that decide the current selection, to be read together."""
HEALTH_THROTTLE = "healthcheck:throttle"
HEALTH_LOCK = "healthcheck:lock"

REPORTS = "healthcheck:reports"
"""Each processor's last health report, with its time."""
FEES = "processors:fees"
"""Each processor's fee, with its time."""
RECONCILED = "reconcile:last"
"""The result of the last `payswitch reconcile`, with its time."""

HEARTBEATS = "vitals"
"""The heartbeats of the living processes by their instants."""
HISTORY = "overview:history"
"""The last samples, the newest last."""
BEAT = "overview:beat"
"""The throttle of the history's samples."""

# Python uses the next ones only in `rights.py`.
PURGING = "payments:purging"
NOTHING = "payments:none"
LEDGER_TOTAL = "ledger:default:0:total"
"""The top of one processor's ledger."""
LEDGER_FOLDED = "ledger:folded"
LEDGER_FULL = "ledger:full"


def sign_of_life(queue: str) -> str:
    """The health key that arq's worker of a queue writes."""
    return queue + health_check_key_suffix


def heartbeat(kind: str, name: str) -> str:
    """The key of one process' heartbeat."""
    return f"{HEARTBEATS}:{kind}:{name}"
