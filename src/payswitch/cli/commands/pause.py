"""`payswitch pause`: workers claim nothing, while new payments are accepted and wait."""

from __future__ import annotations

import click
from arq.connections import ArqRedis

from payswitch.cli.arguments import parse_duration, signed
from payswitch.cli.durations import format_duration
from payswitch.cli.output import in_order, print_pairs, run
from payswitch.instants import format_instant
from payswitch.operations.controls import Controls
from payswitch.payments.audit import Signature
from payswitch.settings import Settings


@click.command()
@click.option(
    "--for",
    "life_ms",
    callback=parse_duration,
    metavar="DURATION",
    help="Go on after this. [default: at `resume`]",
)
@signed
def pause(life_ms: int | None, by: str, reason: str | None) -> None:
    """Stop paying, go on accepting. Workers finish what is in flight and claim nothing more; new
    payments wait, and so do retries. Said again, the last one counts.

    Deadlines go on: what has reached its own becomes a dead letter after the pause.

    Example: payswitch pause --for 15m --reason 'upgrade of default'
    """
    run(lambda settings, redis: _pause(settings, redis, life_ms, Signature(by, reason)))


async def _pause(
    settings: Settings, redis: ArqRedis, life_ms: int | None, signature: Signature
) -> int:
    controls = Controls(redis)
    was_paused = await controls.paused() is not None
    order = await controls.pause(life_ms=life_ms, signature=signature)
    waiting = await controls.waiting(settings.payment_deadline_ms)
    how_long = "until `payswitch resume`" if life_ms is None else f"for {format_duration(life_ms)}"
    click.echo(f"{'Paused already; now' if was_paused else 'Paused'} {how_long}.")
    deadline = waiting.first_deadline_ms
    print_pairs(
        {
            **in_order(order),
            "in flight": f"{waiting.in_flight} of {waiting.payments} unpaid payments",
            "first deadline": None if deadline is None else format_instant(deadline),
        }
    )
    if deadline is not None and order.until_ms is not None and deadline < order.until_ms:
        click.echo("payswitch: payments reach their deadline before the pause ends", err=True)
    return 0
