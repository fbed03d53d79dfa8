"""Group commit: the batch is what arrived during the previous flush."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payswitch.store.group_commit import CommitByNode, GroupCommit
from payswitch.store.partitions import Partition
from tests.support import SLACK_S


@dataclass
class Flush:
    """A flush under way: its items, and the answer that it waits for."""

    items: list[int]
    answer: asyncio.Future[list[str]]

    def succeed(self) -> None:
        """Answer each item with its own text."""
        self.answer.set_result([str(item) for item in self.items])


class Flushes:
    """A flush function whose every call waits until the test answers it."""

    def __init__(self) -> None:
        self.count = 0
        self._begun: asyncio.Queue[Flush] = asyncio.Queue()

    async def __call__(self, items: list[int]) -> Sequence[str]:
        self.count += 1
        answer: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._begun.put_nowait(Flush(items, answer))
        return await answer

    async def next(self) -> Flush:
        """The next flush, once it has begun."""
        return await self._begun.get()


def submit(commits: GroupCommit[int, str], *items: int) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(commits.submit(item)) for item in items]


async def all_have_run() -> None:
    """Let the tasks that were just created take their first step."""
    await asyncio.sleep(0)


async def test_an_idle_group_flushes_at_once() -> None:
    flushes = Flushes()
    [task] = submit(GroupCommit(flushes), 1)
    flush = await flushes.next()
    assert flush.items == [1]
    flush.succeed()
    assert await task == "1"


async def test_what_arrives_together_is_flushed_together() -> None:
    flushes = Flushes()
    submit(GroupCommit(flushes), 1, 2, 3)
    assert (await flushes.next()).items == [1, 2, 3]


async def test_the_batch_is_what_arrived_during_the_previous_flush_in_order() -> None:
    flushes = Flushes()
    commits = GroupCommit(flushes)
    submit(commits, 1)
    first = await flushes.next()
    submit(commits, 4, 2, 3)
    first.succeed()
    assert (await flushes.next()).items == [4, 2, 3]


async def test_one_flush_is_in_flight_at_a_time() -> None:
    flushes = Flushes()
    commits = GroupCommit(flushes, max_batch=1)
    submit(commits, 1, 2, 3)
    await flushes.next()
    submit(commits, 4, 5)
    await all_have_run()
    await all_have_run()
    assert flushes.count == 1


async def test_a_batch_holds_no_more_than_the_maximum() -> None:
    flushes = Flushes()
    commits = GroupCommit(flushes, max_batch=3)
    tasks = submit(commits, *range(7))
    batches = []
    for _ in range(3):
        flush = await flushes.next()
        batches.append(flush.items)
        flush.succeed()
    await asyncio.gather(*tasks)
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]


async def test_each_submitter_gets_the_result_of_its_own_item() -> None:
    flushes = Flushes()
    tasks = submit(GroupCommit(flushes), 7, 7, 5, 6)
    flush = await flushes.next()
    flush.answer.set_result(["a", "b", "c", "d"])
    assert await asyncio.gather(*tasks) == ["a", "b", "c", "d"]


async def test_an_error_reaches_every_submitter_of_its_batch() -> None:
    flushes = Flushes()
    tasks = submit(GroupCommit(flushes), 1, 2)
    problem = OSError("away")
    (await flushes.next()).answer.set_exception(problem)
    assert await asyncio.gather(*tasks, return_exceptions=True) == [problem, problem]


async def test_an_error_reaches_no_submitter_of_the_next_batch() -> None:
    flushes = Flushes()
    commits = GroupCommit(flushes)
    [failing] = submit(commits, 1)
    first = await flushes.next()
    [succeeding] = submit(commits, 2)
    first.answer.set_exception(OSError("away"))
    (await flushes.next()).succeed()
    assert await succeeding == "2"
    with pytest.raises(OSError, match="away"):
        await failing


async def test_a_group_that_was_idle_flushes_again() -> None:
    flushes = Flushes()
    commits = GroupCommit(flushes)
    for item in (1, 2):
        [task] = submit(commits, item)
        (await flushes.next()).succeed()
        assert await task == str(item)


async def test_a_submitter_that_is_cancelled_takes_its_item_with_it() -> None:
    flushes = Flushes()
    commits = GroupCommit(flushes)
    submit(commits, 1)
    first = await flushes.next()
    _, cancelled, _ = submit(commits, 2, 3, 4)
    await all_have_run()
    cancelled.cancel()
    first.succeed()
    assert (await flushes.next()).items == [2, 4]


async def test_a_cancelled_item_leaves_its_place_in_the_batch_to_the_next() -> None:
    flushes = Flushes()
    commits = GroupCommit(flushes, max_batch=2)
    submit(commits, 1)
    first = await flushes.next()
    _, cancelled, _ = submit(commits, 2, 3, 4)
    await all_have_run()
    cancelled.cancel()
    first.succeed()
    assert (await flushes.next()).items == [2, 4]


async def test_nothing_is_flushed_when_all_submitters_are_cancelled() -> None:
    flushes = Flushes()
    commits = GroupCommit(flushes)
    [first_task] = submit(commits, 1)
    first = await flushes.next()
    [cancelled] = submit(commits, 2)
    await all_have_run()
    cancelled.cancel()
    first.succeed()
    await first_task
    [task] = submit(commits, 3)
    (await flushes.next()).succeed()
    await task
    assert flushes.count == 2


@pytest.mark.parametrize("fails", [False, True])
async def test_a_submitter_that_is_cancelled_during_its_flush_disturbs_no_other(
    fails: bool,
) -> None:
    flushes = Flushes()
    commits = GroupCommit(flushes)
    cancelled, other = submit(commits, 1, 2)
    flush = await flushes.next()
    cancelled.cancel()
    await all_have_run()
    problem = OSError("away")
    if fails:
        flush.answer.set_exception(problem)
    else:
        flush.succeed()
    [outcome] = await asyncio.gather(other, return_exceptions=True)
    assert outcome == (problem if fails else "2")


async def test_a_submitter_who_waits_meanwhile_is_not_kept_from_the_next_flush_by_an_error() -> (
    None
):
    flushes = Flushes()
    commits = GroupCommit(flushes, max_batch=1)
    tasks = submit(commits, 1, 2, 3)
    for _ in range(2):
        (await flushes.next()).answer.set_exception(OSError("away"))
    (await flushes.next()).succeed()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, OSError) for result in results] == [True, True, False]


async def test_a_flush_that_answers_too_few_fails_instead_of_leaving_someone_waiting() -> None:
    flushes = Flushes()
    tasks = submit(GroupCommit(flushes), 1, 2)
    (await flushes.next()).answer.set_result(["1"])
    async with asyncio.timeout(SLACK_S):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], Exception)


async def test_who_has_waited_too_long_gets_a_time_out_and_takes_its_item_with_it() -> None:
    flushes = Flushes()
    commits = GroupCommit(flushes, limit_s=0.3)
    submit(commits, 1)
    first = await flushes.next()
    [waiting] = submit(commits, 2)
    with pytest.raises(TimeoutError):
        await waiting
    [later] = submit(commits, 3)
    first.succeed()
    second = await flushes.next()
    assert second.items == [3]
    second.succeed()
    assert await later == "3"


async def test_each_waits_for_its_own_limit() -> None:
    loop = asyncio.get_running_loop()
    flushes = Flushes()
    commits = GroupCommit(flushes, limit_s=0.05)
    began, ended = [], []

    async def wait() -> None:
        began.append(loop.time())
        with pytest.raises(TimeoutError):
            await commits.submit(1)
        ended.append(loop.time())

    async with asyncio.TaskGroup() as group:
        for pause_s in (0, 0.01, 0.02):
            loop.call_later(pause_s, lambda: group.create_task(wait()))
        group.create_task(asyncio.sleep(0.03))
    assert len(ended) == 3
    assert all(end - begin >= 0.049 for begin, end in zip(began, ended, strict=True))


async def test_an_answer_in_time_stands() -> None:
    flushes = Flushes()
    commits = GroupCommit(flushes, limit_s=0.3)
    [early] = submit(commits, 1)
    (await flushes.next()).succeed()
    assert await early == "1"
    [late] = submit(commits, 2)
    with pytest.raises(TimeoutError):
        await late


@given(
    max_batch=st.integers(1, 4),
    steps=st.lists(st.sampled_from(["submit", "submit", "cancel", "succeed", "fail"]), max_size=40),
)
def test_every_item_is_flushed_once_or_withdrawn(max_batch: int, steps: list[str]) -> None:
    asyncio.run(play(max_batch, steps))


async def play(max_batch: int, steps: list[str]) -> None:
    under_way: list[Flush] = []
    flushed: list[int] = []
    failed: set[int] = set()

    async def flush(items: list[int]) -> Sequence[str]:
        flushed.extend(items)
        under_way.append(Flush(items, asyncio.get_running_loop().create_future()))
        return await under_way[-1].answer

    commits: GroupCommit[int, str] = GroupCommit(flush, max_batch=max_batch)
    tasks: list[asyncio.Task[str]] = []
    for step in steps:
        open_ones = [task for task in tasks if not task.done()]
        if step == "submit":
            tasks += submit(commits, len(tasks))
        elif step == "cancel" and open_ones:
            open_ones[len(open_ones) // 2].cancel()
        elif step == "succeed" and under_way:
            under_way.pop().succeed()
        elif step == "fail" and under_way:
            failing = under_way.pop(0)
            failed.update(failing.items)
            failing.answer.set_exception(OSError("away"))
        for _ in range(4):
            await all_have_run()
        assert len(under_way) <= 1
    while under_way:
        under_way.pop().succeed()
        for _ in range(4):
            await all_have_run()
    assert len(flushed) == len(set(flushed))
    for item, task in enumerate(tasks):
        assert task.done()
        if task.cancelled():
            continue
        assert item in flushed
        if item in failed:
            assert isinstance(task.exception(), OSError)
        else:
            assert task.result() == str(item)


async def test_an_error_of_one_item_reaches_its_submitter_alone() -> None:
    async def flush(items: list[int]) -> Sequence[str | Exception]:
        return [ValueError("odd") if item % 2 else str(item) for item in items]

    commits: GroupCommit[int, str] = GroupCommit(flush)
    found = await asyncio.gather(*map(commits.submit, range(4)), return_exceptions=True)
    assert [str(each) for each in found] == ["0", "odd", "2", "odd"]


class Homes:
    """Nodes at which the partitions with even and with odd slots are."""

    def home(self, slot: int) -> str:
        return f"node {slot % 2}"

    async def locate(self, slot: int) -> Any:
        raise NotImplementedError

    async def locate_again(self, slot: int, wrong: Exception) -> Any:
        raise NotImplementedError


async def test_a_slow_node_holds_up_no_other() -> None:
    flushed: list[list[int]] = []

    async def flush(items: list[tuple[Partition, int]]) -> Sequence[str]:
        flushed.append([item for _, item in items])
        if items[0][0].home == "node 0":
            await asyncio.sleep(SLACK_S * 10)
        return [str(item) for _, item in items]

    every = [Partition(n, str(n), cast(Any, None), Homes()) for n in range(8)]
    slow = next(each for each in every if each.home == "node 0")
    fast = [each for each in every if each.home == "node 1"]
    commits: CommitByNode[int, str] = CommitByNode(flush)
    stuck = [asyncio.create_task(commits.submit(slow, n)) for n in range(3)]
    found = await asyncio.gather(*(commits.submit(each, each.number) for each in fast))
    assert found == [str(each.number) for each in fast]
    assert sorted(map(len, flushed)) == sorted([3, len(fast)])  # one flush for a node's partitions
    for task in stuck:
        task.cancel()
    await asyncio.wait(stuck)
