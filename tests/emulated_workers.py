"""Worker services in this process, on real sockets, with emulated engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from headway.adapters.emulated.engine import open_emulated_engine
from headway.adapters.null_telemetry import NullTelemetry
from headway.adapters.worker.slots import Slots
from headway.config import Config, EmulatedConfig
from headway.core.cluster import WorkerRole
from headway.ports.engine import Engine, EngineLoad
from headway.ports.telemetry import Telemetry
from headway.rpc.server import Server, open_channel
from headway.v1.decode_service_pb2 import DecodeRequest, DecodeResponse
from headway.v1.decode_service_pb2_grpc import (
    DecodeServiceStub,
    add_DecodeServiceServicer_to_server,
)
from headway.v1.generation_pb2 import SamplingParams
from headway.v1.kv_transfer_service_pb2 import KvTarget
from headway.v1.prefill_service_pb2 import PrefillRequest
from headway.v1.prefill_service_pb2_grpc import (
    PrefillServiceStub,
    add_PrefillServiceServicer_to_server,
)
from services.decode.servicer import DecodeServicer
from services.prefill.servicer import PrefillServicer

if TYPE_CHECKING:
    # They exist in the stub files only.
    from headway.v1.decode_service_pb2_grpc import DecodeServiceAsyncStub
    from headway.v1.prefill_service_pb2_grpc import PrefillServiceAsyncStub

# Far longer than anything here takes: it only ends a test that would hang.
PATIENCE_S = 20.0

ResultT = TypeVar("ResultT")


def write_profile(path: Path, *, step_s: float, token_s: float = 0.0) -> Path:
    """A perf model whose step takes `step_s`, and `token_s` for each token in it."""
    path.write_text(
        f"""
source = "made up for a test"
measured_on = "nothing"
[perf_model]
floor_s = {step_s}
token_s = {token_s}
fixed_s = 0.0
sequence_s = 0.0
context_token_s = 0.0
prefill_attention_s = 0.0
chunk_s = 0.0
""",
        encoding="utf-8",
    )
    return path


def emulated_config(profile: Path, **engine: int) -> Config:
    """One prefill and one decode worker; `engine` overrides fields of EmulatedConfig."""
    return Config.model_validate(
        {
            "model": {"name": "emulated", "tokenizer": "bytes"},
            "engine": {"kind": "emulated", "profile": str(profile), **engine},
            "controller": {"tiers": {}},
        }
    )


@dataclass(frozen=True)
class WorkerUnderTest:
    engine: Engine
    slots: Slots
    address: str

    async def load(self) -> EngineLoad:
        return await self.engine.load()


@dataclass(frozen=True)
class Pair:
    """A prefill worker, a decode worker, and a channel to each."""

    prefill: WorkerUnderTest
    decode: WorkerUnderTest
    prefill_channel: grpc.aio.Channel
    decode_channel: grpc.aio.Channel

    @property
    def prefill_stub(self) -> PrefillServiceAsyncStub:
        return PrefillServiceStub(self.prefill_channel)

    @property
    def decode_stub(self) -> DecodeServiceAsyncStub:
        return DecodeServiceStub(self.decode_channel)


@asynccontextmanager
async def worker(
    config: Config, role: WorkerRole, telemetry: Telemetry
) -> AsyncIterator[WorkerUnderTest]:
    assert isinstance(config.engine, EmulatedConfig)
    engine = await open_emulated_engine(config, config.engine, role, "127.0.0.1")
    prefills = role is WorkerRole.PREFILL or config.decode.prefills
    slots = Slots(engine.info.max_num_running, prefills=prefills)
    server = Server(())
    match role:
        case WorkerRole.PREFILL:
            add_PrefillServiceServicer_to_server(
                PrefillServicer(engine, slots, telemetry), server.grpc
            )
        case WorkerRole.DECODE:
            add_DecodeServiceServicer_to_server(
                DecodeServicer(engine, slots, telemetry), server.grpc
            )
    try:
        yield WorkerUnderTest(engine, slots, await server.listen("127.0.0.1:0"))
    finally:
        await server.stop(0.0)
        await engine.close()


@asynccontextmanager
async def worker_pair(
    prefill_config: Config, decode_config: Config | None = None, telemetry: Telemetry | None = None
) -> AsyncIterator[Pair]:
    telemetry = telemetry or NullTelemetry()
    async with (
        worker(prefill_config, WorkerRole.PREFILL, telemetry) as prefill,
        worker(decode_config or prefill_config, WorkerRole.DECODE, telemetry) as decode,
        open_channel(prefill.address) as prefill_channel,
        open_channel(decode.address) as decode_channel,
    ):
        yield Pair(prefill, decode, prefill_channel, decode_channel)


def decode_request(
    request_id: str, prompt: Sequence[int], max_tokens: int, stop: Sequence[str] = ()
) -> DecodeRequest:
    return DecodeRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, stop=stop),
        kv_timeout=Duration(seconds=30),
    )


def prefill_request(decode: DecodeRequest, target: KvTarget) -> PrefillRequest:
    """What goes to the prefill worker once the decode worker has said where the pages go."""
    return PrefillRequest(
        request_id=decode.request_id, prompt_token_ids=decode.prompt_token_ids, target=target
    )


async def reserved(responses: AsyncIterator[DecodeResponse]) -> KvTarget:
    """The target in the first message of a decode."""
    response = await anext(responses)
    assert response.WhichOneof("event") == "reserved"
    return response.reserved.target


async def eventually(
    read: Callable[[], Awaitable[ResultT]], is_right: Callable[[ResultT], bool]
) -> ResultT:
    """Read until it is right; used where another process or thread gives no event to await."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_right(value := await read()):  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)
    return value


def at_rest(load: EngineLoad) -> bool:
    """Whether all that was ever created has been released, and something was."""
    counters = load.resources
    return (
        load.num_running == load.num_waiting == 0
        and counters.num_slots_created == counters.num_slots_released > 0
        and counters.num_kv_blocks_created == counters.num_kv_blocks_released
        and counters.num_staged_pages_created == counters.num_staged_pages_released
    )
