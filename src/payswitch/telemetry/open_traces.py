"""Opens the traces of a process: with spans or without."""

from __future__ import annotations

from collections.abc import Mapping

from payswitch.errors import StartError
from payswitch.settings import Settings
from payswitch.telemetry.tracing import Traces


def open_traces(
    settings: Settings, service: str, processor_urls: Mapping[str, str] | None = None
) -> Traces:
    """The traces that the settings ask for. Raises `StartError` if OpenTelemetry refuses one of
    its variables."""
    if settings.traces == "off":
        return Traces()
    try:
        from payswitch.telemetry.traces import SpanTraces

        return SpanTraces.open(service, processor_urls)
    except ValueError as error:  # the import reads some of them
        raise StartError(f"OTEL_… for the traces: {error}") from None
