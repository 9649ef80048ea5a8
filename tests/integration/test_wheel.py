"""What the wheel brings: the programs with the files they need, man pages, shell completion."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("controlplane", "vmmd", "downstaird", "stairlib", "protos", "share")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files in a wheel of this tree, made from a copy so that nothing is left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for part in PARTS:
        shutil.copytree(ROOT / part, source / part, ignore=ignored)
    for file in ("pyproject.toml", "README.md"):
        shutil.copyfile(ROOT / file, source / file)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "-w", folder, source]
    subprocess.run(command, check=True, timeout=100)
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_man_pages_and_completion_are_installed(names: set[str]) -> None:
    installed = {name.partition(".data/data/")[2] for name in names if ".data/data/" in name}
    made = {str(file.relative_to(ROOT)) for file in (ROOT / "share").rglob("*") if file.is_file()}
    assert installed == made
    assert {"share/man/man1/stairwell.1", "share/zsh/site-functions/_stairwell"} <= made


def test_what_the_programs_read_is_there(names: set[str]) -> None:
    for folder, pattern in (
        ("controlplane/console/assets", "*"),
        ("controlplane/store/migrations", "*.py"),
        ("protos/stairwell", "*_pb2.py"),
    ):
        files = [file for file in (ROOT / folder).rglob(pattern) if file.is_file()]
        wanted = {
            str(file.relative_to(ROOT)).removeprefix("protos/")
            for file in files
            if "__pycache__" not in file.parts
        }
        assert wanted
        assert wanted <= names
