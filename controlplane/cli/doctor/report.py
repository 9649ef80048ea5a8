"""The findings of a host as people read them, and as data. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from controlplane.cli.doctor.judgement import Finding, Verdict, works
from controlplane.cli.render import new_table

_MARKS = {
    Verdict.OK: ("ok", "green"),
    Verdict.OPTIONAL: ("-", "dim"),
    Verdict.WARNING: ("mind", "yellow"),
    Verdict.FAILED: ("FAILS", "bold red"),
}


def report(findings: Sequence[Finding]) -> RenderableType:
    """A table, and below it what to do about each thing that is not well."""
    table = new_table("AREA", "WHAT", "", "SEEN")
    area = ""
    for one in findings:
        mark, style = _MARKS[one.verdict]
        table.add_row(
            one.area if one.area != area else "", one.name, Text(mark, style=style), one.seen
        )
        area = one.area
    lines: list[RenderableType] = []
    for verdict in (Verdict.FAILED, Verdict.WARNING, Verdict.OPTIONAL):
        mark, style = _MARKS[verdict]
        for one in findings:
            if one.verdict is verdict:
                head = Text(f"{mark:<5} {one.name}: ", style=style)
                lines.append(head + Text(one.advice, style=""))
    return Group(table, "", *lines, *([""] if lines else []), closing(findings))


def closing(findings: Sequence[Finding]) -> str:
    """The last word."""
    count = Counter(one.verdict for one in findings)
    if not works(findings):
        return f"{count[Verdict.FAILED]} of {len(findings)} fail: remove them first, see above"
    minds = count[Verdict.WARNING]
    mind = f", {minds} to keep in mind" if minds else ""
    return f"all that is needed works{mind}; try `stairwell demo`"


def data(findings: Sequence[Finding]) -> dict[str, Any]:
    """The JSON document."""
    return {"works": works(findings), "findings": [asdict(one) for one in findings]}
