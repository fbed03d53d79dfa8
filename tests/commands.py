"""Every command of the command line, found by walking it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click

from payswitch.cli.main import main

NAME = "payswitch"


def walk(
    command: click.Command = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Each command with the words that call it, `payswitch` itself first."""
    yield path, command
    if isinstance(command, click.Group):
        ctx = click.Context(command, info_name=NAME)
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from walk(below, (*path, name))


def examples(help_text: str) -> list[list[str]]:
    """The arguments of each example in a command's help, after `payswitch`."""
    lines = re.findall(rf"^ *Example: {NAME} (.+)$", help_text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def parse(arguments: list[str]) -> tuple[str, ...]:
    """Parse as the shell's command would, without running anything; returns the command's path.

    Raises `click.UsageError`.
    """
    ctx: click.Context = main.make_context(NAME, list(arguments))
    path: list[str] = []
    while isinstance(ctx.command, click.Group):
        rest = [*ctx._protected_args, *ctx.args]
        name, command, rest = ctx.command.resolve_command(ctx, rest)
        assert name is not None
        assert command is not None
        path.append(name)
        ctx = command.make_context(name, rest, parent=ctx)
    return tuple(path)
