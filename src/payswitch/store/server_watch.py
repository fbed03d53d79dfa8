"""What is known of one Redis server: whether it can be used, and whether it has room."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from payswitch.durability import Durability
from payswitch.store import keys, rights, scripts
from payswitch.store.client import Client
from payswitch.store.errors import (
    BehindError,
    OtherDeploymentError,
    UnconfirmedError,
    WrongServerError,
    in_words,
)
from payswitch.store.memory import Memory, parse_memory
from payswitch.store.partitions import Partition
from payswitch.store.scripts import Script
from payswitch.store.topology import Topology
from payswitch.store.trust import parse_info, risks_of, why_never

logger = logging.getLogger(__name__)

UNSEEN = "it has not been looked at yet"
_RIGHTS_EVERY = 10
"""Looks from one check of the rights to the next: the check takes Redis 0.1 ms."""


@dataclass(frozen=True, slots=True)
class Demands:
    """What a server must have: see `RedisWatch`."""

    currency: str
    must_keep: bool
    durability: Durability
    max_percent: int


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a server says of itself and its partitions."""

    info: Mapping[str, str]
    backlog: int
    currency: bytes
    missing: str
    """Rights, in words."""
    is_behind: bool = False
    """Whether a partition lacks a mark that was confirmed."""


def wrong_currency(held: bytes | None, currency: str) -> str | None:
    """The reason why this process must not use a Redis that holds payments in the currency `held`;
    None if it may. None are held in a Redis that no part has looked at since a purge."""
    if held is None or held == currency.encode():
        return None
    return (
        f"it holds payments in {held[:8].decode(errors='backslashreplace')}, "
        f"and PAYSWITCH_CURRENCY is {currency}"
    )


def _is_behind(answer: Any, known: int) -> bool:
    """Whether a partition that answered so, confirmed or not, lacks a mark that is known."""
    said = answer.answer if isinstance(answer, UnconfirmedError) else answer
    return isinstance(said, list) and int(said[4] or 0) < known


