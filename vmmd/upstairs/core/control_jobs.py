"""Jobs that the upstairs asks of one member for its own purposes: repair, extent states, digests.

They are never sent again: when the member goes, they end as LOST and whoever asked decides.
"""

from __future__ import annotations

import enum

from stairlib.wire.frame import Frame, OpKind, OpStatus
from vmmd.upstairs.core.slot import Member

# Bytes for each extent in the payload of these: (generation, flush, flags), and the digest.
ARRAY_ENTRY_BYTES = {int(OpKind.EXTENT_STATES): 24, int(OpKind.EXTENT_DIGEST): 8}


class Outcome(enum.Enum):
    """How a control job stands."""

    PENDING = "pending"
    OK = "ok"
    FAILED = "failed"
    LOST = "lost"


class ControlJob:
    """One job; the fields after `outcome` are filled in by its reply."""

    __slots__ = (
        "extent",
        "job",
        "kind",
        "length",
        "member",
        "number",
        "offset",
        "outcome",
        "payload",
        "status",
        "text",
    )

    def __init__(
        self, job: int, kind: OpKind, member: Member, extent: int = 0, length: int = 0
    ) -> None:
        self.job = job
        self.kind = kind
        self.member = member
        self.extent = extent
        self.length = length
        self.outcome = Outcome.PENDING
        self.status = OpStatus.OK
        self.text = ""
        self.number = 0
        self.offset = 0
        self.payload = b""

    def describe(self) -> str:
        """For error messages."""
        text = f": {self.text}" if self.text else ""
        if self.outcome is Outcome.LOST:
            return f"{self.member.address} was lost during {self.kind.name}"
        return f"{self.kind.name} on {self.member.address} ended {self.status.name}{text}"


class ControlBook:
    """All control jobs in flight, by job id."""

    def __init__(self) -> None:
        self._jobs: dict[int, ControlJob] = {}

    def add(self, job: ControlJob) -> ControlJob:
        """Takes a job that is being sent."""
        self._jobs[job.job] = job
        return job

    def answer(
        self, member: Member, frame: Frame, index: int, job_id: int, payload: memoryview
    ) -> bool:
        """Takes op `index` of a reply, whose part of the frame's payload is `payload`; False when
        no such job was asked of the member."""
        job = self._jobs.get(job_id)
        if job is None or job.member is not member:
            return False
        del self._jobs[job_id]
        op = frame.ops[index]
        job.status = _status(int(op["status"]))
        job.number = int(op["number"])
        job.offset = int(op["offset"])
        if int(op["blob_bytes"]):
            job.text = frame.text(index)
        job.outcome = Outcome.OK if job.status is OpStatus.OK else Outcome.FAILED
        if job.outcome is Outcome.OK and job.kind in ARRAY_ENTRY_BYTES:
            asked = job.length * ARRAY_ENTRY_BYTES[job.kind]
            if len(payload) == asked and int(op["kind"]) == job.kind:
                job.payload = bytes(payload)
            else:
                job.outcome = Outcome.FAILED
                job.status = OpStatus.BAD_REQUEST
                job.text = f"the answer has {len(payload)} bytes instead of {asked}"
        return True

    def lose(self, member: Member) -> None:
        """The member is gone and will not answer."""
        for job_id in [key for key, job in self._jobs.items() if job.member is member]:
            self._jobs.pop(job_id).outcome = Outcome.LOST


def _status(value: int) -> OpStatus:
    try:
        return OpStatus(value)
    except ValueError:
        return OpStatus.IO_ERROR
