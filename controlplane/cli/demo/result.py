"""What the demo measured and whether it proves what it should. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType

from controlplane.cli.render import fields
from controlplane.cli.units import format_bytes, format_rate, format_seconds


@dataclass(frozen=True, slots=True)
class Replaced:
    """Which slot changed its member."""

    slot: int
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one run, under the names of the JSON file."""

    bytes_written: int
    guest_ios: int
    guest_errors: int
    replaced: Replaced
    repair_bytes: int
    repair_seconds: float
    replicas_equal: bool
    read_back_equal: bool
    trace_id: str
    trace_services: tuple[str, ...]
    guest_p99_before_ms: float
    guest_p99_during_ms: float

    def data(self) -> dict[str, Any]:
        """The JSON document: exactly these keys."""
        data = asdict(self)
        data["trace_services"] = list(self.trace_services)
        for name in ("repair_seconds", "guest_p99_before_ms", "guest_p99_during_ms"):
            data[name] = round(data[name], 3)
        return data

    def failures(self, bytes_wanted: int) -> list[str]:
        """What the run failed to prove, a sentence each; empty when all is right."""
        found = []
        if self.bytes_written < bytes_wanted:
            written, wanted = format_bytes(self.bytes_written), format_bytes(bytes_wanted)
            found.append(f"the guest wrote {written} where {wanted} were asked for")
        if self.guest_errors:
            found.append(f"the guest saw {self.guest_errors} failed or wrong commands")
        if not self.repair_bytes:
            found.append("the repair copied nothing")
        if not self.replicas_equal:
            found.append("the three replicas do not agree block for block")
        if not self.read_back_equal:
            found.append("what was written did not all come back from the new member alone")
        if not self.trace_id or len(self.trace_services) < SERVICES_MIN:
            found.append(
                f"the trace reached {len(self.trace_services)} services, not the "
                f"{SERVICES_MIN} of a replacement"
            )
        return found


# Control plane, vmmd with its machine, and downstairs.
SERVICES_MIN = 3


def summary(result: Result) -> RenderableType:
    """The figures for people."""
    rate = result.repair_bytes / result.repair_seconds if result.repair_seconds > 0 else 0.0
    repaired = (
        f"{format_bytes(result.repair_bytes)} in {format_seconds(result.repair_seconds)} "
        f"({format_rate(rate)})"
    )
    replaced = result.replaced
    return fields(
        [
            ("guest wrote", format_bytes(result.bytes_written)),
            ("guest commands", f"{result.guest_ios}, {result.guest_errors} failed or wrong"),
            ("replaced", f"slot {replaced.slot}: {replaced.old} -> {replaced.new}"),
            ("repaired", repaired),
            ("guest p99 before", f"{result.guest_p99_before_ms:.2f} ms"),
            ("guest p99 during", f"{result.guest_p99_during_ms:.2f} ms"),
            ("replicas agree", "yes, block for block" if result.replicas_equal else "NO"),
            ("read back", "all right, new member alone" if result.read_back_equal else "WRONG"),
            ("trace", f"{result.trace_id}: {', '.join(result.trace_services)}"),
        ]
    )
