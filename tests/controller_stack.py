"""A controller and emulated workers in this process, on real sockets, with everything real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from headway.adapters.control_link import ControlLink
from headway.adapters.null_telemetry import NullTelemetry
from headway.config import Config
from headway.core.cluster import WorkerLoad, WorkerRole, WorkerSpec
from headway.ports.engine import EngineLoad
from headway.rpc.server import open_channel
from headway.v1 import inference_service_pb2 as pb
from headway.v1.inference_service_pb2_grpc import InferenceServiceStub
from services.controller.process import ControllerProcess
from tests.emulated_workers import WorkerUnderTest, eventually, worker

if TYPE_CHECKING:
    from headway.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

Call = grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse]

TIERS: dict[str, dict[str, float]] = {
    "chat": {"ttft_s": 5.0, "tpot_s": 1.0},
    "tight": {"ttft_s": 0.000001, "tpot_s": 1.0},
    "free": {},
}


def profile_text(costs: Mapping[str, float]) -> str:
    names = ("floor_s", "token_s", "fixed_s", "sequence_s", "context_token_s")
    lines = [f"{name} = {costs.get(name, 0.0)}" for name in names]
    lines += [f"{name} = {costs.get(name, 0.0)}" for name in ("prefill_attention_s", "chunk_s")]
    header = 'source = "made up for a test"\nmeasured_on = "nothing"\n[perf_model]\n'
    return header + "\n".join(lines)


def stack_config(
    folder: Path,
    *,
    costs: Mapping[str, float] | None = None,
    engine: Mapping[str, int] | None = None,
    controller: Mapping[str, Any] | None = None,
    decode_prefills: bool = False,
) -> Config:
    """A deployment on free ports whose engines take what `costs` say (see PerfModel)."""
    profile = folder / "profile.toml"
    profile.write_text(profile_text(costs or {}), encoding="utf-8")
    return Config.model_validate(
        {
            "model": {"name": "emulated", "tokenizer": "bytes"},
            "engine": {"kind": "emulated", "profile": str(profile), **(engine or {})},
            "controller": {
                "listen": "127.0.0.1:0",
                "report_interval_s": 0.02,
                "tiers": TIERS,
                **(controller or {}),
            },
            "decode": {"prefills": decode_prefills},
        }
    )


@dataclass
class Stack:
    """What a test holds of a running deployment."""

    address: str
    channel: grpc.aio.Channel
    stopped: asyncio.Event
    serving: asyncio.Task[None]
    workers: dict[str, WorkerUnderTest] = field(default_factory=dict)
    links: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    @property
    def stub(self) -> InferenceServiceAsyncStub:
        return InferenceServiceStub(self.channel)

    def generate(self, **fields: Any) -> Call:
        return self.stub.Generate(pb.GenerateRequest(**fields))

    async def capacity(self) -> pb.GetCapacityResponse:
        return await self.stub.GetCapacity(pb.GetCapacityRequest())

    async def wait_workers(self, num_workers: int) -> None:
        await eventually(self.capacity, lambda capacity: len(capacity.workers) == num_workers)

    async def wait_at_rest(self) -> pb.GetCapacityResponse:
        """Until the controller runs nothing and all workers report that they hold nothing."""
        return await eventually(self.capacity, at_rest)


def at_rest(capacity: pb.GetCapacityResponse) -> bool:
    return capacity.num_requests_running == capacity.num_best_effort_queued == 0 and all(
        is_free(worker) for worker in capacity.workers
    )


def is_free(worker: pb.WorkerCapacity) -> bool:
    load, counters = worker.load, worker.load.resources
    return (
        load.num_running == load.num_waiting == 0
        and counters.num_slots_created == counters.num_slots_released
        and counters.num_kv_blocks_created == counters.num_kv_blocks_released
        and counters.num_staged_pages_created == counters.num_staged_pages_released
    )


async def rest(call: Call) -> tuple[list[pb.GenerateResponse], grpc.aio.AioRpcError | None]:
    """All messages that are not read yet, and the error the call ends with."""
    messages = []
    try:
        while isinstance(message := await call.read(), pb.GenerateResponse):
            messages.append(message)
    except grpc.aio.AioRpcError as error:
        return messages, error
    return messages, None


@asynccontextmanager
async def running_controller(config: Config) -> AsyncIterator[Stack]:
    stopped = asyncio.Event()
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(ControllerProcess(config).run(stopped, listening))
    address = await listening
    try:
        async with open_channel(address) as channel:
            yield Stack(address, channel, stopped, serving)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@asynccontextmanager
async def running_stack(
    config: Config, *, num_prefill: int = 1, num_decode: int = 1
) -> AsyncIterator[Stack]:
    """A deployment whose workers have all registered."""
    async with running_controller(config) as stack, AsyncExitStack() as cleanup:
        for role, count in ((WorkerRole.PREFILL, num_prefill), (WorkerRole.DECODE, num_decode)):
            for replica in range(count):
                worker_id = f"{role.value.lower()}-{replica}"
                started = await cleanup.enter_async_context(worker(config, role, NullTelemetry()))
                stack.workers[worker_id] = started
                link = asyncio.create_task(_link(stack, worker_id, role, started, config))
                stack.links[worker_id] = link
                cleanup.callback(link.cancel)
        await stack.wait_workers(num_prefill + num_decode)
        yield stack


async def _link(
    stack: Stack, worker_id: str, role: WorkerRole, started: WorkerUnderTest, config: Config
) -> None:
    info = started.engine.info
    spec = WorkerSpec(
        worker_id=worker_id,
        incarnation="first",
        role=role,
        address=started.address,
        model="emulated",
        max_model_len=info.max_model_len,
        kv_block_size=info.kv_block_size,
        num_kv_blocks=info.num_kv_blocks,
        max_step_tokens=info.max_step_tokens,
        max_num_running=info.max_num_running,
        kv_bytes_per_token=info.kv_bytes_per_token,
        perf_model=info.perf_model,
        forms_steps_by_deadline=info.forms_steps_by_deadline,
        prefills_locally=role is WorkerRole.DECODE and config.decode.prefills,
    )
    load = await started.load()

    async def refresh() -> None:
        nonlocal load
        while True:
            load = await started.load()
            await asyncio.sleep(0.01)

    refreshing = asyncio.create_task(refresh())
    try:
        await ControlLink(
            spec,
            stack.address,
            lambda: _report(load),
            _take_nothing_new,
            started.slots.set_prefills,
        ).run()
    finally:
        refreshing.cancel()


def _report(load: EngineLoad) -> WorkerLoad:
    return WorkerLoad(
        num_running=load.num_running,
        num_waiting=load.num_waiting,
        num_free_kv_blocks=load.num_free_kv_blocks,
        resources=load.resources,
        step_time_ratio=load.step_time_ratio,
    )


async def _take_nothing_new() -> None:
    """No test here drains a worker."""
