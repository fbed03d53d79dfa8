"""`payswitch settings`: each setting's value and origin."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import click

from payswitch.cli.output import print_json, print_table
from payswitch.settings import REMOVED, Settings, SettingsError, Variable, variables
from payswitch.text import printable

_OTHER_PROGRAMS = {"PAYSWITCH_BIND"}
"""Variables of haproxy.cfg."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def settings(as_json: bool) -> None:
    """Show each setting as a part that is started here and now would have it, and where it comes
    from: a default, the environment or a file. Tokens and passwords are masked.

    Exit code 1, with all that is wrong, where a value is not allowed.

    Example: payswitch settings --json
    """
    try:
        effective = Settings.from_environment()
    except SettingsError as error:
        sys.exit(_refuse(error, as_json=as_json))
    known = variables(list(effective.processor_urls))
    rows = [_row(effective, key, variable) for key, variable in known.items()]
    unknown = _unknown_variables(known.values())
    if as_json:
        print_json({"settings": rows, "unknown": sorted(unknown)})
        return
    print_table(
        "Settings",
        ("variable", "value", "from"),
        [(row["variable"], str(row["value"]) or "(empty)", row["from"]) for row in rows],
        numbers=(),
    )
    for variable, hint in unknown.items():
        click.echo(f"payswitch: {printable(variable)} is no setting{hint}", err=True)


def _row(effective: Settings, key: str, variable: Variable) -> dict[str, Any]:
    return {
        "variable": variable.name,
        "value": variable.shown(effective.value(key)),
        "from": _origin(variable),
        "default": variable.shown(effective.default(key)),
        "allowed": variable.allowed,
        "purpose": variable.purpose,
    }


def _origin(variable: Variable) -> str:
    if variable.file_name and (path := os.environ.get(variable.file_name)):
        return f"file {printable(path)}"
    return "environment" if os.environ.get(variable.name) else "default"


def _refuse(error: SettingsError, *, as_json: bool) -> int:
    """Print all problems; return the exit code."""
    if as_json:
        problems = [
            {"variables": problem.variables, "problem": problem.message}
            for problem in error.problems
        ]
        print_json({"problems": problems})
        return 1
    for problem in error.problems:
        click.echo(f"payswitch: {problem.message}", err=True)
    return 1


def _unknown_variables(variables: Iterable[Variable]) -> dict[str, str]:
    """Variables that look like settings but are none, each with a hint."""
    known = [name for variable in variables for name in (variable.name, variable.file_name) if name]
    found = {}
    for name in sorted(os.environ):
        if name.startswith("PAYSWITCH_") and name not in {*known, *_OTHER_PROGRAMS}:
            if name in REMOVED:
                found[name] = " any more"
                continue
            close = get_close_matches(name, known, n=1, cutoff=0.8)
            found[name] = f"; {close[0]} is" if close else ""
    return found
