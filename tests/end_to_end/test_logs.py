"""The log of the whole system as JSON: all of it, and nothing of a payment in it."""

from __future__ import annotations

import json
import signal
from typing import Any

from tests.end_to_end.conftest import StartSystem
from tests.end_to_end.harness import ENDPOINT

CENTS = 73_412_981
OTHERS = {"haproxy", "redis", "payswitch"}
PARTS = {*ENDPOINT, "worker-1", "health", "default", "fallback"} - OTHERS


async def test_every_line_is_json_and_payments_that_go_their_way_are_not_logged(
    start_system: StartSystem,
) -> None:
    system = start_system("--workers=1", PAYSWITCH_LOG_FORMAT="json", PAYSWITCH_LOG_LEVEL="debug")
    paid = [await system.pay(CENTS) for _ in range(20)]
    await system.settled(*paid)
    assert system.stop(signal.SIGINT) == 0
    lines = system.output.splitlines()
    documents: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert {document["part"] for document in documents} <= PARTS | OTHERS
    ours = [document for document in documents if document["part"] in PARTS]
    assert {document["part"] for document in ours} == PARTS
    assert all(document["event"] and document["level"] for document in ours)
    assert any(document["message"].startswith("Payswitch is ready") for document in documents)
    assert not [line for line in lines if str(CENTS) in line or f"{CENTS / 100}" in line]
    # What the usual level shows: each part says that it is there; payments add nothing.
    shown = [document for document in ours if document["level"] != "debug"]
    assert not [each for each in shown if any(payment in str(each) for payment in paid)]
    assert len(shown) < len(PARTS) * 5
