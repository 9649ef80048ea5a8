"""VcrService: the judge of volume construction requests over gRPC. No state, no peers.

A request that cannot be read is an answer for CheckVcr, whose question that is, and an error for
CompareVcrs, with paths that begin with `original` or `replacement`.
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc.aio

from controlplane.core.construction_check import CheckReport, check
from stairlib.model.construction_diff import Comparison, Outcome, compare
from stairlib.model.errors import FieldViolation, InvalidRequestError
from stairlib.wire import construction as wire
from stairwell.controlplane.v1 import vcr_service_pb2 as pb
from stairwell.controlplane.v1 import vcr_service_pb2_grpc as pb_grpc

_OUTCOMES = {
    Outcome.REPLACE: pb.VCR_OUTCOME_REPLACE,
    Outcome.GENERATION_ONLY: pb.VCR_OUTCOME_GENERATION_ONLY,
    Outcome.UNCHANGED: pb.VCR_OUTCOME_UNCHANGED,
    Outcome.REJECT: pb.VCR_OUTCOME_REJECT,
}


class VcrServicer(pb_grpc.VcrServiceServicer):
    """Stateless; one may serve any number of calls at once."""

    async def CheckVcr(
        self,
        request: pb.CheckVcrRequest,
        context: grpc.aio.ServicerContext[pb.CheckVcrRequest, pb.CheckVcrResponse],
    ) -> pb.CheckVcrResponse:
        """Every problem of one request, and what it amounts to."""
        del context
        parsed = _read(request)
        if parsed.construction is None:
            return pb.CheckVcrResponse(valid=False, violations=_violations(parsed.violations))
        return _check_response(check(parsed.construction))

    async def CompareVcrs(
        self,
        request: pb.CompareVcrsRequest,
        context: grpc.aio.ServicerContext[pb.CompareVcrsRequest, pb.CompareVcrsResponse],
    ) -> pb.CompareVcrsResponse:
        """What a replacement changes, or every reason why it cannot be one."""
        del context
        original = wire.parse_message(request.original, path="original")
        replacement = wire.parse_message(request.replacement, path="replacement")
        violations = original.violations + replacement.violations
        if original.construction is None or replacement.construction is None:
            message = "a volume construction request cannot be read; correct the fields named"
            raise InvalidRequestError(message, violations)
        return _compare_response(compare(original.construction, replacement.construction))


def _read(request: pb.CheckVcrRequest) -> wire.Parsed:
    if request.HasField("vcr") == request.HasField("vcr_json"):
        text = "give the construction request either in vcr or as JSON text in vcr_json"
        raise InvalidRequestError(text, (FieldViolation("vcr", text, "ONE_OF_REQUIRED"),))
    if request.HasField("vcr"):
        return wire.parse_message(request.vcr)
    return wire.parse_json(request.vcr_json)


def _check_response(report: CheckReport) -> pb.CheckVcrResponse:
    summary = report.summary
    return pb.CheckVcrResponse(
        valid=report.valid,
        violations=_violations(report.violations),
        summary=pb.VcrSummary(
            total_bytes=summary.total_bytes,
            regions=summary.regions,
            targets=summary.targets,
            encrypted=summary.encrypted,
            depth=summary.depth,
            block_size=summary.block_size,
        ),
    )


def _compare_response(comparison: Comparison) -> pb.CompareVcrsResponse:
    response = pb.CompareVcrsResponse(
        outcome=_OUTCOMES[comparison.outcome],
        violations=_violations(comparison.violations),
    )
    if comparison.changed is not None:
        changed = comparison.changed
        response.changed.path = changed.path
        response.changed.slot = changed.slot
        response.changed.old = changed.old
        response.changed.new = changed.new
    return response


def _violations(violations: Iterable[FieldViolation]) -> list[pb.Violation]:
    return [
        pb.Violation(field=v.field, reason=v.reason, description=v.description) for v in violations
    ]
