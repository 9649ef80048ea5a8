"""Frames as a reader of a trace wants them: one line, each op with its job and its blocks."""

from __future__ import annotations

from stairlib.wire.frame import Frame, OpKind, OpStatus

OPS_SHOWN = 6


def shown(frame: Frame) -> str:
    """Kind and ops, statuses where they are not OK."""
    parts = []
    for op in frame.ops[:OPS_SHOWN]:
        kind, job, length = OpKind(int(op["kind"])).name.lower(), int(op["job"]), int(op["length"])
        where = f" {int(op['offset'])}+{length}" if length else ""
        status = OpStatus(int(op["status"]))
        parts.append(f"{job} {kind}{where}" + (f" {status.name}" if status else ""))
    if len(frame.ops) > OPS_SHOWN:
        parts.append(f"and {len(frame.ops) - OPS_SHOWN} more")
    return f"{frame.kind.name}: {', '.join(parts)}"
