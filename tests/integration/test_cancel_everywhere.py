"""However and wherever a request ends early, nothing of it stays on any worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from headway.v1 import generation_pb2
from headway.v1 import inference_service_pb2 as pb
from tests.controller_stack import Call, Stack, rest, running_stack, stack_config
from tests.emulated_workers import eventually

Capacity = pb.GetCapacityResponse
Cause = Literal["cancel", "disconnect", "deadline"]

# Every stage below is held open for longer than this, and reached well before.
DEADLINE_S = 2


def load_of(capacity: Capacity, worker_id: str) -> generation_pb2.WorkerLoad:
    return next(w.load for w in capacity.workers if w.worker_id == worker_id)


def is_queued(capacity: Capacity) -> bool:
    return capacity.num_best_effort_queued == 1


def waits_for_prefill(capacity: Capacity) -> bool:
    return load_of(capacity, "prefill-0").num_waiting == 1


def is_prefilling_and_sending(capacity: Capacity) -> bool:
    num_pages = load_of(capacity, "decode-0").resources.num_staged_pages_created
    return load_of(capacity, "prefill-0").num_running == 1 and num_pages > 0


def is_computed_but_not_taken_over(capacity: Capacity) -> bool:
    """The decode engine is in a long step for the blocker and has not looked at the pages."""
    num_prefilled = load_of(capacity, "prefill-0").resources.num_slots_released
    return num_prefilled == 2 and load_of(capacity, "decode-0").num_waiting == 1


def is_decoding(capacity: Capacity) -> bool:
    return load_of(capacity, "decode-0").num_running == 1


@dataclass(frozen=True)
class Stage:
    """A stage, how to hold it open, and how to see that the request is in it.

    Attributes:
        blocker: a request that must run first; None if none is needed.
        blocker_runs: whether it is where it blocks.
    """

    name: str
    reached: Callable[[Capacity], bool]
    costs: dict[str, float]
    engine: dict[str, int] = field(default_factory=dict)
    prompt: str = "x" * 64
    blocker: str | None = None
    blocker_runs: Callable[[Capacity], bool] = is_decoding


STAGES = [
    Stage(
        "best-effort queue",
        is_queued,
        costs={"floor_s": 0.05},
        engine={"max_num_running": 1},
        blocker="y" * 64,
    ),
    Stage(
        "prefill queue",
        waits_for_prefill,
        costs={"floor_s": 0.05},
        engine={"max_step_tokens": 16},
        blocker="y" * 4000,
        blocker_runs=is_prefilling_and_sending,
    ),
    Stage(
        "prefilling",
        is_prefilling_and_sending,
        costs={"floor_s": 0.05},
        engine={"max_step_tokens": 16},
        prompt="x" * 4000,
    ),
    Stage(
        "transferring",
        is_computed_but_not_taken_over,
        costs={"floor_s": 0.001, "context_token_s": 0.1},
        blocker="y" * 64,
    ),
    Stage("decoding", is_decoding, costs={"floor_s": 0.1}),
]


async def admitted(call: Call) -> str:
    message = await call.read()
    assert isinstance(message, pb.GenerateResponse)
    assert message.WhichOneof("event") == "admission"
    return message.admission.request_id


def generate(stack: Stack, prompt: str, **fields: Any) -> Call:
    return stack.generate(
        prompt_text=prompt, sampling={"max_tokens": 1000, "ignore_eos": True}, **fields
    )


async def last_message(call: Call) -> pb.Finished:
    """The Finished of a call that does not end with OK; it must be the only one."""
    messages, error = await rest(call)
    assert error is not None
    finished = [message.finished for message in messages if message.HasField("finished")]
    assert len(finished) == 1
    return finished[0]


@pytest.mark.parametrize("cause", ["cancel", "disconnect", "deadline"])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
async def test_an_early_end_frees_everything(stage: Stage, cause: Cause, tmp_path: Path) -> None:
    config = stack_config(tmp_path, costs=stage.costs, engine=stage.engine)
    async with running_stack(config) as stack:
        blocker: Call | None = None
        if stage.blocker is not None:
            blocker = generate(stack, stage.blocker)
            await admitted(blocker)
            await eventually(stack.capacity, stage.blocker_runs)
        deadline = {"deadline": Duration(seconds=DEADLINE_S)} if cause == "deadline" else {}
        call = generate(stack, stage.prompt, **deadline)
        request_id = await admitted(call)
        await eventually(stack.capacity, stage.reached)

        match cause:
            case "cancel":
                await stack.stub.Cancel(pb.CancelRequest(request_id=request_id))
                finished = await last_message(call)
                assert finished.state == pb.FINAL_STATE_CANCELLED
                assert await call.code() is grpc.StatusCode.CANCELLED
            case "disconnect":
                call.cancel()
            case "deadline":
                finished = await last_message(call)
                assert finished.state == pb.FINAL_STATE_DEADLINE_EXCEEDED
                assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED

        # Whoever else is running is not touched, and what the request held is free.
        num_left = 0 if blocker is None else 1
        await eventually(
            stack.capacity,
            lambda c: (c.num_requests_running, c.num_best_effort_queued) == (num_left, 0),
        )
        if blocker is not None:
            assert not blocker.done()
            await eventually(stack.capacity, only_one_request_holds_anything)
            blocker.cancel()
        capacity = await stack.wait_at_rest()

    held = sum(worker.load.resources.num_slots_created for worker in capacity.workers)
    assert held > 0
    assert not stack.workers["prefill-0"].slots._held
    assert not stack.workers["decode-0"].slots._held


def only_one_request_holds_anything(capacity: Capacity) -> bool:
    """Each worker has given back the slots of all but at most one request."""
    counters = [worker.load.resources for worker in capacity.workers]
    return all(c.num_slots_created - c.num_slots_released <= 1 for c in counters)
