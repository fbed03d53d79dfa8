"""`payswitch resume`: workers claim again."""

from __future__ import annotations

import click
from arq.connections import ArqRedis

from payswitch.cli.output import run
from payswitch.operations.controls import Controls
from payswitch.settings import Settings


@click.command()
def resume() -> None:
    """Go on paying after `payswitch pause`, at once. Where nothing was paused, nothing happens.

    Example: payswitch resume
    """
    run(_resume)


async def _resume(settings: Settings, redis: ArqRedis) -> int:
    controls = Controls(redis)
    waiting = await controls.waiting(settings.payment_deadline_ms)
    if not await controls.resume():
        click.echo("Nothing was paused.")
        return 0
    click.echo(f"Resumed: {waiting.payments} unpaid payments.")
    if waiting.overdue:
        click.echo(
            f"payswitch: {waiting.overdue} of them have reached their deadline and become dead "
            "letters; payswitch dead replay --all puts them back",
            err=True,
        )
    return 0
