"""Finds a connector's class by its name in the settings."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from payswitch.processors.charges import ChargesConnector
from payswitch.processors.connector import Connector
from payswitch.processors.rinha import RinhaConnector
from payswitch.reasons import reason

BUILT_IN: dict[str, type[Connector]] = {"rinha": RinhaConnector, "charges": ChargesConnector}
GROUP = "payswitch.connectors"
"""The entry points with which a package offers connectors."""


class ConnectorError(ValueError):
    """There is no such connector, or it can't be loaded; the message says why."""


def find_connector(name: str) -> type[Connector]:
    """The class of a built-in connector, of an entry point, or at `module:Class`. Raises
    `ConnectorError`."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    try:
        if ":" in name:
            module, _, attribute = name.partition(":")
            found = getattr(import_module(module), attribute)
        else:
            offered = {each.name: each for each in entry_points(group=GROUP)}
            if name not in offered:
                known = ", ".join(sorted({*BUILT_IN, *offered}))
                raise ConnectorError(f"there is no connector {name!r}; there are {known}")
            found = offered[name].load()
    except ConnectorError:
        raise
    except Exception as error:  # a module of somebody else's may raise anything
        raise ConnectorError(f"connector {name!r} can't be loaded: {reason(error)}") from error
    if not (isinstance(found, type) and issubclass(found, Connector)):
        raise ConnectorError(f"{name!r} is no subclass of payswitch.processors.connector.Connector")
    return found
