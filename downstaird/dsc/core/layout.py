"""Which downstairs a `dsc` keeps: port, region id, directory and output file of each member.

Invariants: members are numbered from 0 (their client id, cid); every port is legal and no two
members share a port, a directory or an output file. The region id is made of the port, so that the
same command finds the same regions again.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from stairlib.model.errors import FieldViolation, InvalidRequestError

PORT_MAX = 65535
# Each member is a process of some 60 MiB; far above what one machine is asked for.
MEMBERS_MAX = 64
# A downstairs takes the port after its own for data when that is free: the next member's must be
# further away.
PORT_STEP_MIN = 2


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """One downstairs to be: `directory` holds its region, `output` takes what it prints."""

    cid: int
    port: int
    region_id: UUID
    directory: str
    output: str


def region_id(port: int) -> UUID:
    """The region id of the member at `port`: 12345678-0000-0000-0000-<port in 12 digits>."""
    return UUID(f"12345678-0000-0000-0000-{port:012d}")


def plan_members(
    *,
    count: int,
    port_base: int,
    port_step: int,
    region_dirs: Sequence[str],
    output_dir: str,
) -> tuple[MemberPlan, ...]:
    """The members; InvalidRequestError names each flag that is wrong.

    `region_dirs` is one directory for all, or one for each member.
    """
    _check(count, port_base, port_step, region_dirs)
    dirs = list(region_dirs) * (count if len(region_dirs) == 1 else 1)
    ports = [port_base + port_step * cid for cid in range(count)]
    return tuple(
        MemberPlan(
            cid=cid,
            port=port,
            region_id=region_id(port),
            directory=posixpath.join(dirs[cid], str(port)),
            output=posixpath.join(output_dir, f"downstairs-{port}.txt"),
        )
        for cid, port in enumerate(ports)
    )


def _check(count: int, port_base: int, port_step: int, region_dirs: Sequence[str]) -> None:
    wrong = []
    if not 1 <= count <= MEMBERS_MAX:
        wrong.append(("--region-count", f"is {count}, must be from 1 to {MEMBERS_MAX}"))
    elif len(region_dirs) not in (1, count):
        text = f"is given {len(region_dirs)} times, must be given once or {count} times"
        wrong.append(("--region-dir", text))
    if port_step < PORT_STEP_MIN:
        text = f"is {port_step}, must be at least {PORT_STEP_MIN}: each member takes two ports"
        wrong.append(("--port-step", text))
    elif not 1 <= port_base <= PORT_MAX - port_step * (count - 1):
        last = port_base + port_step * (count - 1)
        text = f"is {port_base}, which makes the last port {last}; must keep 1 to {PORT_MAX}"
        wrong.append(("--port-base", text))
    if wrong:
        raise InvalidRequestError(
            "; ".join(f"{flag} {text}" for flag, text in wrong),
            tuple(FieldViolation(flag, text, "OUT_OF_RANGE") for flag, text in wrong),
        )