class ServerWatch:
    """The last look at a server. While it is away, the look before stands."""

    def __init__(self, redis: Client, name: str, demands: Demands) -> None:
        """`name` is said in the log; empty for the only server."""
        self.unusable: str | None = UNSEEN
        """The reason why no part can work with it; None if all can."""
        self.is_short = False
        """Whether more than the allowed share of its memory is in use."""
        self.memory = Memory()
        self.backlog = 0
        self.away: str | None = None
        """The reason why it did not answer the last look; None if it did."""
        self.missing = ""
        """The rights that its user lacks, in words."""
        self.risks: list[str] = []
        self.is_checking = False
        """Whether the caller raises what makes it unusable, so that the log need not say it."""
        self._redis = redis
        self._name = name
        self._place = f"{name}: " if name else ""
        self._demands = demands
        self._script: Script = scripts.load(redis, "look")
        self._stop: Script = scripts.load(redis, "stop")
        self._looks = 0
        self._server: Mapping[str, str] | None = None

    @property
    def refusal(self) -> str | None:
        """The reason why no payment may be accepted, by the last look; None if there is none."""
        if self.unusable is UNSEEN and self.away is not None:
            return f"Redis does not answer: {self.away}"
        if self.unusable is not None:
            return f"Redis can't be used: {self.unusable}"
        return "Redis is short of memory" if self.is_short else None

    async def look(self, partitions: Sequence[Partition], limit_s: float) -> None:
        """Look once at its partitions, for `limit_s` at most."""
        try:
            async with asyncio.timeout(limit_s):
                await self._judge_again(partitions)
        except WrongServerError as error:
            if error.is_starting:
                self.note_away(error)
            else:
                self._set_unusable(in_words(error))
        except (ResponseError, UnconfirmedError) as error:
            self._set_unusable(in_words(error))
        except (RedisError, OSError) as error:
            self.note_away(error)

    def note_away(self, error: Exception) -> None:
        """Note that it did not answer; log it once until a look succeeds."""
        if self.away is None:
            logger.warning("redis is away: %(error)s", {"error": self._place + in_words(error)})
        self.away = in_words(error)

    def judge_config_again(self) -> None:
        """At the next look: other servers may replicate it now."""
        self._server = None

    async def _judge_again(self, partitions: Sequence[Partition]) -> None:
        asks_for_rights = self._looks % _RIGHTS_EVERY == 0 or self.unusable is not None
        answer = await self._ask(partitions, asks_for_rights)
        self._looks += 1
        if answer.is_behind:
            await self._stop_partitions()
            return
        if self.away is not None:
            self.away = None
            logger.info("redis is back")
        is_new = self._server is None or answer.info.get("run_id") != self._server.get("run_id")
        if is_new and not asks_for_rights:
            answer = await self._ask(partitions, True)
        self.missing = answer.missing
        if self.missing:
            self._set_unusable(f"its user lacks rights that Payswitch needs: {self.missing}")
            return
        if is_new:
            await self._judge_server(partitions[0], answer.info)
        self.backlog = answer.backlog
        risks = "; ".join(self.risks) if self._demands.must_keep else ""
        other = wrong_currency(answer.currency, self._demands.currency)
        never = why_never(answer.info, in_cluster=bool(partitions[0].tag))
        self._set_unusable(never or other or risks or None)
        self.memory = parse_memory(answer.info)
        self._set_short(
            self.memory.is_short(max_percent=self._demands.max_percent, was_short=self.is_short)
        )

    async def _ask(self, partitions: Sequence[Partition], asks_for_rights: bool) -> _Answer:
        known = [self._redis.marks.known(each) for each in partitions]
        try:
            answers = await self._call(partitions, asks_for_rights)
        except WrongServerError:
            # The name may lead to another server by now.
            answers = await self._call(partitions, asks_for_rights)
        except NoPermissionError as error:
            if "key" not in str(error):
                raise
            return _Answer({}, 0, b"", f"~{rights.pattern_of(keys.GENERATION)}")
        if any(map(_is_behind, answers, known)):
            return _Answer({}, 0, b"", "", is_behind=True)
        [info, _, currency, missing, _], *_ = scripts.require_all(answers)
        currencies = [answer[2] for answer in answers]
        other = [each for each in currencies if each != self._demands.currency.encode()]
        words = [each.decode() for each in missing]
        pairs = list(zip(words[::2], words[1::2], strict=True))
        return _Answer(
            info=parse_info(info.decode(errors="replace")),
            backlog=min(answer[1] for answer in answers) * len(self._script.partitions),
            currency=other[0] if other else currency,
            missing=rights.in_acl_words(pairs) if pairs else "",
        )

    async def _call(self, partitions: Sequence[Partition], asks_for_rights: bool) -> list[Any]:
        currency = self._demands.currency
        first, *others = partitions
        needed = rights.arguments(in_cluster=bool(first.tag)) if asks_for_rights else []
        calls = [(first, [currency, "info", *needed])]
        calls += [(each, [currency, ""]) for each in others]
        # Confirmed: while replicas lag, no route would be confirmed, so nothing is claimed.
        answers = await self._script.call_each(calls, confirm=True)
        if isinstance(answers[0], WrongServerError | NoPermissionError):
            raise answers[0]
        return answers

    async def _stop_partitions(self) -> None:
        """Let all parts refuse the partitions of this node, which came back without something that
        it had confirmed; not if it is a former primary, which others know to serve nothing. Raises
        `BehindError`."""
        topology = self._redis.nodes
        assert isinstance(topology, Topology)
        own = [each for each in self._redis.partitions.with_common if each.home == self._name]
        await topology.read_again()
        if any(each.home != self._name for each in own):
            return
        for each in own:
            with contextlib.suppress(OtherDeploymentError):  # another part has stopped it
                await self._stop(at=each, follow=False)
        logger.error(
            "redis: %(address)s came back older than what it had confirmed, so payments are lost: "
            "its partitions are stopped",
            {"address": self._name},
        )
        raise BehindError

    async def _judge_server(self, partition: Partition, info: Mapping[str, str]) -> None:
        """Judge a server that is new since the last look."""
        risks = await risks_of(self._redis, partition, info, self._demands.durability)
        before = self._server
        self._server = info
        is_news = before is not None or risks != self.risks
        self.risks = risks
        if before is not None:
            self._redis.epoch.end()
            if before.get("master_replid") == info.get("master_replid2"):
                logger.warning("redis: a replica has taken the place of the one that was there")
            else:
                logger.warning("redis has restarted, or another one is there in its place")
        if is_news and not self._demands.must_keep:
            for risk in risks:
                logger.warning("redis: %(risk)s", {"risk": self._place + risk})

    def _set_unusable(self, reason: str | None) -> None:
        is_raised = self.is_checking and not self.missing
        if reason is not None and reason != self.unusable and not is_raised:
            logger.warning("redis can't be used: %(reason)s", {"reason": self._place + reason})
        elif reason is None and self.unusable not in (None, UNSEEN):
            logger.info("redis can be used again")
        self.unusable = reason

    def _set_short(self, is_short_now: bool) -> None:
        if is_short_now and not self.is_short:
            logger.warning(
                "redis uses over %(percent)d %% of its maxmemory: new payments are refused",
                {"percent": self._demands.max_percent},
            )
        elif self.is_short and not is_short_now:
            logger.info("redis has memory again: new payments are taken")
        self.is_short = is_short_now
