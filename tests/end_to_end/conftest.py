"""The started system for the end-to-end tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.end_to_end.harness import PATIENT_MS, System


class StartSystem(Protocol):
    """Starts `payswitch up` with more options, on a state to go on with, with variables."""

    def __call__(
        self, *options: str, state: Path | None = None, wait: bool = True, **environment: str
    ) -> System: ...


@pytest.fixture
def start_system(tmp_path: Path) -> Iterator[StartSystem]:
    """Starts systems that end with the test; returns each when it is ready."""
    with starting(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system that the tests of a module share: each leaves it able to pay."""
    with starting(tmp_path_factory.mktemp("system")) as start:
        yield start(PAYSWITCH_ACCEPT_LIMIT_MS=PATIENT_MS)


@contextlib.contextmanager
def starting(folder: Path) -> Iterator[StartSystem]:
    """Starts systems that end with the context; returns each when it is ready."""
    systems = contextlib.ExitStack()  # the last one ends first: it may have ports of one before

    def start(
        *options: str, state: Path | None = None, wait: bool = True, **environment: str
    ) -> System:
        system = System.start(folder, *options, state=state, environment=environment)
        systems.callback(system.stop)
        if wait:
            system.wait_until_ready()
        return system

    with systems:
        yield start
