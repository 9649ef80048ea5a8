"""Draws the state machines, and tables of limits, into the documents, from what the code goes by.

`--check` changes nothing and fails when a drawing is not what the tables say. A drawing stands
between two lines, `<!-- states: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from controlplane.core import replacement, scrub
from controlplane.metrics import METRICS
from downstaird.agent.core.region_states import REGION
from downstaird.agent.core.snapshot_wishes import SNAPSHOT
from downstaird.agent.core.upkeep import PROCESS
from downstaird.metrics import METRICS as DOWNSTAIRS_METRICS
from stairlib.model.state_table import StateTable
from stairlib.rpc.call_guard import RPC_METRICS
from stairlib.telemetry.metrics import Metric, exposed_name
from stairlib.telemetry.process_metrics import PROCESS_METRICS
from vmmd.core.lifecycle import TRANSITIONS as LIFECYCLE
from vmmd.core.lifecycle import MachineState
from vmmd.metrics import METRICS as VMMD_METRICS
from vmmd.upstairs.core import limits as limits_module
from vmmd.upstairs.core.reconcile_states import RECONCILE
from vmmd.upstairs.core.refusals import REFUSALS, Outcome, Refusal
from vmmd.upstairs.core.repair_states import REPAIR
from vmmd.upstairs.core.slot_states import MODE_AFTER_LOSS, SLOT
from vmmd.upstairs.core.upstairs_states import UPSTAIRS, UpstairsState
from vmmd.upstairs.shell import runner, slot_link, transport

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    ROOT / "docs" / "upstairs.md",
    ROOT / "docs" / "workflows.md",
    ROOT / "docs" / "metrics.md",
    ROOT / "docs" / "agent.md",
)
_LIMIT = re.compile(r"(?P<name>[A-Z][A-Z_]+) = ")
# The shell's, which is what has a clock.
TIMERS = (
    (runner, "TICK_SECONDS", "Between two looks at what is due."),
    (slot_link, "RPC_SECONDS", "For each call of the conversation."),
    (transport, "CONNECT_SECONDS", "For a data connection to stand; then the next way is tried."),
    (slot_link, "WELCOME_SECONDS", "For the daemon to accept the token."),
    (transport, "PING_SECONDS", "Between two PINGs on a data connection."),
    (transport, "SILENCE_SECONDS", "Without a byte, after which a data connection is ended."),
)
_PLACE = re.compile(r"(<!-- states: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


Machine = StateTable[Any, Any]
# State, event, state after, when that is.
Move = tuple[str, str, str, str]


def diagram(table: Machine) -> str:
    """A mermaid drawing, and the same as a table."""
    moves = [
        (state.name, event.name, after.name, when) for state, event, after, when in table.moves
    ]
    return drawing(table.first.name, moves, sorted(state.name for state in table.ends))


def drawing(first: str, moves: list[Move], ends: list[str]) -> str:
    """As `diagram`. Moves that stay where they are stand in the table only."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}"]
    for state, event, after, _ in moves:
        if state != after:
            lines.append(f"    {state} --> {after}: {event}")
    lines += [f"    {state} --> [*]" for state in ends]
    lines += ["```", "", "| in | event | to | when |", "|---|---|---|---|", *rows(moves)]
    return "\n".join(lines)


def rows(moves: list[Move]) -> list[str]:
    """One for each event and its meaning: moves that differ only in the state they begin in, or in
    the one they end in, are together."""
    nexts: dict[tuple[str, str, str], list[str]] = {}
    for state, event, after, when in moves:
        nexts.setdefault((state, event, when), []).append("(the same)" if state == after else after)
    states: dict[str, list[str]] = {}
    for (state, event, when), afters in nexts.items():
        states.setdefault(f"{event} | {', '.join(afters)} | {when}", []).append(state)
    return [f"| {', '.join(names)} | {rest} |" for rest, names in states.items()]


def workflow(machine: Any) -> str:
    """A workflow of the control plane: its events are classes, whose first sentence says when."""
    moves: list[Move] = []
    for state, by_event in machine.TRANSITIONS.items():
        for event, after in by_event.items():
            nexts = after if isinstance(after, tuple) else (after,)
            when = sentence(event.__doc__)
            moves += [(state.name, event.__name__, each.name, when) for each in nexts]
    ends = [state.name for state, by_event in machine.TRANSITIONS.items() if not by_event]
    return drawing(next(iter(machine.TRANSITIONS)).name, moves, ends)


