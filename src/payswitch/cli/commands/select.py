"""`payswitch select`: an operator's choice of the processor for new tries."""

from __future__ import annotations

from typing import Any

import click
import orjson
from arq.connections import ArqRedis

from payswitch.cli.arguments import parse_duration, signed
from payswitch.cli.durations import format_duration
from payswitch.cli.output import in_order, print_json, print_pairs, run
from payswitch.operations.controls import Controls, Order
from payswitch.payments.audit import Signature
from payswitch.selection.selector import UNSELECTED, parse_selection
from payswitch.settings import PROCESSORS

AUTO = "auto"
DEFAULT_LIFE_MS = 600_000


@click.command()
@click.argument("choice", type=click.Choice((*PROCESSORS, AUTO)), required=False)
@click.option(
    "--for",
    "life_ms",
    callback=parse_duration,
    metavar="DURATION",
    help=f"Then the health check chooses again. [default: {format_duration(DEFAULT_LIFE_MS)}]",
)
@signed
@click.option("--json", "as_json", is_flag=True, help="Print what stands then as JSON.")
def select(
    choice: str | None, life_ms: int | None, by: str, reason: str | None, as_json: bool
) -> None:
    """Choose the processor that new tries go to. `auto` leaves it to the health check again;
    without a choice, what stands is shown.

    It holds for a time only, and for all workers from their next claim on, within a second. A
    payment with an open try stays with its processor. While the chosen one fails, payments wait:
    the other one does not step in.

    Example: payswitch select fallback --for 30m --reason 'upgrade of default'
    """
    if choice in (None, AUTO) and life_ms is not None:
        raise click.UsageError("--for goes with a processor")
    if choice is None and reason is not None:
        raise click.UsageError("--reason goes with a choice")
    signature = Signature(by, reason)
    life_ms = life_ms or DEFAULT_LIFE_MS
    run(lambda _, redis: _select(redis, choice, life_ms, signature, as_json=as_json))


async def _select(
    redis: ArqRedis,
    choice: str | None,
    life_ms: int,
    signature: Signature,
    *,
    as_json: bool,
) -> int:
    controls = Controls(redis)
    said = None
    if choice == AUTO:
        was_overridden = await controls.select_automatically(signature)
        said = f"The health check chooses {'again' if was_overridden else 'already'}."
    elif choice is not None:
        await controls.select(choice, life_ms=life_ms, signature=signature)
        said = f"New tries go to {choice} for {format_duration(life_ms)}."
    override = await controls.override()
    cached = await controls.health_checks_choice()
    if as_json:
        print_json(_as_json(override, cached))
        return 0
    if said is not None:
        click.echo(said)
    print_pairs(_in_words(override, cached))
    return 0


def _in_words(override: Order | None, cached: bytes | None) -> dict[str, str | None]:
    checked = parse_selection(cached)
    health_check = (
        f"{checked.processor}{'' if checked.healthy else ' (nothing is healthy)'}: {checked.reason}"
    )
    if override is None:
        return {"new tries go to": checked.processor, "health check": health_check}
    return {
        "new tries go to": f"{override.processor}: an operator has chosen it",
        **in_order(override),
        "health check": f"would choose {health_check}",
    }


def _as_json(override: Order | None, cached: bytes | None) -> dict[str, Any]:
    checked = parse_selection(cached)
    at = None
    if checked is not UNSELECTED and cached is not None:
        at = orjson.loads(cached).get("at")
    return {
        "processor": override.processor if override else checked.processor,
        "override": override and {"processor": override.processor, **in_order(override)},
        "healthCheck": None
        if checked is UNSELECTED
        else {
            "processor": checked.processor,
            "healthy": checked.healthy,
            "reason": checked.reason,
            "at": at,
        },
    }
