"""The rules of `payswitch certify`, against both simulators and against providers that break one
rule each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from payswitch.operations.certification import (
    RULES,
    Certification,
    RuleResult,
    Ruling,
    Sandbox,
    UnreachableError,
)
from payswitch.processors.processor import make_processors, make_transport
from payswitch.settings import ProcessorSettings, Settings
from payswitch.simulator.dialect import SimulatorConfig
from payswitch.simulator.server import DIALECTS, Simulator
from tests.integration.operations import providers
from tests.integration.operations.providers import DECLINED, MAX_DELAY_MS, TOKEN, Provider
from tests.support import free_port

PROCESSOR = ProcessorSettings("provider", connector="charges", token=TOKEN)


@contextlib.asynccontextmanager
async def sandbox(processor: ProcessorSettings, **others: Any) -> AsyncIterator[Sandbox]:
    """The provider that these settings name, with short times."""
    settings = replace(Settings(), processors=(processor,), processor_max_delay_ms=MAX_DELAY_MS)
    strangers = replace(settings, processors=(replace(processor, token="wrong"),))
    transport = make_transport(settings)
    [ours], [theirs] = (make_processors(each, transport).values() for each in (settings, strangers))
    yield Sandbox(
        processor.url, ours, theirs, max_delay_ms=MAX_DELAY_MS, health_pace_s=0.0, **others
    )
    await transport.aclose()


async def certified(provider: Provider, connector: str = "charges") -> dict[str, RuleResult]:
    async with provider.running():
        processor = replace(PROCESSOR, url=provider.url, connector=connector)
        async with sandbox(processor, declined_cents=DECLINED) as made:
            return {each.rule: each for each in await Certification(made).run()}


ALSO: dict[type[Provider], set[str]] = {
    providers.RecordsARepeat: {"hang-up"},
    providers.RecordsAtTheSameTime: {"hang-up"},
}
"""Rules that a provider breaks as well, if the time is right."""


def broken(results: dict[str, RuleResult]) -> set[str]:
    return {name for name, each in results.items() if each.ruling is Ruling.FAIL}


def unchecked(results: dict[str, RuleResult]) -> set[str]:
    return {name for name, each in results.items() if each.ruling is Ruling.UNCHECKED}


async def test_a_provider_that_keeps_every_rule_passes_with_what_was_seen() -> None:
    results = await certified(Provider())
    assert (broken(results), unchecked(results)) == (set(), set())
    assert list(results) == [rule.name for rule in RULES]
    assert results["tls"].ruling is Ruling.WARNING
    assert all(each.measured for each in results.values())
    assert results["hang-up"].measured.startswith("recorded once; ")
    assert "the last within" in results["given-up"].measured
    assert results["token"].measured == "ended with status 401, and nothing is recorded"
    assert (
        results["decline"].measured
        == "declined (card_declined); sent again: declined (card_declined)"
    )


async def test_a_provider_that_decides_later_passes() -> None:
    results = await certified(providers.DecidesLater())
    assert (broken(results), unchecked(results)) == (set(), set())


@pytest.mark.parametrize("protocol", DIALECTS)
@pytest.mark.parametrize("delay_ms", [0, 40])
async def test_both_simulators_pass(protocol: str, delay_ms: int) -> None:
    config = SimulatorConfig("provider", token=TOKEN, rate_limit_s=0, delay_ms=delay_ms)
    simulator = Simulator(config, DIALECTS[protocol])
    url = f"http://127.0.0.1:{await simulator.start('127.0.0.1', 0)}"
    async with sandbox(replace(PROCESSOR, url=url, connector=protocol)) as made:
        results = {each.rule: each for each in await Certification(made).run()}
    await simulator.close()
    assert broken(results) == set()
    assert unchecked(results) == {"decline", *(["token"] if protocol == "rinha" else [])}


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        (providers.RecordsARepeat, {"repeat"}),
        (providers.RecordsAtTheSameTime, {"simultaneous"}),
        (providers.ForgetsKeysOfAHangUp, {"hang-up"}),
        (providers.DeniesWhatItHas, {"find-recorded"}),
        (providers.FindsLate, {"find-recorded"}),
        (providers.LosesWhatIsPending, {"pays", "find-recorded"}),
        (providers.FindsAnything, {"find-unknown"}),
        (providers.RecordsAfterItsDelay, {"given-up"}),
        (providers.AddsACent, {"amount"}),
        (providers.MovesTheInstant, {"amount"}),
        (providers.ThanksForAnything, {"invalid"}),
        (providers.HasNoHealth, {"health"}),
        (providers.SaysThatItFails, {"health"}),
        (providers.LimitsHealthTooHard, {"health"}),
        (providers.PaysWhatItDeclined, {"decline"}),
        (providers.TakesAnyToken, {"token"}),
        (providers.CountsTwice, {"books"}),
        (providers.DeclinesAll, {"pays"}),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else "",
)
async def test_a_provider_that_breaks_a_rule_fails_by_it(
    kind: type[Provider], rules: set[str]
) -> None:
    results = await certified(kind())
    assert rules <= broken(results) <= rules | ALSO.get(kind, set()), results


WITHOUT_TOTALS = "tests.integration.operations.providers:WithoutTotals"


async def test_without_totals_one_reference_in_all_answers_is_what_can_be_seen() -> None:
    results = await certified(Provider(), WITHOUT_TOTALS)
    assert (broken(results), unchecked(results)) == (set(), {"books"})
    for rule in ("repeat", "simultaneous", "hang-up"):
        assert results[rule].measured.startswith("one reference in all answers (no totals")


@pytest.mark.parametrize(
    ("kind", "rule", "seen"),
    [
        (providers.RecordsARepeat, "repeat", "2 charges for one reference"),
        (providers.NewIdForARepeat, "repeat", "it has several references: "),
    ],
)
async def test_without_totals_what_is_recorded_twice_is_seen_by_its_references(
    kind: type[Provider], rule: str, seen: str
) -> None:
    results = await certified(kind(), WITHOUT_TOTALS)
    assert results[rule].ruling is Ruling.FAIL
    assert seen in results[rule].measured


async def test_without_totals_and_references_nothing_can_be_said() -> None:
    connector = "tests.integration.operations.providers:WithoutTotalsAndReferences"
    results = await certified(Provider(), connector)
    assert broken(results) == set()
    assert unchecked(results) == {"books", "repeat", "simultaneous", "hang-up"}


async def test_https_passes() -> None:
    async with sandbox(replace(PROCESSOR, url="https://sandbox.example")) as made:
        [tls] = [rule for rule in RULES if rule.name == "tls"]
        ruling, _ = await tls.check(Certification(made))
    assert ruling is Ruling.PASS


async def test_a_provider_that_is_not_there_can_not_be_certified() -> None:
    for connector in DIALECTS:
        nowhere = f"http://127.0.0.1:{free_port()}"
        async with sandbox(replace(PROCESSOR, url=nowhere, connector=connector)) as made:
            with pytest.raises(UnreachableError):
                await Certification(made).run()
