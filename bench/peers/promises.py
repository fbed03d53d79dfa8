"""What each contender of `bench.peers` promises, as its configuration there has it.

BullMQ: https://docs.bullmq.io/guide/jobs/stalled, https://docs.bullmq.io/guide/retrying-failing-jobs;
asynq: its README, https://github.com/hibiken/asynq/wiki/Task-Retry, and its `recoverer.go`.
"""

from __future__ import annotations

from collections.abc import Mapping

PROMISES: Mapping[str, Mapping[str, str]] = {
    "the 202 means": {
        "bullmq": "Redis has synced it to disk",
        "asynq": "Redis has synced it to disk",
        "payswitch": "Redis has synced it to disk",
    },
    "a payment is paid": {
        "bullmq": "at least once",
        "asynq": "at least once",
        "payswitch": "exactly once",
    },
    "the same id again, within 7 days": {
        "bullmq": "changes nothing, whatever the amount",
        "asynq": "changes nothing, whatever the amount",
        "payswitch": "changes nothing; another amount is refused",
    },
    "the worker dies after it sent": {
        "bullmq": "sent again after 30 to 60 s; failed at the second death",
        "asynq": "sent again after 1 to 3 minutes",
        "payswitch": "another one asks the processor after 15 s, then sends to it alone",
    },
    "the processor's answer is lost": {
        "bullmq": "sent again, 15 times in all; then failed, paid or not",
        "asynq": "sent again, 26 times in all; then archived, paid or not",
        "payswitch": "the processor is asked; no other one pays while it may have it",
    },
    "a frozen worker goes on after another took over": {
        "bullmq": "it sends, too",
        "asynq": "it may send, too",
        "payswitch": "it sends nothing",
    },
    "no more tries": {
        "bullmq": "failed, kept",
        "asynq": "archived, 10,000 tasks at most, for 90 days",
        "payswitch": "dead letter, kept until it is replayed or resolved",
    },
    "the processor is down": {
        "bullmq": "waits for it, up to 4.5 hours",
        "asynq": "waits for it, up to 20 days",
        "payswitch": "goes to another one",
    },
    "what was paid, in all and in a window": {
        "bullmq": "not known",
        "asynq": "not known",
        "payswitch": "a ledger, written in one step with the settlement",
    },
}
"""What each promises, by question and contender."""
