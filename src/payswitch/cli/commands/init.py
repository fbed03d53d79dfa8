"""`payswitch init`: a deployment in a Redis Cluster begins."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import cast

import click
from arq.connections import ArqRedis

from payswitch.cli.output import run
from payswitch.settings import Settings
from payswitch.store.beginning import OtherDeploymentFoundError, begin
from payswitch.store.client import Client
from payswitch.store.errors import UnconfirmedError, WrongNodeError

_CONFIRMED_WITHIN_S = 30
_PAUSE_S = 0.2


@click.command()
@click.option(
    "--accept-loss",
    is_flag=True,
    help="Let partitions go on that were stopped because their node came back older: payments that "
    "it had confirmed are lost, and may be paid twice.",
)
def init(accept_loss: bool) -> None:
    """Prepare a Redis Cluster for payments: once, before the first part starts. To repeat it is
    harmless. A single Redis needs nothing.

    Example: payswitch init
    """
    run(partial(_init, accept_loss))


async def _init(accept_loss: bool, settings: Settings, redis: ArqRedis) -> int:
    client = cast(Client, redis)
    if not client.partitions.deployment:
        await client.ping()
        click.echo("A single Redis needs no preparation.")
        return 0
    try:
        is_new = await _begin(client, accept_loss)
    except OtherDeploymentFoundError as error:
        click.echo(f"payswitch: {error}", err=True)
        return 1
    click.echo(f"{'Begun' if is_new else 'Begun before'}: {client.partitions.deployment}")
    return 0


async def _begin(client: Client, accept_loss: bool) -> bool:
    """As `begin`, which is harmless to repeat: a cluster that was just created needs some seconds,
    and so do its replicas."""
    loop = asyncio.get_running_loop()
    gives_up_at = loop.time() + _CONFIRMED_WITHIN_S
    while True:
        try:
            return await begin(client, accept_loss=accept_loss)
        except (UnconfirmedError, WrongNodeError):
            if loop.time() >= gives_up_at:
                raise
        await asyncio.sleep(_PAUSE_S)
