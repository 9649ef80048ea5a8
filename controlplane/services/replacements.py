"""ReplacementService: check, ask the operations, map the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc.aio

from controlplane.answers import AnswerBook
from controlplane.core.replacement import Replacement
from controlplane.operations.replacements import Replacements
from controlplane.operations.starting import Starting
from controlplane.repair_limiter import limits_message
from controlplane.services.fleet_mapping import start_answer, start_wish
from controlplane.services.mapping import (
    disk_name,
    replacement_message,
    transition_message,
    wish_change,
)
from stairwell.controlplane.v1 import replacement_service_pb2 as pb
from stairwell.controlplane.v1 import replacement_service_pb2_grpc as pb_grpc


class ReplacementServicer(pb_grpc.ReplacementServiceServicer):
    """Replacements over gRPC."""

    def __init__(self, replacements: Replacements, starting: Starting, answers: AnswerBook) -> None:
        self._replacements = replacements
        self._starting = starting
        self._answers = answers

    async def StartReplacement(
        self,
        request: pb.StartReplacementRequest,
        context: grpc.aio.ServicerContext[pb.StartReplacementRequest, pb.StartReplacementResponse],
    ) -> pb.StartReplacementResponse:
        """Replaces the member in a slot, by a spare if none is named."""
        del context

        async def start() -> pb.StartReplacementResponse:
            answer = await self._starting.start(
                disk_name(request.disk, "disk"),
                start_wish(request),
                validate_only=request.validate_only,
            )
            record = answer.replacement
            return start_answer(answer, replacement_message(record) if record else None)

        return await self._answers.once(
            "StartReplacement", request.request_id, request, pb.StartReplacementResponse, start
        )

    async def GetReplacement(
        self,
        request: pb.GetReplacementRequest,
        context: grpc.aio.ServicerContext[pb.GetReplacementRequest, pb.GetReplacementResponse],
    ) -> pb.GetReplacementResponse:
        """One replacement."""
        del context
        record = await self._replacements.get(request.id)
        return pb.GetReplacementResponse(replacement=self._message(record))

    async def ListReplacements(
        self,
        request: pb.ListReplacementsRequest,
        context: grpc.aio.ServicerContext[pb.ListReplacementsRequest, pb.ListReplacementsResponse],
    ) -> pb.ListReplacementsResponse:
        """A page of replacements, newest first."""
        del context
        found, token = await self._replacements.page(
            request.disk, request.page_size, request.page_token
        )
        return pb.ListReplacementsResponse(
            replacements=[self._message(each) for each in found], next_page_token=token
        )

    async def WatchReplacement(
        self,
        request: pb.WatchReplacementRequest,
        context: grpc.aio.ServicerContext[pb.WatchReplacementRequest, pb.WatchReplacementResponse],
    ) -> AsyncIterator[pb.WatchReplacementResponse]:
        """The present state and each change, until the end."""
        del context
        after = request.after_transition if request.HasField("after_transition") else None
        async with aclosing(self._replacements.watch(request.id, after)) as news:
            async for record, told in news:
                yield pb.WatchReplacementResponse(
                    replacement=self._message(record),
                    transitions=map(transition_message, told),
                )

    async def PauseReplacement(
        self,
        request: pb.PauseReplacementRequest,
        context: grpc.aio.ServicerContext[pb.PauseReplacementRequest, pb.PauseReplacementResponse],
    ) -> pb.PauseReplacementResponse:
        """Has a running one stand still."""
        del context
        record = await self._replacements.pause(request.id)
        return pb.PauseReplacementResponse(replacement=replacement_message(record))

    async def ResumeReplacement(
        self,
        request: pb.ResumeReplacementRequest,
        context: grpc.aio.ServicerContext[
            pb.ResumeReplacementRequest, pb.ResumeReplacementResponse
        ],
    ) -> pb.ResumeReplacementResponse:
        """Has a paused one go on."""
        del context
        record = await self._replacements.resume(request.id)
        return pb.ResumeReplacementResponse(replacement=replacement_message(record))

    async def CancelReplacement(
        self,
        request: pb.CancelReplacementRequest,
        context: grpc.aio.ServicerContext[
            pb.CancelReplacementRequest, pb.CancelReplacementResponse
        ],
    ) -> pb.CancelReplacementResponse:
        """Undoes one, or says why not."""
        del context
        cancelled = await self._replacements.cancel(request.id)
        return pb.CancelReplacementResponse(
            replacement=replacement_message(cancelled.replacement),
            outcome=pb.CancelOutcome.Value(f"CANCEL_OUTCOME_{cancelled.outcome}"),
            reason=cancelled.reason,
        )

    async def RetryReplacement(
        self,
        request: pb.RetryReplacementRequest,
        context: grpc.aio.ServicerContext[pb.RetryReplacementRequest, pb.RetryReplacementResponse],
    ) -> pb.RetryReplacementResponse:
        """Starts a failed one again."""
        del context
        record = await self._replacements.retry_text(request.id)
        return pb.RetryReplacementResponse(replacement=replacement_message(record))

    async def SetRepairLimits(
        self,
        request: pb.SetRepairLimitsRequest,
        context: grpc.aio.ServicerContext[pb.SetRepairLimitsRequest, pb.SetRepairLimitsResponse],
    ) -> pb.SetRepairLimitsResponse:
        """Bounds the repairs of a disk."""
        del context
        done = await self._replacements.set_limits(
            request.id,
            disk_name(request.disk, "disk") if request.disk else "",
            wish_change(request),
        )
        return pb.SetRepairLimitsResponse(
            replacement=self._message(done.running) if done.running is not None else None,
            limits=limits_message(done.wish, 0),
            told=done.told,
        )

    def _message(self, record: Replacement) -> pb.Replacement:
        """With the rate of its repair."""
        message = replacement_message(record)
        rate = self._replacements.rate_of(record)
        if rate is not None:
            message.repair_rate.CopyFrom(rate)
        return message

    async def GetReplacementTrace(
        self,
        request: pb.GetReplacementTraceRequest,
        context: grpc.aio.ServicerContext[
            pb.GetReplacementTraceRequest, pb.GetReplacementTraceResponse
        ],
    ) -> pb.GetReplacementTraceResponse:
        """The spans of a replacement."""
        del context
        trace_id, spans = await self._replacements.trace(request.id)
        return pb.GetReplacementTraceResponse(trace_id=trace_id, spans=spans)
