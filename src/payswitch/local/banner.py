"""What `payswitch up` shows once everything runs: what runs where, and what to try."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from uuid import uuid4


class Row(NamedTuple):
    """A part of the system; it has no process here where it is somebody else's."""

    part: str
    where: str
    pid: int | None
    note: str = ""


def banner(rows: Sequence[Row], tries: Mapping[str, str], paint: Callable[[str, str], str]) -> str:
    """A table of the parts, then the commands to try, each after what it does.

    `paint` gives a part's name and a text for it the part's color.
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
    endpoint: str, default_simulator: str | None, elsewhere: Mapping[str, str]
) -> dict[str, str]:
    """Commands for a shell, by what they do; `default` can be made to fail if it is simulated.

    `elsewhere` are the variables without which operators' commands would ask somebody else.
    """
    payment = f'{{"correlationId":"{uuid4()}","amount":19.90}}'
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
