"""What parts show at `/metrics`, and what Prometheus' expressions ask of it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

DEPLOY = Path(__file__).parents[1] / "deploy"
OF_THE_TARGET = {"job", "instance", "name"}
"""Labels that Prometheus gives to every sample of a target; `name` by deploy/prometheus.yml."""

_NAME = re.compile(r"\b(?:(?:payswitch|process)_[a-z_]+|up)\b(?!\s*[=!])")
_SELECTOR = re.compile(r"([a-z_]+)\{([^}]*)\}")
_MATCHER = re.compile(r'([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_BY = re.compile(r"\bby\s*\(([^)]*)\)")


def parse(text: str) -> list[Metric]:
    """The families of a scrape."""
    return list(text_string_to_metric_families(text))


def value(text: str, sample: str, **labels: str) -> float | None:
    """One sample's value in a scrape; None where it isn't in there."""
    for family in parse(text):
        for each in family.samples:
            if each.name == sample and each.labels == labels:
                return each.value
    return None


def full_name(family: Metric) -> str:
    """A family's name as it is written; the parser cuts a counter's ending off."""
    return f"{family.name}_total" if family.type == "counter" else family.name


@dataclass
class Exposed:
    """The samples that there are: their labels with all values of each."""

    labels: defaultdict[str, defaultdict[str, set[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(set))
    )

    @classmethod
    def by(cls, texts: Iterable[str]) -> Exposed:
        """All of several scrapes, and `up`, which Prometheus adds."""
        exposed = cls()
        _ = exposed.labels["up"]
        for family in (family for text in texts for family in parse(text)):
            for sample in family.samples:
                known = exposed.labels[sample.name]
                for label, text in sample.labels.items():
                    known[label].add(text)
        return exposed

    def missing(self, expression: str, also_named: Iterable[str] = ()) -> list[str]:
        """What an expression asks for that isn't there: names, labels, values. `also_named` are
        labels that are asked of its result."""
        bare = re.sub(r'"[^"]*"', '""', expression)
        names = [name for name in _NAME.findall(bare) if name]
        absent = [name for name in names if name not in self.labels]
        absent += [f"no metric in {expression}"] if not names else []
        for name, matchers in _SELECTOR.findall(expression):
            absent += list(self._missing_of(name, matchers))
        known = OF_THE_TARGET.union(*(self.labels[name] for name in names if name in self.labels))
        grouped = {each.strip() for labels in _BY.findall(bare) for each in labels.split(",")}
        return absent + [f"label {each}" for each in sorted({*grouped, *also_named} - known)]

    def _missing_of(self, name: str, matchers: str) -> Iterator[str]:
        for label, operator, text in _MATCHER.findall(matchers):
            if label in OF_THE_TARGET:
                continue
            values = self.labels[name].get(label, set()) if name in self.labels else set()
            wanted = text.split("|") if "~" in operator else [text]
            yield from (f'{name}{{{label}="{each}"}}' for each in wanted if each not in values)


def alerts() -> list[dict[str, Any]]:
    """The rules of deploy/alerts.yml."""
    document = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard that show something."""
    document = orjson.loads((DEPLOY / "grafana-dashboard.json").read_bytes())
    return [panel for panel in document["panels"] if panel["type"] != "row"]


def placeholders(text: str) -> set[str]:
    """The labels that a legend or an annotation names."""
    return set(re.findall(r"\{\{\s*(?:\$labels\.)?([a-z_]+)\s*\}\}", text))
