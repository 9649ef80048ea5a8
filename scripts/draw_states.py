"""Draws the state machines into the documents, from the tables that the code moves by.

`--check` changes nothing and fails when a drawing is not what the tables say. A drawing stands
between two lines, `<!-- states: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from downstaird.agent.core.region_states import REGION
from downstaird.agent.core.upkeep import PROCESS
from stairlib.model.state_table import StateTable
from vmmd.upstairs.core.reconcile_states import RECONCILE
from vmmd.upstairs.core.refusals import REFUSALS
from vmmd.upstairs.core.repair_states import REPAIR
from vmmd.upstairs.core.slot_states import MODE_AFTER_LOSS, SLOT
from vmmd.upstairs.core.upstairs_states import UPSTAIRS, UpstairsState

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "docs" / "upstairs.md", ROOT / "docs" / "agent.md")
_PLACE = re.compile(r"(<!-- states: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


Machine = StateTable[Any, Any]


def diagram(table: Machine) -> str:
    """A mermaid drawing, and the same as a table."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {table.first.name}"]
    for state, event, after, _ in table.moves:
        lines.append(f"    {state.name} --> {after.name}: {event.name}")
    lines += sorted(f"    {state.name} --> [*]" for state in table.ends)
    lines += ["```", "", "| in | event | to | when |", "|---|---|---|---|", *rows(table)]
    return "\n".join(lines)


def rows(table: Machine) -> list[str]:
    """Moves that differ only in the state they begin in are one row."""
    states: dict[str, list[str]] = {}
    for state, event, after, meaning in table.moves:
        rest = f"{event.name} | {after.name} | {meaning}"
        states.setdefault(rest, []).append(state.name)
    return [f"| {', '.join(names)} | {rest} |" for rest, names in states.items()]


def modes() -> str:
    """Rows: the slot's state. Columns: the upstairs'."""
    names = [state.name for state in UpstairsState]
    lines = ["| lost in | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for state, by_upstairs in MODE_AFTER_LOSS.items():
        cells = " | ".join(by_upstairs[upstairs].name for upstairs in UpstairsState)
        lines.append(f"| {state.name} | {cells} |")
    return "\n".join(lines)


def refusals() -> str:
    """One row a reason."""
    lines = [
        "| reason | what it says | while activating | while serving | for an OFFLINE member |",
        "|---|---|---|---|---|",
    ]
    for code, row in REFUSALS.items():
        outcomes = (row.activating, row.serving, row.offline)
        cells = " | ".join(outcome.name for outcome in outcomes)
        lines.append(f"| `{code}` | {row.meaning} | {cells} |")
    used = {
        o: None for row in REFUSALS.values() for o in (row.activating, row.serving, row.offline)
    }
    lines += ["", *(f"- {outcome.name}: {outcome.value}." for outcome in used)]
    return "\n".join(lines)


DRAWINGS: dict[str, Callable[[], str]] = {
    "upstairs": lambda: diagram(UPSTAIRS),
    "slot": lambda: diagram(SLOT),
    "reconciliation": lambda: diagram(RECONCILE),
    "live-repair": lambda: diagram(REPAIR),
    "agent-region": lambda: diagram(REGION),
    "agent-process": lambda: diagram(PROCESS),
    "modes": modes,
    "refusals": refusals,
}


def drawn(text: str) -> str:
    """The document with its drawings as the tables are now."""
    return _PLACE.sub(lambda m: f"{m[1]}{DRAWINGS[m['name']]()}\n{m[3]}", text)


def main() -> int:
    """Exit status 1 when `--check` finds a drawing that is not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, only look")
    check = parser.parse_args().check
    stale = []
    for path in DOCUMENTS:
        text = path.read_text()
        new = drawn(text)
        if new != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new)
    if check and stale:
        print(f"not as the tables are: {', '.join(stale)}: run scripts/draw_states.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
