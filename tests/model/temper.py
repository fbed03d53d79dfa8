"""What differs between the model's runs, and the settings that all of them have."""

from __future__ import annotations

from dataclasses import dataclass

LEASE_MS = 15_000
MARGIN_MS = 500
MAX_DELAY_MS = 10_000
LATER_MAX_DELAY_MS = 60_000
"""The longest delay once the processors have become slower."""
QUIET_MS = LEASE_MS + MAX_DELAY_MS


@dataclass(frozen=True)
class Temper:
    """What differs from run to run: which faults there are, and the settings that matter."""

    workers: int = 2
    payments: int = 3
    breaker_failures: int = 1000
    breaker_refusals: int = 1000
    deadline_ms: int = 24 * 3600 * 1000
    redis_faults: bool = True
    crashes: bool = True
    clock_steps: bool = True
    purges: bool = True
    hasty: bool = False
    """Whether long times pass seldom."""
    sluggish: bool = False
    """Whether the first worker is mostly frozen, so that others take over from it."""
    unwilling: bool = False
    """Whether processors mostly stay silent or say 500."""
    strict: bool = False
    """Whether processors mostly answer 429 or refuse."""
    slow_claims: bool = False
    """Whether a claim's answer is often long on its way."""
    orders: bool = False
    """Whether an operator chooses processors, pauses and resumes."""
    patient: bool = False
    """Whether payments wait for a processor that is down: every one that isn't preferred is."""
    slower: bool = False
    """Whether the processors become slower, and the workers are replaced by some that know it."""
    deliberate: bool = False
    """Whether the processors decline payments and have some pending."""
    first_tries: bool = False
    """Whether claims open first tries. Never with a replica, which must have a try before it is
    sent."""
    failovers: bool = False
    """Whether Redis has a replica that takes over while the primary lives on."""
    restarts: bool = False
    """Whether the primary comes back before its replica takes over, with all its files or older
    ones."""
    moves: bool = False
    """Whether somebody begins to move the payments' slot to another node, and gives that up."""
    loses_all: bool = False
    """Whether Redis may come back empty, after an accident that nothing survives."""
    misfit: bool = False
    """Whether the second ingress and worker are set to another number of partitions."""
