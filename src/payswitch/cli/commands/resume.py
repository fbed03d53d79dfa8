"""`payswitch resume`: workers claim again."""

from __future__ import annotations

import sys

import click

from payswitch.cli.main import read_settings
from payswitch.cli.output import redis_of, run
from payswitch.operations.controls import Controls
from payswitch.settings import Settings


@click.command()
def resume() -> None:
    """Go on paying after `payswitch pause`, at once. Where nothing was paused, nothing happens.

    Example: payswitch resume
    """
    settings = read_settings()
    sys.exit(run(_resume(settings), settings))


async def _resume(settings: Settings) -> int:
    async with redis_of(settings) as redis:
        controls = Controls(redis)
        waiting = await controls.waiting(settings.payment_deadline_ms)
        was_paused = await controls.resume()
    if not was_paused:
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
