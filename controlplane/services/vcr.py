"""VcrService: the judge of volume construction requests over gRPC. No state, no peers.

A request that cannot be read is an answer for CheckVcr, whose question that is: what is readable of
it is judged as well, so that one answer tells all that is wrong. For CompareVcrs it is an error,
with paths that begin with `original` or `replacement`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

import grpc.aio

from controlplane.core.construction_check import CheckReport, check
from stairlib.model.construction_diff import Comparison, Outcome, compare
from stairlib.model.errors import FieldViolation, InvalidRequestError
from stairlib.model.violations import joined
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
        report = None if parsed.draft is None else check(parsed.draft, unread=parsed.unread)
        return _check_response(parsed, report)

    async def CompareVcrs(
        self,
        request: pb.CompareVcrsRequest,
        context: grpc.aio.ServicerContext[pb.CompareVcrsRequest, pb.CompareVcrsResponse],
    ) -> pb.CompareVcrsResponse:
        """What a replacement changes, or every reason why it cannot be one."""
        del context
        original = wire.parse_message(request.original, path="original")
        replacement = wire.parse_message(request.replacement, path="replacement")
        if original.construction is None or replacement.construction is None:
            raise _unreadable(original, replacement)
        return _compare_response(compare(original.construction, replacement.construction))


def _read(request: pb.CheckVcrRequest) -> wire.Parsed:
    if request.HasField("vcr") == request.HasField("vcr_json"):
        text = "give the construction request either in vcr or as JSON text in vcr_json"
        raise InvalidRequestError(text, (FieldViolation("vcr", text, "ONE_OF_REQUIRED"),))
    if request.HasField("vcr"):
        return wire.parse_message(request.vcr)
    return wire.parse_json(request.vcr_json)


def _unreadable(original: wire.Parsed, replacement: wire.Parsed) -> InvalidRequestError:
    """The error that names the fields of both; in turns, since an error holds few of them."""
    turns = zip_longest(original.violations, replacement.violations)
    listed = tuple(one for turn in turns for one in turn if one is not None)
    message = "a volume construction request cannot be read; correct the fields named"
    omitted = original.omitted + replacement.omitted
    return InvalidRequestError(message, listed, omitted=omitted)


def _check_response(parsed: wire.Parsed, report: CheckReport | None) -> pb.CheckVcrResponse:
    found = () if report is None else report.violations
    listed, cut = joined(parsed.violations, found)
    response = pb.CheckVcrResponse(
        valid=not listed,
        violations=_violations(listed),
        violations_omitted=parsed.omitted + cut + (report.omitted if report else 0),
    )
    if report is not None:
        summary = report.summary
        response.summary.CopyFrom(
            pb.VcrSummary(
                total_bytes=summary.total_bytes,
                regions=summary.regions,
                targets=summary.targets,
                encrypted=summary.encrypted,
                depth=summary.depth,
                block_size=summary.block_size,
                sources=summary.sources,
            )
        )
    return response


def _compare_response(comparison: Comparison) -> pb.CompareVcrsResponse:
    response = pb.CompareVcrsResponse(
        outcome=_OUTCOMES[comparison.outcome],
        violations=_violations(comparison.violations),
        violations_omitted=comparison.omitted,
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