def sentence(text: str) -> str:
    """The first one, on one line and without its full stop."""
    return " ".join(text.split()).split(". ")[0].removesuffix(".")


def lifecycle() -> str:
    """A machine's states follow each other without named events."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {MachineState.CREATING.name}"]
    for state in MachineState:
        lines += [f"    {state.name} --> {s.name}" for s in MachineState if s in LIFECYCLE[state]]
    lines += [f"    {state.name} --> [*]" for state in MachineState if not LIFECYCLE[state]]
    return "\n".join([*lines, "```"])


def limits() -> str:
    """One row a limit: the comment above it is its reason; constants in a row share one."""
    lines = ["| limit | value | why |", "|---|---|---|"]
    comment: list[str] = []
    for line in Path(limits_module.__file__).read_text().splitlines():
        if line.startswith("# "):
            comment.append(line[2:])
        elif match := _LIMIT.match(line):
            name = match["name"]
            value = shown(name, getattr(limits_module, name))
            lines.append(f"| `{name}` | {value} | {' '.join(comment) or '(as above)'} |")
            comment = []
        else:
            comment = []
    for module, name, why in TIMERS:
        lines.append(f"| `{name}` | {shown(name, getattr(module, name))} | {why} |")
    return "\n".join(lines)


def shown(name: str, value: float) -> str:
    """With its unit, which is in the name."""
    if "SECONDS" in name:
        return f"{value:g} s"
    if "BYTES" in name:
        if not isinstance(value, int) or value < 1 << 10:
            return f"{value} bytes"
        return f"{value >> 20} MiB" if value >= 1 << 20 else f"{value >> 10} KiB"
    return f"{value:,}"


def modes() -> str:
    """Rows: the slot's state. Columns: the upstairs'."""
    names = [state.name for state in UpstairsState]
    lines = ["| lost in | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for state, by_upstairs in MODE_AFTER_LOSS.items():
        cells = " | ".join(by_upstairs[upstairs].name for upstairs in UpstairsState)
        lines.append(f"| {state.name} | {cells} |")
    return "\n".join(lines)


def outcomes(row: Refusal) -> tuple[Outcome, ...]:
    """In the order of the columns."""
    return row.activating, row.serving, row.offline, row.read_only


def refusals() -> str:
    """One row a reason."""
    lines = [
        "| reason | what it says | activating | serving | OFFLINE member | read-only set |",
        "|---|---|---|---|---|---|",
    ]
    for code, row in REFUSALS.items():
        cells = " | ".join(outcome.name for outcome in outcomes(row))
        lines.append(f"| `{code}` | {row.meaning} | {cells} |")
    lines += ["", *(f"- {outcome.name}: {outcome.value}." for outcome in Outcome)]
    return "\n".join(lines)


def metrics_table(metrics: Iterable[Metric]) -> str:
    """One row a metric, with the name that Prometheus reads."""
    lines = [
        "| metric | as Prometheus reads it | kind | unit | labels | what it says |",
        "|---|---|---|---|---|---|",
    ]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(
            f"| `{metric.name}` | `{exposed_name(metric)}` | {metric.kind} | `{metric.unit}` |"
            f" {labels} | {metric.description} |"
        )
    return "\n".join(lines)


DRAWINGS: dict[str, Callable[[], str]] = {
    "upstairs": lambda: diagram(UPSTAIRS),
    "slot": lambda: diagram(SLOT),
    "reconciliation": lambda: diagram(RECONCILE),
    "live-repair": lambda: diagram(REPAIR),
    "agent-region": lambda: diagram(REGION),
    "agent-process": lambda: diagram(PROCESS),
    "agent-snapshot": lambda: diagram(SNAPSHOT),
    "modes": modes,
    "refusals": refusals,
    "limits": limits,
    "replacement": lambda: workflow(replacement),
    "scrub": lambda: workflow(scrub),
    "machine": lifecycle,
    "metrics": lambda: metrics_table(METRICS),
    "metrics-downstairs": lambda: metrics_table(DOWNSTAIRS_METRICS),
    "metrics-vmmd": lambda: metrics_table(VMMD_METRICS),
    "metrics-process": lambda: metrics_table(PROCESS_METRICS),
    "metrics-rpc": lambda: metrics_table(RPC_METRICS),
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
