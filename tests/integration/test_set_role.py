"""A decode worker begins and ends to compute prompts itself, while the stack serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from headway.v1 import control_service_pb2 as control_pb
from headway.v1 import inference_service_pb2 as pb
from headway.v1.control_service_pb2_grpc import ControlServiceStub
from tests.controller_stack import Stack, rest, running_stack, stack_config
from tests.emulated_workers import eventually

if TYPE_CHECKING:
    from headway.v1.control_service_pb2_grpc import ControlServiceAsyncStub

COSTS = {"floor_s": 0.005}


async def set_role(stack: Stack, worker_id: str, *, prefills_locally: bool) -> None:
    stub: ControlServiceAsyncStub = ControlServiceStub(stack.channel)
    request = control_pb.SetRoleRequest(worker_id=worker_id, prefills_locally=prefills_locally)
    await stub.SetRole(request)


def may_place(capacity: pb.GetCapacityResponse) -> bool:
    return any(worker.prefills_locally for worker in capacity.workers)


async def place_of(stack: Stack) -> tuple[str, str]:
    """Where a request was prefilled and decoded."""
    messages, error = await rest(
        stack.generate(prompt_text="x" * 100, tier="chat", sampling={"max_tokens": 3})
    )
    assert error is None
    admission = messages[0].admission
    assert messages[-1].finished.state == pb.FINAL_STATE_SUCCEEDED
    return admission.prefill_worker_id, admission.decode_worker_id


async def test_a_decode_worker_begins_and_ends_to_prefill(tmp_path: Path) -> None:
    engine = {"max_step_tokens": 64}
    async with running_stack(stack_config(tmp_path, costs=COSTS, engine=engine)) as stack:
        slots = stack.workers["decode-0"].slots
        assert await place_of(stack) == ("prefill-0", "decode-0")
        await set_role(stack, "decode-0", prefills_locally=True)
        await eventually(stack.capacity, may_place)
        assert slots.prefills
        assert await place_of(stack) == ("decode-0", "decode-0")

        # Sixty steps of prompt.
        long = stack.generate(prompt_text="x" * 4000, sampling={"max_tokens": 3})
        await long.read()
        await set_role(stack, "decode-0", prefills_locally=False)
        assert not may_place(await stack.capacity())
        assert slots.prefills
        assert await place_of(stack) == ("prefill-0", "decode-0")
        messages, error = await rest(long)
        assert error is None
        assert not messages[-1].finished.HasField("kv_transfer")

        async def prefills() -> bool:
            return slots.prefills

        await eventually(prefills, lambda value: not value)
        assert await place_of(stack) == ("prefill-0", "decode-0")
        await stack.wait_at_rest()


@pytest.mark.parametrize(
    ("worker_id", "prefills_locally", "code"),
    [
        ("decode-7", True, grpc.StatusCode.NOT_FOUND),
        ("prefill-0", True, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_role_that_cannot_be_is_refused(
    tmp_path: Path, worker_id: str, code: grpc.StatusCode, *, prefills_locally: bool
) -> None:
    async with running_stack(stack_config(tmp_path, costs=COSTS)) as stack:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await set_role(stack, worker_id, prefills_locally=prefills_locally)
        assert refused.value.code() is code


async def test_the_last_worker_that_prefills_cannot_end_it(tmp_path: Path) -> None:
    config = stack_config(tmp_path, costs=COSTS, decode_prefills=True)
    async with running_stack(config, num_prefill=0) as stack:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await set_role(stack, "decode-0", prefills_locally=False)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await place_of(stack) == ("decode-0", "decode-0")
