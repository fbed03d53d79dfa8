"""An OpenAPI document as a page to read: plain HTML and its own style, no script, no other host.

It knows of OpenAPI 3.1 what `openapi.json` uses.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

Node = Mapping[str, Any]

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")

_STYLE = """
:root { color-scheme: light dark; --text: #1d232b; --quiet: #56606d; --paper: #fff;
  --line: #dfe3e8; --well: #f4f6f8; --link: #0b5cad; --read: #0b6e4f; --write: #8a4b00; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ed; --quiet: #9aa5b1;
  --paper: #14181d; --line: #323a44; --well: #1d232a; --link: #7db7f5; --read: #5cc79d;
  --write: #e5a35a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 56rem; padding: 1.5rem 1rem 4rem; color: var(--text);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.9rem; }
h2 { margin: 3rem 0 0; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { margin: 2.2rem 0 .3rem; font-size: 1.1rem; }
h4 { margin: 1.2rem 0 .3rem; font-size: .95rem; }
p { margin: .4rem 0; }
a { color: var(--link); }
code, pre { font: .88em/1.5 ui-monospace, monospace; }
code { padding: .1em .25em; border-radius: .2em; background: var(--well); }
pre { margin: .4rem 0; padding: .7rem .9rem; border-radius: .4rem; background: var(--well);
  white-space: pre-wrap; }
table { width: 100%; border-collapse: collapse; font-size: .93rem; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--quiet); font-weight: 600; }
tr > :first-child { width: 9.5rem; }
nav ul { margin: .2rem 0 1rem; padding: 0; list-style: none; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.quiet { color: var(--quiet); }
.method { display: inline-block; min-width: 3.2rem; font: 600 .8rem/1 ui-monospace, monospace;
  color: var(--write); }
.get { color: var(--read); }
h3 .path { font: 600 1em/1.5 ui-monospace, monospace; }
@media (max-width: 36rem) { tr > :first-child { width: 7rem; } }
"""

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""What the page must be served with: its own style is all that it may use."""


def render(document: Node) -> bytes:
    """The page for a document. Raises `KeyError` for a reference to what the document lacks."""
    return _Page(document).html().encode()


class _Page:
    def __init__(self, document: Node) -> None:
        self._document = document

    def html(self) -> str:
        info = self._document["info"]
        tags = [(tag, self._operations(tag["name"])) for tag in self._document["tags"]]
        schemas = self._document["components"]["schemas"]
        contents = "".join(_contents(tag, operations) for tag, operations in tags)
        sections = "".join(self._tag(tag, operations) for tag, operations in tags)
        described = "".join(self._schema(name, schema) for name, schema in schemas.items())
        title = f"{info['title']} {info['version']}"
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{_text(title)}: HTTP interface</title><style>{_STYLE}</style></head><body>"
            f'<header><h1>{_text(info["title"])} <span class="quiet">{_text(info["version"])}'
            f"</span></h1><p>{_prose(info['summary'])}</p></header>"
            f"<nav>{contents}</nav><main><p>{_prose(info['description'])}</p>"
            '<p class="quiet">For programs: <a href="openapi.json">openapi.json</a> '
            f"(OpenAPI {_text(self._document['openapi'])})</p>"
            f'{sections}<section><h2 id="schemas">Schemas</h2>{described}</section>'
            "</main></body></html>\n"
        )

    def _operations(self, tag: str) -> list[tuple[str, str, Node]]:
        return [
            (method, path, item[method])
            for path, item in self._document["paths"].items()
            for method in _METHODS
            if method in item and tag in item[method]["tags"]
        ]

    def _tag(self, tag: Node, operations: Iterable[tuple[str, str, Node]]) -> str:
        body = "".join(self._operation(*operation) for operation in operations)
        return (
            f"<section><h2>{_text(tag['name'].capitalize())}</h2>"
            f'<p class="quiet">{_prose(tag["description"])}</p>{body}</section>'
        )

    def _operation(self, method: str, path: str, operation: Node) -> str:
        parts = [
            f'<article><h3 id="{_text(operation["operationId"])}">{_badge(method)} '
            f'<span class="path">{_text(path)}</span></h3>'
            f"<p><strong>{_prose(operation['summary'])}.</strong> "
            f"{_prose(operation.get('description', ''))}</p>",
            self._security(operation),
            self._parameters(operation),
            self._request(operation),
            self._responses(operation),
        ]
        return "".join(parts) + "</article>"

    def _security(self, operation: Node) -> str:
        schemes = self._document["components"].get("securitySchemes", {})
        return "".join(
            f'<p class="quiet">{_text(schemes[name]["scheme"].capitalize())} token'
            f"{', where it is demanded' if {} in operation['security'] else ''}: "
            f"{_prose(schemes[name]['description'])}</p>"
            for requirement in operation.get("security", [])
            for name in requirement
        )

    def _parameters(self, operation: Node) -> str:
        rows = [
            (
                f"<code>{_text(each['name'])}</code>",
                f"{_text(each['in'])}{', required' if each.get('required') else ''}; "
                f"{self._type(each['schema'])}. {_prose(each['description'])}"
                f" Such as <code>{_text(str(each['example']))}</code>.",
            )
            for each in operation.get("parameters", [])
        ]
        return _table("Parameters", ("name", "what it is"), rows)

    def _request(self, operation: Node) -> str:
        if "requestBody" not in operation:
            return ""
        bodies = "".join(
            f"<p><code>{_text(media_type)}</code>: {self._type(content['schema'])}</p>"
            + _example(content)
            for media_type, content in operation["requestBody"]["content"].items()
        )
        return f"<h4>Body</h4>{bodies}"

    def _responses(self, operation: Node) -> str:
        rows = []
        for status, reference in operation["responses"].items():
            response = self._resolved(reference)
            cell = _prose(response["description"])
            for media_type, content in response.get("content", {}).items():
                cell += (
                    f'<br><span class="quiet"><code>{_text(media_type)}</code>: '
                    f"{self._type(content['schema'])}</span>{_example(content)}"
                )
            for name, header in response.get("headers", {}).items():
                description = self._resolved(header)["description"]
                cell += (
                    f'<br><span class="quiet"><code>{_text(name)}</code>: '
                    f"{_prose(description)}</span>"
                )
            rows.append((f"<code>{_text(status)}</code>", cell))
        return _table("Answers", ("status", "when"), rows)

    def _schema(self, name: str, schema: Node) -> str:
        required = schema.get("required", ())
        rows = [
            (
                f"<code>{_text(field)}</code>",
                f"{self._type(each)}{'' if field in required else ', optional'}"
                f"{_sentence(each.get('description'))}",
            )
            for field, each in schema.get("properties", {}).items()
        ]
        kind = "" if rows else f"<p>{self._type(schema)}</p>"
        return (
            f'<h3 id="schema-{_text(name)}">{_text(name)}</h3>'
            f"<p>{_prose(schema.get('description', ''))}</p>{kind}"
            + _table("", ("field", "what it is"), rows)
        )

    def _type(self, schema: Node) -> str:
        """What a value may be, in words."""
        if "$ref" in schema:
            self._resolved(schema)
            name = _text(schema["$ref"].rpartition("/")[2])
            return f'<a href="#schema-{name}">{name}</a>'
        if "anyOf" in schema:
            return " or ".join(map(self._type, schema["anyOf"]))
        if "const" in schema:
            return _value(schema["const"])
        if "enum" in schema:
            return " or ".join(map(_value, schema["enum"]))
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        limits = [
            f"{words} {_value(schema[word])}" for word, words in _LIMITS.items() if word in schema
        ]
        return ", ".join([" or ".join(kinds), *limits])

    def _resolved(self, node: Node) -> Node:
        if "$ref" not in node:
            return node
        found: Any = self._document
        for name in node["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        resolved: Node = found
        return resolved


_LIMITS = {
    "format": "format",
    "pattern": "matching",
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "maximum": "at most",
    "multipleOf": "a multiple of",
}


def _contents(tag: Node, operations: Iterable[tuple[str, str, Node]]) -> str:
    items = "".join(
        f'<li><a href="#{_text(operation["operationId"])}">{_badge(method)} '
        f'<code>{_text(path)}</code></a> <span class="quiet">{_prose(operation["summary"])}'
        "</span></li>"
        for method, path, operation in operations
    )
    return f"<h4>{_text(tag['name'].capitalize())}</h4><ul>{items}</ul>"


def _table(title: str, head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    """A table of cells that are HTML already; nothing where there are no rows."""
    lines = "".join(f"<tr><td>{first}</td><td>{second}</td></tr>" for first, second in rows)
    if not lines:
        return ""
    heading = f"<h4>{_text(title)}</h4>" if title else ""
    names = "".join(f"<th>{_text(name)}</th>" for name in head)
    return f"{heading}<table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"


def _example(content: Node) -> str:
    if "example" not in content:
        return ""
    return f"<pre>{_text(json.dumps(content['example'], indent=1, ensure_ascii=False))}</pre>"


def _badge(method: str) -> str:
    return f'<span class="method {method}">{method.upper()}</span>'


def _value(value: Any) -> str:
    return f"<code>{_text(value if isinstance(value, str) else json.dumps(value))}</code>"


def _sentence(description: str | None) -> str:
    return f". {_prose(description)}" if description else ""


def _prose(text: str) -> str:
    """Text in which `this` is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))


def _text(text: str) -> str:
    return html.escape(text)
