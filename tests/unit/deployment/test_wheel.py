"""The wheel has all that `payswitch up` needs, whether it is built from a checkout or the sdist."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.documented import REPOSITORY

BESIDE = ("haproxy.cfg", "deploy/alerts.yml", "deploy/grafana-dashboard.json")


def build(source: Path, target: str, folder: Path) -> Path:
    """Build what can be installed from a source tree, as pip does."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    [built] = folder.iterdir()
    return built


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPOSITORY, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_has_every_file_of_the_packages_and_what_lies_beside_them(wheel: Path) -> None:
    sources = {
        str(file.relative_to(folder))
        for folder, package in ((REPOSITORY / "src", "payswitch"), (REPOSITORY, "workers"))
        for file in (folder / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert sources | {f"payswitch/{each}" for each in BESIDE} <= names(wheel)


def test_the_sdist_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(REPOSITORY, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.glob("payswitch-*")
    assert names(build(source, "wheel", tmp_path / "wheel")) == names(wheel)


def test_what_is_installed_finds_its_haproxy_configuration(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    haproxy = tmp_path / "programs" / "haproxy"
    haproxy.parent.mkdir()
    haproxy.write_text("#!/bin/sh\n")
    haproxy.chmod(0o755)
    ended = subprocess.run(
        [sys.executable, "-c", "from payswitch.local.machine import *; print(find_haproxy()[-1])"],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "PATH": str(haproxy.parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.strip() == str(tmp_path / "installed" / "payswitch" / "haproxy.cfg")


def test_the_image_is_built_of_all_that_the_wheel_needs() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    lines = (REPOSITORY / "Containerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    let_through = (REPOSITORY / ".containerignore").read_text().split()
    for source in wanted:
        assert source in copied
        assert f"!{source}" in let_through
