"""`payswitch resume`: workers claim again."""

from __future__ import annotations

import click
from arq.connections import ArqRedis

from payswitch.cli.arguments import signed
from payswitch.cli.output import run
from payswitch.operations.controls import Controls
from payswitch.payments.audit import Signature
from payswitch.settings import Settings


@click.command()
@signed
def resume(by: str, reason: str | None) -> None:
    """Go on paying after `payswitch pause`, at once. Where nothing was paused, nothing happens.

    Example: payswitch resume
    """
    run(lambda settings, redis: _resume(settings, redis, Signature(by, reason)))


async def _resume(settings: Settings, redis: ArqRedis, signature: Signature) -> int:
    controls = Controls(redis)
    waiting = await controls.waiting(settings.payment_deadline_ms)
    if not await controls.resume(signature):
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
