"""The failure guide names codes that exist, and all that a slot can be refused with."""

from __future__ import annotations

import re

from tests.documents.stage import DOCS
from vmmd.upstairs.core.refusals import REFUSALS

GUIDE = (DOCS / "failures.md").read_text()
SOURCES = [
    path
    for package in ("controlplane", "downstaird", "stairlib", "vmmd")
    for path in (DOCS.parent / package).rglob("*.py")
]


def codes() -> set[str]:
    """The codes the guide explains: capitals in code quotes at the start of a row."""
    rows = [line.split("|")[1] for line in GUIDE.splitlines() if line.startswith("| `")]
    return {code for row in rows for code in re.findall(r"`([A-Z][A-Z_]+)`", row)}


def test_every_code_is_one_of_the_programs() -> None:
    source = "\n".join(path.read_text() for path in SOURCES)
    named = codes()
    assert len(named) > 30
    assert {code for code in named if f'"{code}"' not in source} == set()


def test_everything_a_slot_is_refused_with_is_explained() -> None:
    assert set(REFUSALS) - codes() == set()
