"""What the judge of construction requests said: text and exit codes. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from controlplane.cli.failure import Locate, violation_line
from controlplane.cli.units import format_bytes
from stairlib.model.errors import FieldViolation
from stairwell.controlplane.v1.vcr_service_pb2 import (
    CheckVcrResponse,
    CompareVcrsResponse,
    VcrOutcome,
    Violation,
)

# The comparison's outcome as an exit code, so that scripts need not parse text.
EXIT_CODES = {
    VcrOutcome.VCR_OUTCOME_REPLACE: 0,
    VcrOutcome.VCR_OUTCOME_GENERATION_ONLY: 3,
    VcrOutcome.VCR_OUTCOME_UNCHANGED: 4,
    VcrOutcome.VCR_OUTCOME_REJECT: 1,
}


def exit_code(outcome: int) -> int:
    """0 replace, 3 generation only, 4 unchanged, 1 rejected or unknown."""
    return next((code for known, code in EXIT_CODES.items() if known == outcome), 1)


def check_view(path: str, response: CheckVcrResponse, locate: Locate) -> str:
    """A valid request's size and shape, or everything that is wrong with it."""
    if not response.valid:
        count = len(response.violations) + response.violations_omitted
        lines = [f"{path}: not valid, {count} problem{'' if count == 1 else 's'}"]
        lines += _violations(response.violations, locate)
        return "\n".join(lines + _omitted(response.violations_omitted))
    summary = response.summary
    encrypted = ", encrypted" if summary.encrypted else ""
    sources = f", {summary.sources} file(s) or URL(s) of unknown size" if summary.sources else ""
    return (
        f"{path}: valid; {format_bytes(summary.total_bytes)} in blocks of {summary.block_size} "
        f"bytes, {summary.regions} region(s) on {summary.targets} targets{encrypted}{sources}"
    )


def diff_view(response: CompareVcrsResponse, locate: Locate, *, numbered: bool = False) -> str:
    """What the second request would do to the first; objections `numbered` as in the tree."""
    if response.outcome == VcrOutcome.VCR_OUTCOME_REPLACE:
        changed = response.changed
        return f"replace: {changed.path} (slot {changed.slot}) {changed.old} -> {changed.new}"
    if response.outcome == VcrOutcome.VCR_OUTCOME_GENERATION_ONLY:
        return "generation_only: only the generation was raised; no target changes"
    if response.outcome == VcrOutcome.VCR_OUTCOME_UNCHANGED:
        text = "unchanged: nothing to replace, and no generation is higher"
        return "\n".join([text, *_violations(response.violations, locate)])
    lines = ["reject: this is not a replacement of one target"]
    lines += _violations(response.violations, locate, numbered=numbered)
    return "\n".join(lines + _omitted(response.violations_omitted))


def _violations(
    violations: Iterable[Violation], locate: Locate, *, numbered: bool = False
) -> list[str]:
    return [
        f"  [{number}] {line}" if numbered else f"  {line}"
        for number, line in enumerate(
            (
                violation_line(FieldViolation(one.field, one.description, one.reason), locate)
                for one in violations
            ),
            start=1,
        )
    ]


def _omitted(count: int) -> list[str]:
    return [f"  and {count} more that are not listed"] if count else []
