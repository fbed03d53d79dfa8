"""`payswitch audit`: who did what when."""

from __future__ import annotations

import click
from arq.connections import ArqRedis

from payswitch.cli.output import print_json, print_table, run
from payswitch.instants import format_instant
from payswitch.payments.audit import read_acts


@click.command()
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1), help="Show at most so many."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit(limit: int, as_json: bool) -> None:
    """List what operators did, the newest first: select, pause, resume, purge, replay and resolve.

    Example: payswitch audit --limit 20
    """
    run(lambda _, redis: _audit(redis, limit, as_json=as_json))


async def _audit(redis: ArqRedis, limit: int, *, as_json: bool) -> int:
    acts = await read_acts(redis, limit)
    if as_json:
        print_json({"acts": [act.as_json() for act in acts]})
    elif not acts:
        click.echo("No operator has done anything yet.")
    else:
        rows = [
            (
                format_instant(act.at),
                act.signature.by,
                act.act,
                act.what,
                act.signature.reason or "",
            )
            for act in acts
        ]
        columns = ("at", "by", "act", "what", "reason")
        print_table("The newest acts of operators", columns, rows, numbers=())
    return 0
