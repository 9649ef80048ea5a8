"""`controlplane check-database` and `migrate-database`: what is stored, said to people."""

from __future__ import annotations

import json
import sys
from typing import Any

from controlplane.store.inspection import Report, inspect, migrate_place
from controlplane.store.place import Place
from stairlib.model.errors import StairwellError


def run(place: Place, *, migrate: bool, as_json: bool) -> int:
    """Prints the report, after a migration if wanted; the exit status."""
    try:
        before = migrate_place(place) if migrate else None
        report = inspect(place)
    except StairwellError as error:
        print(f"controlplane: {error.message}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(_document(report, before), indent=2))
    else:
        print(_text(report, before))
    return 1 if report.problem else 0


def _document(report: Report, before: str | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "place": report.where,
        "schema_version": report.version,
        "needed_version": report.needed,
        "secret_key": report.key,
        "counts": report.counts,
        "control_planes": [
            {"name": each.name, "leases": each.leases, "seconds_left": each.seconds_left}
            for each in report.owners
        ],
        "problem": report.problem,
    }
    return document | ({"migrated_from": before} if before else {})


def _text(report: Report, before: str | None) -> str:
    lines = [
        f"state in        {report.where}",
        f"schema version  {report.version or 'none yet'} (this program needs {report.needed})",
        f"secret key      {report.key}",
    ]
    if before:
        lines.insert(1, f"migrated from   {before}")
    lines += [f"{name:<15} {count}" for name, count in report.counts.items()]
    for each in report.owners:
        left = "for as long as it runs"
        if each.seconds_left is not None:
            left = f"{each.seconds_left:.1f} s left" if each.seconds_left > 0 else "ended"
        lines.append(f"control plane   {each.name}: {each.leases} leases, {left}")
    lines.append(f"problem         {report.problem}" if report.problem else "good")
    return "\n".join(lines)
