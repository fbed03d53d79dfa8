"""Yielding the CPU: what the kernel refuses stops nobody."""

from __future__ import annotations

import logging
import os

import pytest

from payswitch.process import yield_to_others


def test_where_it_is_forbidden_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    yield_to_others()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "can't yield the CPU" in record.getMessage()
    assert "Operation not permitted" in record.getMessage()


def test_where_there_is_no_such_thing_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(os, "SCHED_IDLE")
    yield_to_others()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
