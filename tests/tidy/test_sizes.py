"""Limits on sizes and words: files, functions, docstrings, and what nobody should leave lying
about."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 60
FOLDERS = ("stairlib", "controlplane", "vmmd", "downstaird", "scripts", "tests")
LEFT_OVER = re.compile(r"(?<![A-Za-z])(TODO|FIXME|XXX|HACK)(?![A-Za-z])|NotImplementedError")


def python_files() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def test_files_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {lines}"
        for path in python_files()
        if (lines := len(path.read_text().splitlines())) > FILE_LINES_MAX
    ]
    assert not long, long


def test_functions_are_short() -> None:
    long = []
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines}")
    assert not long, "\n".join(long)


def test_every_module_says_what_it_is_for() -> None:
    bare = [
        str(path.relative_to(ROOT))
        for path in python_files()
        if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not bare, bare


def test_nothing_is_left_for_later_in_the_sources() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in python_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if LEFT_OVER.search(line)
    ]
    assert not found, found


@pytest.mark.parametrize("name", ["crucible-disks.json", "replace.json"])
def test_examples_are_the_documents_own(name: str) -> None:
    """The two files people paste must stay as the walk-through prints them."""
    digests = {
        "crucible-disks.json": "533f342fa90f8a9ca4370fa72be8dafa41d23f7d6d17aa28ba66cf30a768a5ac",
        "replace.json": "beaf4e012ba504cdff09b43d34645bf6999a14392795cc7d62255fad90215ee4",
    }
    import hashlib

    assert hashlib.sha256((ROOT / "examples" / name).read_bytes()).hexdigest() == digests[name]
