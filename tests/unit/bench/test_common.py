"""The statistics that all benches share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from bench import common
from bench.common import Line, Measure, Result, Spread, Values, ratio, spread, take_turns, turns

JOBS = Measure("jobs", "jobs/s", more_is_better=True)
CPU = Measure("cpu", "CPU (us)", digits=1)


def result(rounds: dict[str, list[Values]]) -> Result:
    return Result("try", "A try", [JOBS, CPU], rounds, notes=["[a] note"])


def test_a_spread_is_the_median_with_the_smallest_and_the_largest() -> None:
    assert spread([5.0, 1.0, 100.0]) == Spread(5.0, 1.0, 100.0)
    assert spread([4.0, 2.0]) == Spread(3.0, 2.0, 4.0)


def test_nothing_measured_has_no_spread() -> None:
    with pytest.raises(ValueError, match="no median"):
        spread([])


def test_a_ratio_is_taken_within_each_round() -> None:
    slow_second_round = [100.0, 10.0, 100.0]
    assert ratio([300.0, 30.0, 500.0], slow_second_round) == Spread(3.0, 3.0, 5.0)


def test_rounds_that_do_not_pair_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0], [1.0, 2.0])


def test_every_second_round_goes_backwards() -> None:
    assert [turns("abc", number) for number in range(3)] == ["abc", "cba", "abc"]


def test_turns_keep_each_contenders_values_by_round(capfd: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    def contender(name: str) -> Callable[[], Values]:
        def run() -> Values:
            calls.append(name)
            return {"jobs": len(calls)}

        return run

    rounds = take_turns({name: contender(name) for name in "ab"}, rounds=2, title="try")
    assert calls == ["a", "b", "b", "a"]
    assert rounds == {"a": [{"jobs": 1}, {"jobs": 4}], "b": [{"jobs": 2}, {"jobs": 3}]}
    assert capfd.readouterr().out == ""


def test_a_document_holds_every_round_and_the_ratios_but_no_place() -> None:
    rounds: dict[str, list[Values]] = {
        "stock": [{"jobs": 10, "cpu": 4}, {"jobs": 20, "cpu": 4}],
        "ours": [{"jobs": 100}, {"jobs": 300}],
    }
    document = result(rounds).as_document()
    assert document["baseline"] == "stock"
    assert document["contenders"]["ours"] == {
        "jobs": {
            "title": "jobs/s",
            "rounds": [100, 300],
            "median": 200,
            "low": 100,
            "high": 300,
            "timesBaseline": {"median": 12.5, "low": 10, "high": 15},
        }
    }
    text = orjson.dumps(document).decode()
    assert os.uname().nodename not in text
    assert str(Path.cwd()) not in text


def test_a_baseline_that_measured_nothing_gives_no_ratio() -> None:
    rounds: dict[str, list[Values]] = {"stock": [{"jobs": 0}], "ours": [{"jobs": 5}]}
    assert result(rounds).ratio("ours", "jobs") is None


def test_table_picture_and_file_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    rounds: dict[str, list[Values]] = {"stock": [{"jobs": 10, "cpu": 4}], "ours": [{"jobs": 1234}]}
    common.publish(result(rounds), pictured=["jobs", "cpu"])
    shown = capsys.readouterr().out
    assert "1,234" in shown
    assert "123.40" in shown
    assert "[a] note" in shown
    assert orjson.loads((tmp_path / "results/try.json").read_bytes())["bench"] == "try"
    assert (tmp_path / "results/try.png").read_bytes().startswith(b"\x89PNG")


def test_lines_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    line = Line("ours", [(1, Spread(2, 1, 3)), (1000, Spread(3, 2, 4))])
    picture = common.draw_lines("try", "A try", [line], x="in flight", y="us", log_y=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_cpu_time_of_this_process_and_of_another_grows_with_work() -> None:
    before = common.cpu_s()
    sum(range(10**6))
    assert common.cpu_s() > before
    busy = "import sys\nsum(range(3 * 10**6))\nprint(flush=True)\nsys.stdin.read()"
    pipe = subprocess.PIPE
    ended_before = common.children_cpu_s()
    with subprocess.Popen([sys.executable, "-c", busy], stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert common.cpu_s(child.pid) > 0
    assert common.children_cpu_s() > ended_before
