"""The banner of `payswitch up` once everything runs: each part's place, and commands to try."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from uuid import uuid4

from payswitch.money import Currency


class Row(NamedTuple):
    """A part of the system; one that was there before has no process here."""

    part: str
    where: str
    pid: int | None
    note: str = ""


def banner(rows: Sequence[Row], tries: Mapping[str, str], paint: Callable[[str, str], str]) -> str:
    """A table of the parts, then the commands to try, each after its purpose.

    `paint` takes a part's name and a text, and returns the text in the part's color.
    """
    head = ("part", "where", "pid", "")
    cells = [(row.part, row.where, str(row.pid or "-"), row.note) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    width = max(map(len, tries))
    lines = [
        "",
        "Payswitch is ready. Ctrl-C stops it.",
        "",
        _aligned(head, widths),
        *(
            paint(name, f"{name:<{widths[0]}}") + _aligned(("", *rest), (0, *widths[1:]))
            for name, *rest in cells
        ),
        "",
        *(f"{what:<{width}}   {command}" for what, command in tries.items()),
        "",
    ]
    return "".join(f"  {line}".rstrip() + "\n" for line in lines)


def commands_to_try(
    endpoint: str,
    default_simulator: str | None,
    elsewhere: Mapping[str, str],
    currency: Currency,
) -> dict[str, str]:
    """Commands for a shell, by purpose. A simulated `default` can be made to fail.

    Without the variables `elsewhere`, operators' commands would ask another system.
    """
    amount = currency.format_cents(1990)
    payment = f'{{"correlationId":"{uuid4()}","amount":{amount}}}'
    tries = {}
    if elsewhere:
        variables = " ".join(f"{name}={value}" for name, value in elsewhere.items())
        tries["another terminal"] = f"export {variables}"
    tries |= {
        "pay": f"curl -i {endpoint}/payments -H 'Content-Type: application/json' -d '{payment}'",
        "sum up": f"curl {endpoint}/payments-summary",
    }
    if default_simulator is not None:
        tries["let default fail"] = (
            f"curl -X PUT {default_simulator}/admin/configurations/failure "
            "-H 'X-Rinha-Token: 123' -d '{\"failure\":true}'"
        )
    return tries


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "   ".join(map(str.ljust, cells, widths))
