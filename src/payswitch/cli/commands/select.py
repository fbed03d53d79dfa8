"""`payswitch select`: an operator's choice of the processor for new tries."""

from __future__ import annotations

from typing import Any

import click
from arq.connections import ArqRedis

from payswitch.cli.arguments import parse_duration, signed
from payswitch.cli.durations import format_duration
from payswitch.cli.output import in_order, print_json, print_pairs, run
from payswitch.operations.controls import Controls, Order
from payswitch.payments.audit import Signature
from payswitch.selection.selector import Selection, parse_selection, unselected
from payswitch.settings import Settings, SettingsError
from payswitch.store.notes import read_note

AUTO = "auto"
DEFAULT_LIFE_MS = 600_000


def _complete_choice(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    try:
        names = list(Settings.from_environment().processor_urls)
    except SettingsError:
        names = []
    return [name for name in (*names, AUTO) if name.startswith(begun)]


@click.command()
@click.argument(
    "choice", metavar="[PROCESSOR|auto]", required=False, shell_complete=_complete_choice
)
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
    no other one steps in.

    Example: payswitch select fallback --for 30m --reason 'upgrade of default'
    """
    if choice in (None, AUTO) and life_ms is not None:
        raise click.UsageError("--for goes with a processor")
    if choice is None and reason is not None:
        raise click.UsageError("--reason goes with a choice")
    signature = Signature(by, reason)
    life_ms = life_ms or DEFAULT_LIFE_MS

    def checked(settings: Settings) -> list[str]:
        names = list(settings.processor_urls)
        if choice not in (None, AUTO, *names):
            raise click.UsageError(f"{choice!r} is none of {', '.join((*names, AUTO))}")
        return names

    run(
        lambda settings, redis: _select(
            redis, checked(settings), choice, life_ms, signature, as_json=as_json
        )
    )


async def _select(
    redis: ArqRedis,
    processors: list[str],
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
    override = await controls.override(processors)
    cached = await controls.health_checks_choice()
    checked = parse_selection(cached, processors)
    if as_json:
        at = read_note(cached).get("at")
        print_json(_as_json(override, checked, processors[0], at))
        return 0
    if said is not None:
        click.echo(said)
    print_pairs(_in_words(override, checked or unselected(processors)))
    return 0


def _in_words(override: Order | None, checked: Selection) -> dict[str, str | None]:
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


def _as_json(
    override: Order | None, checked: Selection | None, preferred: str, at: str | None
) -> dict[str, Any]:
    unordered = checked.processor if checked else preferred
    return {
        "processor": override.processor if override else unordered,
        "override": override and {"processor": override.processor, **in_order(override)},
        "healthCheck": checked
        and {
            "processor": checked.processor,
            "healthy": checked.healthy,
            "reason": checked.reason,
            "at": at,
        },
    }
