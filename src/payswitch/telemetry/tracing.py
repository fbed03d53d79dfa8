"""Whether a process writes traces. What writes them is loaded only where it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from payswitch.errors import StartError
from payswitch.settings import Settings

if TYPE_CHECKING:
    from payswitch.telemetry.traces import Traces


def open_traces(
    settings: Settings, service: str, processor_urls: Mapping[str, str] | None = None
) -> Traces | None:
    """Where a process writes down what it does; None where nobody asked for it. Raises `StartError`
    where OpenTelemetry refuses one of its variables."""
    if settings.traces == "off":
        return None
    try:
        from payswitch.telemetry.traces import Traces
    except ValueError as error:  # some are read by the import
        raise StartError(f"OTEL_… for the traces: {error}") from None
    return Traces.open(service, processor_urls)
