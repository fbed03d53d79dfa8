"""The page of the interface has all that the OpenAPI document has."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from payswitch.ingress import openapi


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.styles: list[str] = []
        self.texts: list[str] = []
        self.statuses: dict[str, set[str]] = {}
        """By the operation whose heading stands above them."""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name in ("id", "href"):
                (self.ids if name == "id" else self.links).append(value or "")

    def handle_data(self, data: str) -> None:
        (self.styles if self.lasttag == "style" and not self.styles else self.texts).append(data)
        if self.lasttag == "code" and re.fullmatch(r"\d{3}", data):
            self.statuses.setdefault(self.ids[-1], set()).add(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(bytes(openapi.page().body).decode())


def test_it_needs_no_script_and_no_other_place(page: Page) -> None:
    assert not page.tags & {"script", "img", "link", "iframe", "object", "form", "base"}
    assert page.attributes <= {"lang", "charset", "name", "content", "href", "id", "class"}
    assert all(link.startswith("#") or link == "openapi.json" for link in page.links)
    assert "url(" not in page.styles[0]
    assert "@import" not in page.styles[0]


def test_its_policy_allows_its_own_style_only(page: Page) -> None:
    [style] = page.styles
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    rules = openapi.page().headers["content-security-policy"].split(";")
    policy = dict(rule.strip().split(" ", 1) for rule in rules)
    assert policy.pop("style-src") == f"'sha256-{digest}'"
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) == {"'none'"}


def test_every_link_within_it_leads_somewhere(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_it_has_all_that_the_document_has(page: Page) -> None:
    described = openapi.document()
    assert f"{described['info']['title']} {described['info']['version']}" in page.text
    for path, item in described["paths"].items():
        for method, operation in item.items():
            assert f"{method.upper()} {path}" in page.text
            assert operation["operationId"] in page.ids
            assert operation["summary"] in page.text
            assert all(each["name"] in page.text for each in operation.get("parameters", []))
            shown = page.statuses[operation["operationId"]]
            assert shown == set(operation["responses"])
    for name, schema in described["components"]["schemas"].items():
        assert f"schema-{name}" in page.ids
        assert all(field in page.text for field in schema.get("properties", {}))
    for description in descriptions(described):
        assert description.replace("`", "") in page.text


def descriptions(node: Any) -> list[str]:
    """All descriptions that readers see, links between operations being for programs."""
    if isinstance(node, list):
        return [found for each in node for found in descriptions(each)]
    if not isinstance(node, dict):
        return []
    own = [node["description"]] if isinstance(node.get("description"), str) else []
    rest = [
        each for name, each in node.items() if name not in ("links", "servers", "securitySchemes")
    ]
    return own + descriptions(rest)
