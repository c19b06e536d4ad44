"""A controller that follows a script, on a real socket: for tests of what clients make of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from headway.errors import NotFound
from headway.rpc.convert import duration_to_pb
from headway.rpc.errors import domain_errors
from headway.rpc.server import Server
from headway.v1 import generation_pb2, inference_service_pb2_grpc
from headway.v1 import inference_service_pb2 as pb

Script = Callable[[pb.GenerateRequest, Any], AsyncIterator[pb.GenerateResponse]]


def admission(*, guaranteed: bool = True, binding_constraint: str = "") -> pb.GenerateResponse:
    message = pb.Admission(
        request_id="r1",
        state=pb.ADMISSION_STATE_GUARANTEED if guaranteed else pb.ADMISSION_STATE_BEST_EFFORT,
        tier="chat",
        plan_id="p1",
        num_prompt_tokens=3,
        binding_constraint=binding_constraint,
    )
    if guaranteed:
        message.ttft.CopyFrom(duration_to_pb(60.0))
        message.tpot.CopyFrom(duration_to_pb(30.0))
        message.predicted_ttft.CopyFrom(duration_to_pb(0.5))
        message.slack.CopyFrom(duration_to_pb(59.5))
    return pb.GenerateResponse(admission=message)


def tokens(first_index: int, *token_ids: int) -> pb.GenerateResponse:
    text = "".join(chr(token_id) for token_id in token_ids)
    chunk = generation_pb2.TokenChunk(first_index=first_index, token_ids=token_ids, text=text)
    return pb.GenerateResponse(tokens=chunk)


def finished(state: pb.FinalState = pb.FINAL_STATE_SUCCEEDED) -> pb.GenerateResponse:
    message = pb.Finished(
        state=state,
        usage=pb.Usage(num_prompt_tokens=3, num_output_tokens=3, num_prompt_tokens_recomputed=1),
        kv_transfer=generation_pb2.KvTransferUsage(
            num_bytes=4096, duration=duration_to_pb(0.25), overlapped_ratio=0.5, num_frames=2
        ),
    )
    if state == pb.FINAL_STATE_SUCCEEDED:
        message.finish_reason = generation_pb2.FINISH_REASON_LENGTH
    return pb.GenerateResponse(finished=message)


async def answer(_request: pb.GenerateRequest, _context: Any) -> AsyncIterator[pb.GenerateResponse]:
    """The script of a request that goes well."""
    yield admission()
    yield tokens(0, 72)
    yield tokens(1, 105, 33)
    yield finished()


@dataclass
class ScriptedController(inference_service_pb2_grpc.InferenceServiceServicer):
    """Plays `script` for each request; keeps what was asked, and says when a call was cancelled."""

    script: Script = answer
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def Generate(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        try:
            async with domain_errors(context):
                async for response in self.script(request, context):
                    yield response
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def Cancel(self, request: pb.CancelRequest, context: Any) -> pb.CancelResponse:
        async with domain_errors(context):
            if request.request_id != "r1":
                raise NotFound(f"no request {request.request_id} is running")
        return pb.CancelResponse()

    async def ListTiers(self, request: pb.ListTiersRequest, context: Any) -> pb.ListTiersResponse:
        chat = pb.Tier(name="chat")
        chat.slo.stages.add(ttft_slowdown=3.0, tpot=duration_to_pb(0.1), end_after_tokens=5)
        chat.slo.stages.add(tpot=duration_to_pb(0.2))
        return pb.ListTiersResponse(tiers=[chat, pb.Tier(name="best-effort")])

    async def GetCapacity(
        self, request: pb.GetCapacityRequest, context: Any
    ) -> pb.GetCapacityResponse:
        worker = pb.WorkerCapacity(
            worker_id="prefill-0",
            role=generation_pb2.WORKER_ROLE_PREFILL,
            num_kv_blocks=64,
            backlog=duration_to_pb(1.5),
        )
        return pb.GetCapacityResponse(model="m", workers=[worker], num_requests_running=2)


@asynccontextmanager
async def serving(controller: ScriptedController) -> AsyncIterator[str]:
    """Serve it on a free port; yields the address."""
    server = Server(["headway.v1.InferenceService"])
    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(controller, server.grpc)
    address = await server.listen("127.0.0.1:0")
    try:
        yield address
    finally:
        await server.stop(0.0)
