"""The simulated processors of `payswitch up`: names, protocols, fees and ports."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from payswitch.local.machine import Port
from payswitch.local.metrics_targets import free_ports
from payswitch.secret_files import variable_of

USUAL_TOKEN = "123"
"""The token of a simulator without `INITIAL_TOKEN`."""

_RINHA, _CHARGES = "rinha", "charges"
_NAMES = ("default", "fallback", "acme")
_FEES_PERCENT = (5, 15, 20)


@dataclass(frozen=True, slots=True)
class SimulatedProcessor:
    """A simulator, and what its clients must know."""

    port: Port
    protocol: str
    fee: str
    token: str

    @property
    def name(self) -> str:
        """As in `PAYSWITCH_PROCESSORS`."""
        return self.port.part

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The variables with which a part finds it and speaks to it. A token that the environment
        sets stays."""
        found = {url_variable(self.name): f"http://{self.port.address}"}
        if self.protocol != _RINHA:
            found[_connector_variable(self.name)] = self.protocol
            if not variable_of(environment, _token_variable(self.name)):
                found[_token_variable(self.name)] = self.token
        return found


def usual_names(processors: int) -> list[str]:
    """So many names in order of preference."""
    more = (f"provider{number}" for number in count(len(_NAMES) + 1))
    return [*_NAMES, *(next(more) for _ in range(processors - len(_NAMES)))][:processors]


def usual_connectors(names: Sequence[str]) -> dict[str, str]:
    """The variables that give every second processor from the third on the protocol `charges`."""
    return {_connector_variable(name): _CHARGES for name in names[len(_NAMES) - 1 :: 2]}


def simulated_processors(
    names: Sequence[str],
    environment: Mapping[str, str],
    ports: Mapping[str, Port],
    *,
    host: str,
    next_port: int,
    taken: Collection[int],
) -> dict[str, SimulatedProcessor]:
    """The processors to simulate: those without a URL whose protocol a simulator speaks. One that
    is not in `ports` gets a free port of `host` from `next_port` on that is not `taken`."""
    free = free_ports(host, next_port, taken)
    found = {}
    for place, name in enumerate(names):
        protocol = environment.get(_connector_variable(name)) or _RINHA
        if protocol not in (_RINHA, _CHARGES) or variable_of(environment, url_variable(name)):
            continue
        port = ports.get(name) or Port(name, host, next(free), "--fallback-port")
        token = environment.get("INITIAL_TOKEN", USUAL_TOKEN)
        found[name] = SimulatedProcessor(port, protocol, _fee(place), token)
    return found


def url_variable(processor: str) -> str:
    """The variable that holds a processor's URL."""
    return f"PAYMENT_PROCESSOR_URL_{processor.upper()}"


def _connector_variable(processor: str) -> str:
    return f"PAYSWITCH_CONNECTOR_{processor.upper()}"


def _token_variable(processor: str) -> str:
    return f"PAYSWITCH_TOKEN_{processor.upper()}"


def _fee(place: int) -> str:
    """Each processor is dearer than the one before it."""
    last = len(_FEES_PERCENT) - 1
    percent = _FEES_PERCENT[min(place, last)] + max(0, place - last)
    return f"{percent / 100:.2f}"
