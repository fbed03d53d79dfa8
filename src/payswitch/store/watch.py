"""Checks twice a second whether Redis can be used, so that no payment waits for the check.

An ingress accepts a payment only if a worker could take it: Redis must take writes, grant its user
every right that some part needs, hold payments of the same currency, have room, and, with
`PAYSWITCH_REDIS_TRUST=require`, keep what `PAYSWITCH_DURABILITY` promises. Workers may be absent:
they pay when they come back.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from payswitch.durability import Durability
from payswitch.store import keys, rights, scripts
from payswitch.store.client import Client
from payswitch.store.errors import WrongServerError, in_words
from payswitch.store.memory import Memory, parse_memory
from payswitch.store.periodic import Periodic
from payswitch.store.trust import (
    UntrustworthyRedisError,
    config_risks,
    judge_server,
    parse_info,
    why_never,
)

logger = logging.getLogger(__name__)

_EVERY_S = 0.5
_LIMIT_S = 1.0
_FRESH_S = 0.05
"""A look that ended this recently still counts as current."""
_UNSEEN = "it has not been looked at yet"
_RIGHTS_EVERY = 10
"""Looks from one check of the rights to the next: the check takes Redis 0.1 ms."""


def wrong_currency(held: bytes | None, currency: str) -> str | None:
    """The reason why this process must not use a Redis that holds payments in the currency `held`;
    None if it may. None are held in a Redis that no part has looked at since a purge."""
    if held is None or held == currency.encode():
        return None
    return (
        f"it holds payments in {held[:8].decode(errors='backslashreplace')}, "
        f"and PAYSWITCH_CURRENCY is {currency}"
    )


class RedisWatch(Periodic):
    """Looks at Redis twice a second, and on request. While Redis is away, the last look stands.

    `currency` is the code of this process' currency, by which it reads and writes amounts.
    `max_percent` is the share of `maxmemory` up to which payments are accepted. With `demand`, a
    Redis is refused that may keep less than `durability` promises.
    """

    def __init__(
        self,
        redis: Client,
        *,
        currency: str,
        demand: bool,
        durability: Durability = Durability.DISK,
        max_percent: int = 100,
        max_backlog: float = math.inf,
    ) -> None:
        super().__init__("look at redis", _EVERY_S)
        self.unusable: str | None = _UNSEEN
        """The reason why no part can work with Redis; None if all can."""
        self.is_short = False
        """Whether more than `max_percent` of its memory is in use."""
        self.durability = durability
        """What a 202 stands for, if it `is_kept`."""
        self.memory = Memory()
        self._redis = redis
        self._currency = currency
        self._demand = demand
        self._max_percent = max_percent
        self._max_backlog = max_backlog
        self._backlog = 0
        self._away: str | None = None
        self._script = scripts.load(redis, "look")
        self._looks = 0
        self._missing = ""
        self._is_checking = False
        self._risks: list[str] = []
        self._server: Mapping[str, str] | None = None
        self._look: asyncio.Task[None] | None = None
        self._looked_at = -math.inf

    @property
    def refusal(self) -> str | None:
        """The reason why no payment may be accepted, by the last look; None if there is none."""
        if self.unusable is _UNSEEN and self._away is not None:
            return f"Redis does not answer: {self._away}"
        if self.unusable is not None:
            return f"Redis can't be used: {self.unusable}"
        return "Redis is short of memory" if self.is_short else None

    @property
    def is_kept(self) -> bool:
        """Whether Redis keeps what the durability promises, by the last look; the log has its
        risks."""
        return not self._risks

    @property
    def not_ready(self) -> str | None:
        """The reason why this process is not ready to accept payments; None if it is."""
        if self._away is not None:
            return f"Redis does not answer: {self._away}"
        if self.refusal is None and self._backlog >= self._max_backlog:
            return "too many payments wait"
        return self.refusal

    async def turn(self) -> None:
        """Look once."""
        await self.look()

    async def close(self) -> None:
        """Stop looking."""
        await super().close()
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait([self._look])

    async def until_usable(self) -> None:
        """Wait until Redis can be used; the log gives the reason. Raises
        `UntrustworthyRedisError` as `check_trust` does."""
        while True:
            await self.check_trust()
            if self.unusable is None:
                return
            await asyncio.sleep(_EVERY_S)

    async def check_trust(self) -> None:
        """Look, and with `demand` wait until Redis has answered. Raises `UntrustworthyRedisError`
        if `demand` is set and Redis may keep less than the durability promises."""
        self._is_checking = self._demand
        await self.look()
        while self._demand and self._away is not None:
            await asyncio.sleep(_EVERY_S)
            await self.look()
        self._is_checking = False
        if self._demand and self.unusable is not None and not self._missing:
            raise UntrustworthyRedisError(f"Redis can't be used: {self.unusable}")

    async def look(self) -> None:
        """Look once, for a second at most; concurrent callers share one look."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._look_once(), name="look at redis")
        await asyncio.shield(self._look)

    async def look_again(self) -> None:
        """Look, unless a look has just ended."""
        if asyncio.get_running_loop().time() - self._looked_at >= _FRESH_S:
            await self.look()

    def note_away(self, error: Exception) -> None:
        """Note that Redis did not answer; log it once until a look succeeds."""
        if self._away is None:
            logger.warning("redis is away: %(error)s", {"error": in_words(error)})
        self._away = in_words(error)

    async def _look_once(self) -> None:
        try:
            async with asyncio.timeout(_LIMIT_S):
                await self._judge_again()
        except WrongServerError as error:
            if error.is_starting:
                self.note_away(error)
            else:
                self._set_unusable(in_words(error))
        except ResponseError as error:
            self._set_unusable(in_words(error))
        except (RedisError, OSError) as error:
            self.note_away(error)
        self._looked_at = asyncio.get_running_loop().time()

    async def _judge_again(self) -> None:
        asks_for_rights = self._looks % _RIGHTS_EVERY == 0 or self.unusable is not None
        info, backlog, currency, missing = await self._ask(asks_for_rights)
        self._looks += 1
        if self._away is not None:
            self._away = None
            logger.info("redis is back")
        is_new = self._server is None or info.get("run_id") != self._server.get("run_id")
        if is_new and not asks_for_rights:
            *_, missing = await self._ask(True)
        self._missing = missing
        if missing:
            self._set_unusable(f"its user lacks rights that Payswitch needs: {missing}")
            return
        if is_new:
            await self._judge_server(info)
        self._backlog = backlog
        risks = "; ".join(self._risks) if self._demand else ""
        other = wrong_currency(currency, self._currency)
        self._set_unusable(why_never(info) or other or risks or None)
        self.memory = parse_memory(info)
        self._set_short(
            self.memory.is_short(max_percent=self._max_percent, was_short=self.is_short)
        )

    async def _ask(self, asks_for_rights: bool) -> tuple[dict[str, str], int, bytes, str]:
        """The fields of `INFO`, the length of the backlog, the currency in Redis, and the missing
        rights in words."""
        args = [self._currency, *(rights.arguments() if asks_for_rights else ())]
        try:
            answer = await self._script(args=args)
        except WrongServerError:
            answer = await self._script(args=args)  # the name may lead to another server by now
        except NoPermissionError as error:
            if "key" not in str(error):
                raise
            return {}, 0, b"", f"~{rights.pattern_of(keys.GENERATION)}"
        info, backlog, currency, missing = answer
        words = [each.decode() for each in missing]
        pairs = list(zip(words[::2], words[1::2], strict=True))
        fields = parse_info(info.decode(errors="replace"))
        return fields, backlog, currency, rights.in_acl_words(pairs)

    async def _judge_server(self, info: Mapping[str, str]) -> None:
        """Judge a server that is new since the last look."""
        risks = [*judge_server(info), *await config_risks(self._redis, self.durability)]
        before = self._server
        self._server = info
        self._risks = risks
        if before is not None:
            self._redis.epoch.end()
            if before.get("master_replid") == info.get("master_replid2"):
                logger.warning("redis: a replica has taken the place of the one that was there")
            else:
                logger.warning("redis has restarted, or another one is there in its place")
        if not self._demand:
            for risk in risks:
                logger.warning("redis: %(risk)s", {"risk": risk})

    def _set_unusable(self, reason: str | None) -> None:
        is_raised = self._is_checking and not self._missing
        if reason is not None and reason != self.unusable and not is_raised:
            logger.warning("redis can't be used: %(reason)s", {"reason": reason})
        elif reason is None and self.unusable not in (None, _UNSEEN):
            logger.info("redis can be used again")
        self.unusable = reason

    def _set_short(self, is_short_now: bool) -> None:
        if is_short_now and not self.is_short:
            logger.warning(
                "redis uses over %(percent)d %% of its maxmemory: new payments are refused",
                {"percent": self._max_percent},
            )
        elif self.is_short and not is_short_now:
            logger.info("redis has memory again: new payments are taken")
        self.is_short = is_short_now
