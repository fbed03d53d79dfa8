"""Every key of Redis that Python spells; the scripts of `payswitch/lua` spell their own.

`docs/redis.md` says what each holds, `rights.py` which commands it needs.
"""

from __future__ import annotations

from arq.constants import default_queue_name, health_check_key_suffix

QUEUE = default_queue_name
"""arq's queue of the payments: ids by the instant at which each is due (ms)."""
HEALTH_QUEUE = f"{QUEUE}:health"
"""arq's queue of the health check."""

RECORD_PREFIX = "payment:"
"""What the key of each payment's record begins with."""
OPEN = "payments:open"
"""The backlog: unpaid payments by the instant of their acceptance."""
IN_FLIGHT = "payments:in-flight"
"""Payments in a worker's hands by the end of their lease."""
DEAD = "payments:dead"
"""Dead letters by the instant at which each died."""
INCIDENTS = "payments:incidents"
GENERATION = "payments:generation"
WAKE = "payments:wake"
"""What an idle worker blocks on."""
PAUSED = "payments:paused"
"""The operator's order to pause."""
LEFTOVERS = "payments:leftovers"
"""A purge that has left keys to remove."""
PROBE = "payments:probe"
"""The cluster's lock on probing while nothing is healthy."""
SWEEP = "payments:sweep"
"""The sweep's throttle."""

SELECTION = "selected_payment_processor"
OVERRIDE = "selection:override"
"""The operator's choice."""
SELECTIONS = (OVERRIDE, SELECTION)
"""What is read together to know which selection stands."""
HEALTH_THROTTLE = "healthcheck:throttle"
HEALTH_LOCK = "healthcheck:lock"

REPORTS = "healthcheck:reports"
"""What each processor last said of its health, and when."""
FEES = "processors:fees"
"""What each processor says that it takes, and when."""
RECONCILED = "reconcile:last"
"""What the last `payswitch reconcile` found, and when."""

HEARTBEATS = "vitals"
"""The living processes' heartbeats by their instants."""
HISTORY = "overview:history"
"""The last samples, the newest last."""
BEAT = "overview:beat"
"""The throttle of the history's samples."""

# Only scripts use the next ones.
TOKEN = "payments:token"
PURGING = "payments:purging"
NOTHING = "payments:none"
LEDGER_TOTAL = "ledger:default:0:total"
"""The top of one processor's ledger."""
LEDGER_FOLDED = "ledger:folded"
LEDGER_FULL = "ledger:full"


def sign_of_life(queue: str) -> str:
    """arq's note that a queue has a worker."""
    return queue + health_check_key_suffix


def record(correlation_id: str) -> str:
    """A payment's record."""
    return RECORD_PREFIX + correlation_id


def waiting(processor: str) -> str:
    """The payments that wait for a processor."""
    return f"payments:waiting:{processor}"


def heartbeat(kind: str, name: str) -> str:
    """One process' heartbeat."""
    return f"{HEARTBEATS}:{kind}:{name}"
