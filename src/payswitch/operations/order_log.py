"""Logs the beginning and end of operators' orders."""

from __future__ import annotations

import logging
from dataclasses import replace

from payswitch.operations.controls import Order
from payswitch.operations.overview import Overview

logger = logging.getLogger(__name__)


class OrderLog:
    """Logs each order once, and its end, even an end by itself."""

    def __init__(self) -> None:
        self._paused: Order | None = None
        self._override: Order | None = None

    def see(self, overview: Overview) -> None:
        """Log the difference to the overview before."""
        paused, override = _identity(overview.paused), _identity(overview.override)
        if paused != self._paused:
            self._say_pause(overview.paused)
        if override != self._override:
            self._say_override(overview.override)
        self._paused, self._override = paused, override

    def _say_pause(self, order: Order | None) -> None:
        if order is None:
            logger.info("the workers are no longer paused")
        else:
            logger.info(
                "%(by)s has paused the workers: %(reason)s",
                {"by": order.by, "reason": order.reason or "no reason given"},
            )

    def _say_override(self, order: Order | None) -> None:
        if order is None:
            logger.info("the health check's selection counts again")
        else:
            logger.info(
                "%(by)s has chosen %(processor)s: %(reason)s",
                {
                    "by": order.by,
                    "processor": order.processor,
                    "reason": order.reason or "no reason given",
                },
            )


def _identity(order: Order | None) -> Order | None:
    """The order without its end, which each overview computes again."""
    return order and replace(order, until_ms=None)
