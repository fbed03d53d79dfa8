"""The places of `/metrics` of all parts of `payswitch up`: free ports, and the file from which
Prometheus learns them (`file_sd_configs`)."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import orjson

from payswitch.local.machine import MachineError, Port, is_taken, make_own_folder

FILE = "metrics-targets.json"


def free_ports(host: str, first: int, others: Collection[int]) -> Iterator[int]:
    """The free ports from `first` on, without those meant for other parts. Raises `MachineError` if
    no process can listen at the host."""
    for number in range(first, 65_536):
        if number not in others and not is_taken(Port("metrics", host, number, "")):
            yield number


@contextlib.contextmanager
def targets_in(folder: Path, addresses: Mapping[str, str]) -> Iterator[None]:
    """While the context lasts, the folder has a file with these addresses (`host:port`) by the
    names of their parts. Raises `MachineError` if it can't be written."""
    targets = [
        {"targets": [address], "labels": {"name": name}} for name, address in addresses.items()
    ]
    try:
        make_own_folder(folder)
        file = folder / FILE
        file.write_bytes(orjson.dumps(targets, option=orjson.OPT_INDENT_2))
    except OSError as error:
        raise MachineError(f"{error.filename}: {error.strerror}") from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
