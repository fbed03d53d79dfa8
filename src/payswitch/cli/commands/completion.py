"""`payswitch completion`: the script that makes a shell complete our commands."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

_SHELLS = {shell.name: shell for shell in (BashComplete, ZshComplete, FishComplete)}


@click.command()
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def completion(shell: str) -> None:
    """Print the script for shell completion in bash (4.4 or newer), zsh or fish.

    For bash, put this line into ~/.bashrc: eval "$(payswitch completion bash)"

    Example: payswitch completion bash
    """
    root = click.get_current_context().find_root().command
    click.echo(_SHELLS[shell](root, {}, "payswitch", "_PAYSWITCH_COMPLETE").source())
