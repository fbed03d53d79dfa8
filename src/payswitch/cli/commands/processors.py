"""`payswitch processors`: the providers that payments may be with."""

from __future__ import annotations

import click
from arq.connections import ArqRedis

from payswitch.cli.arguments import signed_with_reason
from payswitch.cli.output import print_json, print_table, run
from payswitch.payments.audit import Signature
from payswitch.payments.known_processors import KnownProcessors
from payswitch.settings import Settings
from payswitch.text import shown


@click.group()
def processors() -> None:
    """The processors of the settings, and those that payments may be with.

    Example: payswitch processors list
    """


@processors.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(as_json: bool) -> None:
    """List the processors in order of preference: their addresses here and when a worker last
    started, the unpaid payments with open tries there, and the dead letters that were sent there.

    Example: payswitch processors list --json
    """
    run(lambda settings, redis: _list(settings, redis, as_json=as_json))


@processors.command()
@click.argument("name")
@signed_with_reason
def moved(name: str, by: str, reason: str) -> None:
    """Say that the provider NAME is the same at its new address, so that workers start although
    payments have open tries there.

    Exit code 1 if nothing is to say: workers know it there, or these settings don't name it.

    Example: payswitch processors moved fallback --reason 'new data centre'
    """
    run(lambda settings, redis: _moved(settings, redis, name, Signature(by, reason)))


async def _list(settings: Settings, redis: ArqRedis, *, as_json: bool) -> int:
    known = KnownProcessors(redis, settings.processor_urls)
    pins = await known.pinned()
    rows = [(each, pins.get(each.name, (0, 0))) for each in await known.compare()]
    if as_json:
        found = [
            {
                "name": each.name,
                "url": each.here,
                "knownUrl": each.known,
                "openPayments": unpaid,
                "deadLetters": dead,
            }
            for each, (unpaid, dead) in rows
        ]
        print_json({"processors": found})
        return 0
    print_table(
        "Processors",
        ("name", "url", "known to workers", "open payments", "dead letters"),
        (
            (
                each.name,
                each.here or "(not in PAYSWITCH_PROCESSORS)",
                "as here" if each.known == each.here else each.known or "(not yet)",
                f"{unpaid:,}",
                f"{dead:,}",
            )
            for each, (unpaid, dead) in rows
        ),
        numbers=("open payments", "dead letters"),
    )
    return 0


async def _moved(settings: Settings, redis: ArqRedis, name: str, signature: Signature) -> int:
    if await KnownProcessors(redis, settings.processor_urls).moved(name, signature):
        click.echo(f"Workers may start: {name} is at {shown(settings.processor_urls[name])}.")
        return 0
    click.echo(f"payswitch: {name}: its address has not changed", err=True)
    return 1
