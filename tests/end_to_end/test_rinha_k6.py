"""k6 plays a scored run against the real system, where there is k6."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import orjson
import pytest

import bench.rinha
from bench.rinha import processes
from bench.rinha.scenario import PROCESSORS, load_scenario
from bench.rinha.score import judge
from bench.rinha.site import Site
from payswitch.money import Total

SCRIPT = Path(bench.rinha.__file__).with_name("k6.js")

pytestmark = pytest.mark.skipif(shutil.which("k6") is None, reason="no k6 here")


async def play(site: Site, name: str, result: Path) -> None:
    variables = {
        "SCENARIO": name,
        "TIME_SCALE": "0.05",
        "ENDPOINT": site.endpoint,
        "RESULT": str(result),
        **{f"PROCESSOR_{each.upper()}": site.processors[each] for each in PROCESSORS},
    }
    k6 = await asyncio.create_subprocess_exec(
        "k6", "run", "--quiet", "--no-usage-report", str(SCRIPT), env={**os.environ, **variables}
    )
    assert await k6.wait() == 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["preview", "final"])
def test_k6_scores_what_it_played_as_we_do(name: str, tmp_path: Path) -> None:
    async def serve_and_play() -> None:
        async with processes.serving(tmp_path) as site:
            await play(site, name, tmp_path / "k6.json")

    asyncio.run(serve_and_play())
    found = orjson.loads((tmp_path / "k6.json").read_bytes())
    assert found["accepted"] > 300, found
    processed = {
        each: Total(totals["totalRequests"], round(totals["totalAmount"] * 100))
        for each, totals in found["processed"].items()
    }
    ours = judge(
        load_scenario(name),
        processed=processed,
        accepted=found["accepted"],
        inconsistencies=found["inconsistencies"],
        p99_ms=found["p99"],
    )
    assert (found["lag"], found["bonus"]) == (ours.lag, float(ours.bonus))
    assert (found["net"], found["score"]) == (float(ours.net), float(ours.value))
