"""What the keys of `top` ask the control plane for; each answers with a sentence for its log."""

from __future__ import annotations

from controlplane.cli.render import replacement_word
from controlplane.cli.session import Session
from controlplane.cli.units import format_limit, parse_size
from stairwell.controlplane.v1 import replacement_service_pb2 as pb


async def pause(session: Session, one: pb.Replacement) -> str:
    """Has a replacement stand still."""
    answer = await session.call(
        session.replacements.PauseReplacement,
        pb.PauseReplacementRequest(id=one.id),
        pb.PauseReplacementResponse,
    )
    word = replacement_word(answer.replacement.paused_in)
    return f"{_name(one)} is paused in {word}; r has it go on"


async def resume(session: Session, one: pb.Replacement) -> str:
    """Has a paused replacement go on."""
    answer = await session.call(
        session.replacements.ResumeReplacement,
        pb.ResumeReplacementRequest(id=one.id),
        pb.ResumeReplacementResponse,
    )
    return f"{_name(one)} goes on in {replacement_word(answer.replacement.state)}"


async def limit(session: Session, disk: str, rate: str) -> str:
    """Bounds the repairs of a disk; ValueError for a rate that is none."""
    request = pb.SetRepairLimitsRequest(disk=disk, bytes_per_second_max=parse_size(rate))
    answer = await session.call(
        session.replacements.SetRepairLimits, request, pb.SetRepairLimitsResponse
    )
    return f"{disk}: repairs have {format_limit(answer.limits.bytes_per_second_max)}"


def _name(one: pb.Replacement) -> str:
    return f"{one.disk} slot {one.slot}"
