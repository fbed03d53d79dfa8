"""`payswitch certify`: whether a provider keeps what exactly-once rests on."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from payswitch.cli.main import fail
from payswitch.cli.output import print_json, print_table, progress
from payswitch.operations.certification import (
    AMOUNTS,
    RULES,
    Certification,
    RuleResult,
    Ruling,
    Sandbox,
    UnreachableError,
)
from payswitch.processors.processor import make_processors, make_transport
from payswitch.settings import ProcessorSettings, Settings, SettingsError
from payswitch.text import printable, shown

_UNREACHABLE = 2
_WRONG_TOKEN = "payswitch-certify-wrong-token"


@click.command()
@click.argument("url")
@click.option("--connector", required=True, help="The provider's protocol, as in the settings.")
@click.option(
    "--name",
    default="provider",
    show_default=True,
    help="Its name in the settings: PAYSWITCH_TOKEN_<NAME> or its _FILE holds the token.",
)
@click.option(
    "--declined",
    metavar="AMOUNT",
    help="An amount that the sandbox declines.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def certify(url: str, connector: str, name: str, declined: str | None, as_json: bool) -> None:
    """Check whether the provider at URL keeps the rules on which exactly-once rests. It makes real
    payments there, some 25 small ones: use a sandbox.

    Exit code 0: no rule is broken; 1: one is; 2: the provider can't be reached.

    Example: payswitch certify http://localhost:8001 --connector rinha
    """
    settings = _settings(url, connector, name)
    cents = None if declined is None else settings.currency.exact_cents(declined)
    if declined is not None and (cents is None or cents <= 0):
        raise click.UsageError(f"--declined: {declined!r} is no amount in {settings.currency.code}")
    [processor] = settings.processors
    sys.exit(asyncio.run(_certify(settings, processor, cents, as_json=as_json)))


def _settings(url: str, connector: str, name: str) -> Settings:
    """Those of a deployment whose only processor is this one."""
    variables = {
        "PAYSWITCH_PROCESSORS": name,
        f"PAYMENT_PROCESSOR_URL_{name.upper()}": url,
        f"PAYMENT_PROCESSOR_URL_{name.upper()}_FILE": "",
        f"PAYSWITCH_CONNECTOR_{name.upper()}": connector,
    }
    try:
        return Settings.from_environment({**os.environ, **variables})
    except SettingsError as error:
        fail(str(error))


async def _certify(
    settings: Settings,
    processor: ProcessorSettings,
    declined_cents: int | None,
    *,
    as_json: bool,
) -> int:
    where = shown(processor.url)
    if not as_json:
        low, high = (settings.currency.format_cents(cents) for cents in (AMOUNTS[0], AMOUNTS[-1]))
        click.echo(
            f"This makes some 25 real payments at {where}, from {low} to {high} "
            f"{settings.currency.code}."
        )
    stranger = replace(settings, processors=(replace(processor, token=_WRONG_TOKEN),))
    transport = make_transport(settings)
    try:
        sandbox = Sandbox(
            processor.url,
            make_processors(settings, transport)[processor.name],
            make_processors(stranger, transport)[processor.name],
            max_delay_ms=settings.processor_max_delay_ms,
            declined_cents=declined_cents,
        )
        with progress("rules", len(RULES)) as advance:
            results = await Certification(sandbox).run(lambda _: advance(1))
    except SettingsError as error:
        fail(str(error))
    except UnreachableError as error:
        click.echo(f"payswitch: {where} can't be reached: {printable(str(error))}", err=True)
        return _UNREACHABLE
    finally:
        await transport.aclose()
    broken = [each.rule for each in results if each.ruling is Ruling.FAIL]
    if as_json:
        print_json(_as_json(where, processor.connector, results))
    else:
        _print(where, processor.connector, results, broken)
    return 1 if broken else 0


def _print(
    where: str, connector: str, results: Sequence[RuleResult], broken: Sequence[str]
) -> None:
    print_table(
        f"{where} as {connector}",
        ("rule", "verdict", "requires", "seen"),
        ((each.rule, each.ruling.value, each.requires, each.measured) for each in results),
        numbers=(),
    )
    unchecked = sum(each.ruling is Ruling.UNCHECKED for each in results)
    rest = f"; {unchecked} could not be checked" if unchecked else ""
    if broken:
        click.echo(f"Broken: {', '.join(broken)}{rest}.")
    else:
        click.echo(f"No rule is broken{rest}.")


def _as_json(where: str, connector: str, results: Sequence[RuleResult]) -> dict[str, Any]:
    return {
        "url": where,
        "connector": connector,
        "passed": all(each.ruling is not Ruling.FAIL for each in results),
        "rules": [
            {
                "rule": each.rule,
                "verdict": each.ruling.value.lower(),
                "requires": each.requires,
                "seen": each.measured,
            }
            for each in results
        ],
    }
