"""The processors that this Redis' payments may be with, by name and address.

An open try is resolved by asking its processor, which is known by its name. So a processor that
payments are pinned to can't be dropped, nor its name given to another provider: a worker with such
settings refuses to start.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from payswitch.errors import StartError
from payswitch.payments.audit import Signature
from payswitch.payments.records import Record, read_records
from payswitch.processor_url import parse_processor_url
from payswitch.store import keys, scripts
from payswitch.store.errors import in_words
from payswitch.store.scanning import pages

_PAGE = 500
_PAUSE_S = 0.2


class StrandedPaymentsError(StartError):
    """Payments are pinned to a processor that the settings drop or point elsewhere."""


@dataclass(frozen=True, slots=True)
class KnownProcessor:
    """A processor by its name in the settings or in Redis. Addresses are without credentials."""

    name: str
    here: str | None
    """Its address in these settings; None if they don't name it."""
    known: str | None
    """Its address when a worker last started; None if none knew it."""


class KnownProcessors:
    """Compares the settings' processors, URL by name, with those that Redis knows. Every method
    raises `RedisError` or `OSError` if Redis fails."""

    def __init__(self, redis: Redis, urls: Mapping[str, str]) -> None:
        self._redis = redis
        self._here = {name: parse_processor_url(url).base for name, url in urls.items()}
        self._know = scripts.load(redis, "know")
        self._partitions = self._know.partitions
        self._key = self._partitions.common.key(keys.PROCESSORS)

    async def check(self) -> None:
        """Let Redis know the settings' processors; waits while Redis is away. Raises
        `StrandedPaymentsError` if payments are pinned to one that they drop or point elsewhere, and
        `StartError` if Redis refuses; then nothing changes."""
        while True:
            try:
                return await self._check()
            except ResponseError as error:
                raise StartError(f"Redis refuses: {in_words(error)}") from None
            except (RedisError, OSError):
                await asyncio.sleep(_PAUSE_S)

    async def _check(self) -> None:
        compared = await self.compare()
        changed = [each for each in compared if each.known is not None and each.here != each.known]
        pins = await self.pinned() if changed else {}
        for each in changed:
            if each.name in pins:
                raise StrandedPaymentsError(_why(each, *pins[each.name]))
        if any(each.here != each.known for each in compared):
            await self._write(self._here, "", "", Signature(""))

    async def compare(self) -> list[KnownProcessor]:
        """The settings' processors in order of preference, then others that Redis knows."""
        raw = cast(Mapping[bytes, bytes], await self._redis.hgetall(self._key))  # type: ignore[misc]
        known = {_text(name): _text(url) for name, url in raw.items()}
        names = dict.fromkeys([*self._here, *sorted(known)])
        return [KnownProcessor(name, self._here.get(name), known.get(name)) for name in names]

    async def moved(self, name: str, signature: Signature) -> bool:
        """An operator says that the provider is the same at its new address; False if Redis knows
        it there already, or not at all, or if the settings don't name it."""
        compared = {each.name: each for each in await self.compare()}
        each = compared.get(name)
        if each is None or each.here is None or each.known in (None, each.here):
            return False
        known = {one.name: one.known for one in compared.values() if one.known is not None}
        what = f"{name}: {each.known} is now {each.here}"
        await self._write({**known, name: each.here}, "moved", what, signature)
        return True

    async def pinned(self) -> dict[str, tuple[int, int]]:
        """By processor, where there are any: the unpaid payments with open tries, and the dead
        letters that were sent there, as a replay asks it. This reads every unpaid payment's record.
        """
        unpaid: Counter[str] = Counter()
        dead: Counter[str] = Counter()
        async for record in self._records(keys.OPEN):
            if record.processor is not None and record.open_tries:
                unpaid[record.processor] += 1
        async for record in self._records(keys.DEAD):
            if record.processor is not None:
                dead[record.processor] += 1
        return {name: (unpaid[name], dead[name]) for name in unpaid | dead}

    async def _records(self, key: str) -> AsyncIterator[Record]:
        for partition in self._partitions:
            scan = partial(partition.redis.zscan, partition.key(key), count=_PAGE)
            async for page in pages(scan):
                ids = [partition.correlation_id(member) for member, _ in page]
                for record in await read_records(self._redis, ids):
                    if isinstance(record, Record):
                        yield record

    async def _write(
        self, urls: Mapping[str, str], act: str, what: str, signature: Signature
    ) -> None:
        pairs = [part for pair in urls.items() for part in pair]
        args = [act, signature.by, what, signature.reason or "", *pairs]
        await self._know(keys=[self._key], args=args)


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _why(each: KnownProcessor, unpaid: int, dead: int) -> str:
    stranded = f"{unpaid} payments with open tries and {dead} dead letters are"
    if each.here is None:
        return (
            f"PAYSWITCH_PROCESSORS does not name {each.name}, but {stranded} with it: name it "
            "until they are settled or resolved"
        )
    variable = f"PAYMENT_PROCESSOR_URL_{each.name.upper()}"
    return (
        f"{variable} is {each.here} instead of {each.known}, but {stranded} with {each.name}: if "
        f"the provider is the same, say `payswitch processors moved {each.name}`; else give the "
        "new one a name of its own, and name both until they are settled or resolved"
    )
