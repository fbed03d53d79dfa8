"""`make entry`: the folder that the challenge asks of an entry, made from `compose.yaml`.

By the challenge's instructions (INSTRUCOES.md of zanfranceschi/rinha-de-backend-2025) it holds
`docker-compose.yml` with published images, the files that it mounts, `info.json` and a README, and
no source code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import orjson
import yaml

from payswitch.durability import Durability

_ROOT = Path(__file__).parents[2]
_COMPOSE = "compose.yaml"
_PUBLISHED = re.compile(r"[a-z0-9][a-z0-9._/:-]*/[a-z0-9._-]+:(?!latest$)[A-Za-z0-9_][\w.-]*")
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_MEGABYTES = re.compile(r"(\d+)M")

_KINDS = {"redis": ("storages", "messaging"), "haproxy": ("load-balancers",)}
"""Under which of info.json's headings an image that others made belongs."""

OTHER_TECHNOLOGIES = ("starlette", "granian", "arq", "httpx", "httptools", "orjson", "uvloop")


class EntryError(ValueError):
    """`compose.yaml` has something of which no entry can be made."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who takes part, and where their image and source are to be found."""

    name: str
    social: tuple[str, ...]
    repository: str
    image: str


def write_entry(compose: Path, author: Author, folder: Path) -> list[Path]:
    """Write the entry of a compose file into a folder, which may exist; return what was written.

    Raises `EntryError` and `OSError`.
    """
    document: dict[str, Any] = yaml.safe_load(compose.read_text())
    entry = as_published(document, author.image)
    contents = {
        "docker-compose.yml": yaml.dump(entry, Dumper=_Dumper, sort_keys=False).encode(),
        "info.json": orjson.dumps(as_info(entry, author), option=orjson.OPT_INDENT_2) + b"\n",
        "README.md": _readme(entry, author).encode(),
    }
    contents |= {name: (compose.parent / name).read_bytes() for name in _mounted_files(entry)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return [folder / name for name in contents]


def as_published(compose: Mapping[str, Any], image: str) -> dict[str, Any]:
    """The compose file with `image` in the place of what is built from source, and without the
    parts that only its anchors need or that `up` doesn't start."""
    entry = {name: part for name, part in compose.items() if not name.startswith("x-")}
    entry["services"] = {
        name: {key: value for key, value in (service | {"image": image}).items() if key != "build"}
        if "build" in service
        else service
        for name, service in compose["services"].items()
        if "profiles" not in service
    }
    return entry


def as_info(entry: Mapping[str, Any], author: Author) -> dict[str, Any]:
    """The challenge's info.json. Raises `EntryError` for an image that fits none of its fields."""
    found: dict[str, set[str]] = {"storages": set(), "messaging": set(), "load-balancers": set()}
    for service in entry["services"].values():
        if service["image"] == author.image:
            continue
        name = _base_name(service["image"])
        if name not in _KINDS:
            raise EntryError(f"no field of info.json is known for the image {service['image']}")
        for kind in _KINDS[name]:
            found[kind].add(name)
    return {
        "name": author.name,
        "social": list(author.social),
        "source-code-repo": author.repository,
        "langs": ["python"],
        **{kind: sorted(names) for kind, names in found.items()},
        "other-technologies": list(OTHER_TECHNOLOGIES),
    }


def _base_name(image: str) -> str:
    return image.rpartition("/")[2].partition(":")[0]


def _mounted_files(entry: Mapping[str, Any]) -> Iterator[str]:
    """The files beside the compose file that its services mount."""
    for service in entry["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                yield source.removeprefix("./")


def _readme(entry: Mapping[str, Any], author: Author) -> str:
    info = as_info(entry, author)
    limits = {
        name: service["deploy"]["resources"]["limits"]
        for name, service in entry["services"].items()
    }
    rows = [
        f"| {name} | `{entry['services'][name]['image']}` | {each['cpus']} | {each['memory']}B |"
        for name, each in limits.items()
    ]
    cpus = sum(Decimal(each["cpus"]) for each in limits.values())
    memory = sum(_megabytes(each["memory"]) for each in limits.values())
    technologies = [
        f"- {kind}: {', '.join(info[field])}"
        for kind, field in (
            ("Language", "langs"),
            ("Storage", "storages"),
            ("Messaging", "messaging"),
            ("Load balancer", "load-balancers"),
            ("Also", "other-technologies"),
        )
    ]
    return "\n".join(
        [
            "# Payswitch",
            "",
            "An entry to the Rinha de Backend 2025: each payment is acknowledged once Redis holds "
            "it,",
            "and is paid exactly once, through the cheapest healthy processor.",
            "",
            f"An acknowledged payment survives {_durability(entry).survives}",
            f"(`PAYSWITCH_DURABILITY={_durability(entry)}`).",
            "",
            f"Source code: <{author.repository}>",
            "",
            *technologies,
            "",
            "| service | image | CPU | memory |",
            "| --- | --- | --- | --- |",
            *rows,
            f"| **in all** | | **{cpus}** | **{memory}MB** |",
            "",
            "With the payment processors running: `docker compose up -d`, then "
            "`http://localhost:9999`.",
            "",
        ]
    )


def _durability(entry: Mapping[str, Any]) -> Durability:
    """What a 202 of its ingress stands for."""
    for service in entry["services"].values():
        if (value := service.get("environment", {}).get("PAYSWITCH_DURABILITY")) is not None:
            return Durability(value)
    return Durability.DISK


def _megabytes(text: str) -> int:
    match = _MEGABYTES.fullmatch(text)
    if match is None:
        raise EntryError(f"a memory limit is {text}, not a number of megabytes like 40M")
    return int(match[1])


class _Dumper(yaml.SafeDumper):
    """Writes each part out, scripts as they are read, and quotes what other YAML versions could
    take for a number."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else '"' if text[:1].isdigit() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


@click.command()
@click.option(
    "--owner",
    default="payswitch",
    show_default=True,
    help="Account on GitHub and Docker Hub, from which the defaults below are made.",
)
@click.option("--name", default="The Payswitch developers", show_default=True, help="Who you are.")
@click.option("--social", multiple=True, help="A profile's URL; may be given again.  [GitHub's]")
@click.option("--repository", help="URL of the source code.  [https://github.com/OWNER/payswitch]")
@click.option("--image", help="The published image, with a tag.  [docker.io/OWNER/payswitch:…]")
@click.option(
    "--out",
    default=_ROOT / "build" / "entry",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write into.  [build/entry]",
)
def entry(
    owner: str,
    name: str,
    social: tuple[str, ...],
    repository: str | None,
    image: str | None,
    out: Path,
) -> None:
    """Write what the Rinha de Backend 2025 asks of an entry, made from compose.yaml.

    Example: python -m bench.rinha.entry --owner somebody
    """
    if not _OWNER.fullmatch(owner):
        raise click.UsageError(f"--owner {owner!r} is no account's name")
    compose = _ROOT / _COMPOSE
    author = Author(
        name=name,
        social=social or (f"https://github.com/{owner}",),
        repository=repository or f"https://github.com/{owner}/payswitch",
        image=image or f"docker.io/{owner.lower()}/payswitch:{_built_tag(compose)}",
    )
    if not _PUBLISHED.fullmatch(author.image):
        raise click.UsageError(
            f"--image {author.image!r} does not name a repository with a tag other than latest"
        )
    try:
        written = write_entry(compose, author, out)
    except (EntryError, OSError) as error:
        click.echo(f"entry: {error}", err=True)
        sys.exit(1)
    click.echo(f"{out}: {', '.join(str(path.relative_to(out)) for path in written)}")
    click.echo(
        "The image must be public, for linux/amd64:\n"
        f"  docker build --platform linux/amd64 -f Containerfile -t {author.image} .\n"
        f"  docker push {author.image}",
        err=True,
    )


def _built_tag(compose: Path) -> str:
    """The tag of the image that the compose file builds."""
    services: dict[str, Any] = yaml.safe_load(compose.read_text())["services"]
    return next(
        str(service["image"]).rpartition(":")[2]
        for service in services.values()
        if "build" in service
    )


if __name__ == "__main__":
    entry(prog_name="python -m bench.rinha.entry")
