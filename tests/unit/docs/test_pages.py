"""The documentation: it builds, its links lead somewhere, and it lists what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from payswitch.ingress.openapi import document
from tests.documented import REPOSITORY

DOCS = REPOSITORY / "docs"
CONFIGURATION = REPOSITORY / "mkdocs.yml"
LINK = re.compile(r"\]\(([^)\s]+)\)")


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a folder that holds the configuration and the pages."""
    return subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def copy_to(folder: Path) -> Path:
    """A copy of all that the site is built of."""
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(CONFIGURATION, folder)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_to(tmp_path_factory.mktemp("site"))
    built = build(folder)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "site"


class Resources(HTMLParser):
    """What a browser fetches for a page by itself, and the ids that links may name."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        self.fetched += [found.get("src") or "", found.get("srcset") or ""]
        self.links += [found.get("src") or "", found.get("href") or ""]
        if tag == "link" and found.get("rel") != "canonical":
            self.fetched.append(found.get("href") or "")


def broken_links(site: Path) -> list[str]:
    """Every link of a built site to a file or an anchor that it doesn't have."""
    pages = {page: Resources(page) for page in site.rglob("*.html") if page.name != "404.html"}
    broken = []
    for page, resources in pages.items():
        for link in filter(lambda each: ":" not in each, resources.links):
            path, _, anchor = link.partition("#")
            target = (page.parent / unquote(path)).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            missing = anchor and target in pages and unquote(anchor) not in pages[target].ids
            if missing or not target.is_file():
                broken.append(f"{page.relative_to(site)}: {link}")
    return broken


def test_every_link_of_every_page_leads_somewhere(site: Path) -> None:
    assert broken_links(site) == []


def site_of_two_pages(folder: Path, text: str) -> Path:
    """A folder to build, with this text on its first page."""
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(f"# First\n\n{text}\n")
    (folder / "docs" / "http.md").write_text("# Second\n")
    (folder / "mkdocs.yml").write_text(
        re.sub(r"(?ms)^nav:.*?(?=^\S|\Z)", "", CONFIGURATION.read_text())
    )
    return folder


@pytest.mark.parametrize("link", ["nothing.md", "http.md#nothing"])
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, link: str) -> None:
    built = build(site_of_two_pages(tmp_path, f"[broken]({link})"))
    assert built.returncode != 0
    assert "index.md" in built.stdout + built.stderr


@pytest.mark.parametrize("link", ["../README.md", "../nothing.txt", "nothing.png", "#nothing"])
def test_a_link_out_of_the_site_is_found(tmp_path: Path, link: str) -> None:
    folder = site_of_two_pages(tmp_path, f"![broken]({link})\n[broken]({link})")
    if build(folder).returncode == 0:
        assert broken_links(folder / "site")


def test_every_page_is_in_the_navigation_once() -> None:
    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        entries = entry if isinstance(entry, list) else entry.values()
        return [page for each in entries for page in pages(each)]

    navigation = pages(yaml.safe_load(CONFIGURATION.read_text())["nav"])
    assert sorted(navigation) == sorted(
        page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")
    )


def test_no_page_asks_another_host_for_anything(site: Path) -> None:
    pages = [*site.rglob("*.html")]
    assert len(pages) > 10
    for page in pages:
        fetched = Resources(page).fetched
        assert not [each for each in fetched if "//" in each], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text()), style


def test_every_link_of_the_readme_leads_somewhere(site: Path) -> None:
    links = [
        link for link in LINK.findall((REPOSITORY / "README.md").read_text()) if ":" not in link
    ]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        assert (REPOSITORY / path).exists(), link
        if anchor and path.startswith("docs/"):
            page = site / Path(path).relative_to("docs").with_suffix(".html")
            assert anchor in Resources(page).ids, link


def test_every_redis_key_is_in_its_reference() -> None:
    reference = (DOCS / "redis.md").read_text()
    sources = [*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "src").rglob("*.lua")]
    literal = re.compile(
        r"""['"]f?((?:arq|payments?|ledger|healthcheck|selection|vitals|processors|reconcile|overview):[a-z:-]+|selected_payment_processor)['"{]"""
    )
    keys = {key for source in sources for key in literal.findall(source.read_text())}
    assert len(keys) > 15
    # Never written: a script's first command that can't grow anything.
    assert not [key for key in sorted(keys - {"payments:none"}) if f"`{key}" not in reference]


def test_the_reference_of_http_names_every_status_and_path() -> None:
    reference = (DOCS / "http.md").read_text()
    for path, item in document()["paths"].items():
        assert f"{path}" in reference
        for operation in item.values():
            for status in operation["responses"]:
                assert status in reference, f"{path} {status}"


def test_the_map_of_the_rooms_is_the_tree() -> None:
    source = REPOSITORY / "src" / "payswitch"
    page = (REPOSITORY / "docs" / "design.md").read_text()
    rows = re.findall(r"^\| (`.*/`) \| (.*) \|$", page, re.MULTILINE)
    rooms = {room: line for names, line in rows for room in re.findall(r"`([a-z/.]+)/`", names)}
    packages = {each.parent.name for each in source.glob("*/__init__.py")}
    assert {room for room in rooms if "/" not in room} == {*packages, "lua"}
    for room, line in rooms.items():
        for name in re.findall(r"`(\w+)/?`", line):
            there = [source / room / name, source / room / f"{name}.py"]
            assert any(each.exists() for each in there), (room, name)
    values = re.findall(r"`(\w+)`", page.split("Beside the rooms lie values")[1].split("\n")[0])
    assert all((source / f"{name}.py").is_file() for name in values)
