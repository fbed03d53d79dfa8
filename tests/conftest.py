"""What holds for all tests."""

from __future__ import annotations

import gc
import os
import signal

import pytest

# A background job of a shell ignores SIGINT, and so would what the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What the tests ask is on this machine, and a proxy is elsewhere.
for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
    for each in (name, name.lower()):
        os.environ.pop(each, None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes (`pytest -n`), let one run all tests that share a module's fixture, so
    that what it starts is started once. xdist reads the marks in its own such hook."""
    for item in items:
        if isinstance(item, pytest.Function):
            fixtures = item._fixtureinfo.name2fixturedefs.values()
            if any(fixture.scope == "module" for [*_, fixture] in fixtures):
                item.add_marker(pytest.mark.xdist_group(item.module.__name__))


def pytest_collection_finish() -> None:
    """What thousands of collected tests hold is looked at by no collection of garbage again."""
    gc.collect()
    gc.freeze()
