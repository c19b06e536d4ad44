"""Decode workers that compute prompts themselves: alone, and beside a prefill worker."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from headway.client import Admission, AsyncClient, Finished, Tokens
from headway.core.request import RequestState
from headway.v1 import inference_service_pb2 as pb
from tests.controller_stack import Call, Stack, rest, running_stack, stack_config
from tests.deployment import free_port, write_deployment
from tests.emulated_workers import eventually

PATIENCE_S = 60.0
TIER = "[controller.tiers.chat]\nttft_s = 5.0\ntpot_s = 1.0\n"
SEPARATE = "[prefill]\nreplicas = 1\n[decode]\nreplicas = 1\n"
COLOCATED = "[prefill]\nreplicas = 0\n[decode]\nreplicas = 2\nprefills = true\n"
HYBRID = "[prefill]\nreplicas = 1\n[decode]\nreplicas = 1\nprefills = true\n"


@dataclass
class Served:
    """What a stack of real processes made of some requests."""

    token_ids: dict[int, tuple[int, ...]] = field(default_factory=dict)
    admissions: list[Admission] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)


async def serve(folder: Path, pools: str) -> Served:
    """Start the stack, ask for 24 outputs, 8 at once, and wait until nothing is held."""
    address = f"127.0.0.1:{free_port()}"
    config = write_deployment(folder, address, TIER + pools, step_s=0.003, token_s=1e-5)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services", "--config", str(config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    served = Served()
    try:
        async with asyncio.timeout(PATIENCE_S), AsyncClient(address) as client:
            assert process.stdout is not None
            assert await process.stdout.readline() == f"ready {address}\n".encode()
            at_once = asyncio.Semaphore(8)

            async def ask(index: int) -> None:
                token_ids: list[int] = []
                async with at_once:
                    async for event in client.generate(
                        prompt="x" * (1 + 150 * index),
                        tier="chat",
                        max_tokens=12,
                        ignore_eos=True,
                    ):
                        match event:
                            case Admission():
                                served.admissions.append(event)
                            case Tokens():
                                token_ids += event.token_ids
                            case Finished():
                                served.finished.append(event)
                served.token_ids[index] = tuple(token_ids)

            await asyncio.gather(*(ask(index) for index in range(24)))
            await eventually(
                client.capacity,
                lambda capacity: all(
                    held.num_slots_created == held.num_slots_released
                    and held.num_kv_blocks_created == held.num_kv_blocks_released
                    and held.num_staged_pages_created == held.num_staged_pages_released
                    for held in (worker.load.resources for worker in capacity.workers)
                ),
            )
    finally:
        process.terminate()
        await process.wait()
    return served


async def test_processes_of_every_layout_serve_the_same_tokens_and_keep_promises(
    tmp_path: Path,
) -> None:
    separate = await serve(tmp_path, SEPARATE)
    colocated = await serve(tmp_path, COLOCATED)
    hybrid = await serve(tmp_path, HYBRID)
    for served in (separate, colocated, hybrid):
        assert served.token_ids == separate.token_ids
        assert len(served.finished) == 24
        assert {finished.state for finished in served.finished} == {RequestState.SUCCEEDED}
        assert all(finished.timings.slo_attained for finished in served.finished)
    assert all(len(token_ids) == 12 for token_ids in separate.token_ids.values())
    assert not any(is_local(admission) for admission in separate.admissions)
    assert all(is_local(admission) for admission in colocated.admissions)
    assert {admission.decode_worker_id for admission in colocated.admissions} == {
        "decode-0",
        "decode-1",
    }
    assert any(is_local(admission) for admission in hybrid.admissions)
    assert all(finished.kv_transfer is None for finished in colocated.finished)
    assert all(f.usage.num_prompt_tokens_recomputed == 0 for f in colocated.finished)
    assert all(f.usage.num_prompt_tokens_recomputed == 1 for f in separate.finished)
    assert all(f.timings.prefill_s for f in colocated.finished)


def is_local(admission: Admission) -> bool:
    return admission.prefill_worker_id == admission.decode_worker_id


async def test_a_prompt_goes_to_the_prefill_worker_when_the_decode_worker_is_busy(
    tmp_path: Path,
) -> None:
    """A prompt that would hold the decode worker for longer than the next one may wait."""
    config = stack_config(
        tmp_path,
        costs={"floor_s": 0.005, "token_s": 0.0002},
        engine={"max_step_tokens": 256},
        controller={"tiers": {"chat": {"ttft_s": 1.0, "tpot_s": 0.1}}},
        decode_prefills=True,
    )
    async with running_stack(config) as stack:
        calls = [
            stack.generate(prompt_text="x" * 3000, tier="chat", sampling={"max_tokens": 5})
            for _ in range(2)
        ]
        places = set()
        for messages, error in await asyncio.gather(*map(rest, calls)):
            assert error is None
            admission, finished = messages[0].admission, messages[-1].finished
            assert admission.state == pb.ADMISSION_STATE_GUARANTEED
            assert finished.timings.slo_attained
            assert finished.HasField("kv_transfer") == (
                admission.prefill_worker_id != admission.decode_worker_id
            )
            places.add((admission.prefill_worker_id, admission.decode_worker_id))
        assert places == {("decode-0", "decode-0"), ("prefill-0", "decode-0")}
        await stack.wait_at_rest()


async def test_a_decode_worker_prefills_only_if_it_registered_for_it(tmp_path: Path) -> None:
    config = stack_config(tmp_path, costs={"floor_s": 0.002})
    async with running_stack(config, num_prefill=0) as stack:
        _, error = await rest(stack.generate(prompt_text="hello", sampling={"max_tokens": 3}))
        assert error is not None
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "no prefill worker" in str(error.details())


Capacity = pb.GetCapacityResponse


def is_queued(capacity: Capacity) -> bool:
    return capacity.num_best_effort_queued == 1


def waits_for_its_first_step(capacity: Capacity) -> bool:
    return capacity.workers[0].load.num_waiting == 1


def is_prefilling(capacity: Capacity) -> bool:
    load = capacity.workers[0].load
    return load.num_running == 1 and load.resources.num_kv_blocks_created > 2


def is_decoding(capacity: Capacity) -> bool:
    load = capacity.workers[0].load
    return load.num_running == 1 and load.resources.num_kv_blocks_created > 0


@dataclass(frozen=True)
class Stage:
    """A stage, how to hold it open, and how to see that the request is in it."""

    name: str
    reached: Callable[[Capacity], bool]
    prompt: str
    engine: dict[str, int] = field(default_factory=dict)
    blocker: str | None = None


STAGES = [
    Stage("best-effort queue", is_queued, "x" * 64, {"max_num_running": 1}, "y" * 64),
    Stage("prompt queue", waits_for_its_first_step, "x" * 64, {"max_step_tokens": 16}, "y" * 4000),
    Stage("prefilling", is_prefilling, "x" * 4000, {"max_step_tokens": 16}),
    Stage("decoding", is_decoding, "x" * 8),
]


async def started(stack: Stack, prompt: str) -> tuple[Call, str]:
    call = stack.generate(prompt_text=prompt, sampling={"max_tokens": 1000, "ignore_eos": True})
    message = await call.read()
    assert isinstance(message, pb.GenerateResponse)
    return call, message.admission.request_id


@pytest.mark.parametrize("cause", ["cancel", "disconnect"])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
async def test_an_early_end_frees_everything(stage: Stage, cause: str, tmp_path: Path) -> None:
    config = stack_config(
        tmp_path, costs={"floor_s": 0.05}, engine=stage.engine, decode_prefills=True
    )
    async with running_stack(config, num_prefill=0) as stack:
        blocker: Call | None = None
        if stage.blocker is not None:
            blocker, _ = await started(stack, stage.blocker)
            await eventually(stack.capacity, is_decoding)
        call, request_id = await started(stack, stage.prompt)
        await eventually(stack.capacity, stage.reached)
        if cause == "cancel":
            await stack.stub.Cancel(pb.CancelRequest(request_id=request_id))
            messages, _ = await rest(call)
            assert messages[-1].finished.state == pb.FINAL_STATE_CANCELLED
        else:
            call.cancel()
        num_left = 0 if blocker is None else 1
        await eventually(
            stack.capacity,
            lambda c: (c.num_requests_running, c.num_best_effort_queued) == (num_left, 0),
        )
        if blocker is not None:
            assert not blocker.done()
            blocker.cancel()
        capacity = await stack.wait_at_rest()
        assert capacity.workers[0].load.resources.num_kv_blocks_created > 0
        assert not stack.workers["decode-0"].slots._held
