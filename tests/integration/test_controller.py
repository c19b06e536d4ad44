"""What clients see of a controller with real workers behind it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headway.errors import InvalidRequest, LayoutMismatch, Refused, Unavailable
from headway.rpc.errors import error_from_rpc
from headway.rpc.server import open_channel
from headway.v1 import control_service_pb2, generation_pb2
from headway.v1 import inference_service_pb2 as pb
from headway.v1.control_service_pb2_grpc import ControlServiceStub
from tests.controller_stack import (
    Call,
    Stack,
    rest,
    running_controller,
    running_stack,
    stack_config,
)
from tests.emulated_workers import eventually

ConnectCall = grpc.aio.StreamStreamCall[
    control_service_pb2.ConnectRequest, control_service_pb2.ConnectResponse
]


def index_after(messages: list[pb.GenerateResponse]) -> int:
    """Checks that these are tokens without a gap; returns the index after the last."""
    next_index = 0
    for message in messages:
        assert message.WhichOneof("event") == "tokens"
        assert message.tokens.first_index == next_index
        next_index += len(message.tokens.token_ids)
    return next_index


async def error_of(call: Call) -> grpc.aio.AioRpcError:
    messages, error = await rest(call)
    assert error is not None
    assert messages == []
    return error


async def is_serving(stack: Stack) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(stack.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest())
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


async def test_a_promised_request_gets_admission_tokens_and_one_end(tmp_path: Path) -> None:
    async with running_stack(stack_config(tmp_path, costs={"floor_s": 0.001})) as stack:
        call = stack.generate(
            prompt_text="hello", tier="chat", sampling={"max_tokens": 20, "ignore_eos": True}
        )
        messages, _ = await rest(call)
        capacity = await stack.wait_at_rest()

    admission, *tokens, finished = messages
    assert admission.admission.state == pb.ADMISSION_STATE_GUARANTEED
    assert admission.admission.prefill_worker_id == "prefill-0"
    assert admission.admission.decode_worker_id == "decode-0"
    assert index_after(tokens) == 20
    assert finished.finished.state == pb.FINAL_STATE_SUCCEEDED
    assert finished.finished.finish_reason == generation_pb2.FINISH_REASON_LENGTH
    assert finished.finished.timings.slo_attained
    assert finished.finished.usage.num_output_tokens == 20
    assert finished.finished.HasField("kv_transfer")
    assert await call.code() is grpc.StatusCode.OK
    assert all(w.load.resources.num_kv_blocks_created > 0 for w in capacity.workers)


async def test_all_requests_of_a_burst_end_whole(tmp_path: Path) -> None:
    config = stack_config(tmp_path, costs={"floor_s": 0.001}, engine={"max_num_running": 4})
    async with running_stack(config, num_prefill=2, num_decode=2) as stack:
        calls = [
            stack.generate(
                prompt_text=f"prompt {index}",
                tier=tier,
                sampling={"max_tokens": 12, "ignore_eos": True},
            )
            for index, tier in enumerate(["chat", "free", ""] * 10)
        ]
        outcomes = await asyncio.gather(*(rest(call) for call in calls))
        await stack.wait_at_rest()

    for (admission, *tokens, finished), _ in outcomes:
        assert admission.HasField("admission")
        assert index_after(tokens) == 12
        assert finished.finished.state == pb.FINAL_STATE_SUCCEEDED
    request_ids = {messages[0].admission.request_id for messages, _ in outcomes}
    assert len(request_ids) == 30


async def test_a_promise_that_cannot_be_kept_is_served_best_effort_unless_refusal_was_asked_for(
    tmp_path: Path,
) -> None:
    async with running_stack(stack_config(tmp_path, costs={"floor_s": 0.001})) as stack:
        served, _ = await rest(
            stack.generate(prompt_text="hello", tier="tight", sampling={"max_tokens": 1})
        )
        refused = await error_of(
            stack.generate(
                prompt_text="hello",
                tier="tight",
                when_not_promised=pb.WHEN_NOT_PROMISED_REFUSE,
            )
        )

    assert served[0].admission.state == pb.ADMISSION_STATE_BEST_EFFORT
    assert served[0].admission.binding_constraint == "PREFILL_TIME"
    assert not served[-1].finished.timings.HasField("slo_attained")
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = error_from_rpc(refused)
    assert isinstance(error, Refused)
    assert error.reason == "PREFILL_TIME"
    assert error.tier_that_fits == "chat"
    assert error.retry_after_s > 0


async def test_a_full_best_effort_queue_refuses(tmp_path: Path) -> None:
    config = stack_config(
        tmp_path,
        costs={"floor_s": 0.05},
        engine={"max_num_running": 1},
        controller={"max_best_effort_queued": 1},
    )
    async with running_stack(config) as stack:
        fields = {"prompt_text": "hello", "sampling": {"max_tokens": 1000, "ignore_eos": True}}
        running = stack.generate(**fields)
        await running.read()
        waiting = stack.generate(**fields)
        await waiting.read()
        error = error_from_rpc(await error_of(stack.generate(**fields)))
        running.cancel()
        waiting.cancel()
        await stack.wait_at_rest()
    assert isinstance(error, Refused)
    assert error.reason == "QUEUE_FULL"


async def test_without_workers_a_request_is_told_to_come_back(tmp_path: Path) -> None:
    async with running_controller(stack_config(tmp_path)) as stack:
        error = await error_of(stack.generate(prompt_text="hello"))
        assert not await is_serving(stack)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    domain_error = error_from_rpc(error)
    assert isinstance(domain_error, Unavailable)
    assert domain_error.retry_after_s > 0


async def test_a_lost_worker_fails_its_requests_and_ends_serving(tmp_path: Path) -> None:
    async with running_stack(stack_config(tmp_path, costs={"floor_s": 0.05})) as stack:
        assert await is_serving(stack)
        call = stack.generate(
            prompt_text="hello", sampling={"max_tokens": 1000, "ignore_eos": True}
        )
        await call.read()
        stack.links["decode-0"].cancel()
        messages, error = await rest(call)
        await eventually(lambda: is_serving(stack), lambda serving: not serving)
        held_by_prefill = stack.workers["prefill-0"].slots._held

    assert error is not None
    last = messages[-1]
    assert last.finished.state == pb.FINAL_STATE_FAILED
    assert last.finished.error_reason == "WORKER_LOST"
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert not held_by_prefill


async def test_a_told_controller_lets_requests_end_and_takes_none(tmp_path: Path) -> None:
    async with running_stack(stack_config(tmp_path, costs={"floor_s": 0.02})) as stack:
        running = stack.generate(
            prompt_text="hello", sampling={"max_tokens": 30, "ignore_eos": True}
        )
        await running.read()
        stack.stopped.set()
        await eventually(lambda: is_serving(stack), lambda serving: not serving)
        refused = await error_of(stack.generate(prompt_text="hello"))
        messages, error = await rest(running)
        await stack.serving
    assert refused.code() is grpc.StatusCode.UNAVAILABLE
    assert error is None
    assert messages[-1].finished.state == pb.FINAL_STATE_SUCCEEDED


async def test_what_does_not_end_in_time_is_told_that_it_was_cancelled(tmp_path: Path) -> None:
    async with running_stack(stack_config(tmp_path, costs={"floor_s": 0.1})) as stack:
        running = stack.generate(
            prompt_text="hello", sampling={"max_tokens": 1000, "ignore_eos": True}
        )
        await running.read()
        stack.stopped.set()
        messages, error = await rest(running)
        await stack.serving
    assert error is not None
    last = messages[-1]
    assert last.finished.state == pb.FINAL_STATE_CANCELLED
    assert "shuts down" in last.finished.error_message
    assert error.code() is grpc.StatusCode.CANCELLED


async def test_tiers_are_listed_as_configured(tmp_path: Path) -> None:
    async with running_controller(stack_config(tmp_path)) as stack:
        tiers = (await stack.stub.ListTiers(pb.ListTiersRequest())).tiers
    assert [tier.name for tier in tiers] == ["chat", "tight", "free"]
    assert tiers[0].slo.stages[0].ttft.seconds == 5
    assert not tiers[2].HasField("slo")


async def test_cancelling_what_does_not_run_is_not_found(tmp_path: Path) -> None:
    async with running_controller(stack_config(tmp_path)) as stack:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stack.stub.Cancel(pb.CancelRequest(request_id="unknown"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def register(**changes: Any) -> control_service_pb2.Register:
    """What a prefill worker says that runs nowhere."""
    fields: dict[str, Any] = {
        "worker_id": "prefill-0",
        "incarnation": "first",
        "role": generation_pb2.WORKER_ROLE_PREFILL,
        "address": "127.0.0.1:1",
        "model": "emulated",
        "max_model_len": 100,
        "kv_block_size": 16,
        "num_kv_blocks": 100,
        "max_step_tokens": 100,
        "max_num_running": 4,
        "perf_model": control_service_pb2.PerfModel(floor_s=0.1),
    }
    return control_service_pb2.Register(**(fields | changes))


async def connected(stack: Stack, **changes: Any) -> ConnectCall:
    """The stream of a worker that has registered."""
    call = ControlServiceStub(stack.channel).Connect()
    await call.write(control_service_pb2.ConnectRequest(register=register(**changes)))
    answer = await call.read()
    assert isinstance(answer, control_service_pb2.ConnectResponse)
    assert answer.HasField("registered")
    return call


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "another"}, LayoutMismatch),
        ({"address": ""}, InvalidRequest),
        ({"role": 77}, InvalidRequest),
        ({"perf_model": control_service_pb2.PerfModel(floor_s=float("nan"))}, InvalidRequest),
        ({"perf_model": control_service_pb2.PerfModel(floor_s=-1.0)}, InvalidRequest),
        ({"perf_model": control_service_pb2.PerfModel(token_s=10.1)}, InvalidRequest),
    ],
)
async def test_a_worker_that_does_not_fit_is_turned_away(
    changes: dict[str, object], expected: type[Exception], tmp_path: Path
) -> None:
    async with running_controller(stack_config(tmp_path)) as stack:
        async with open_channel(stack.address) as channel:
            call = ControlServiceStub(channel).Connect()
            await call.write(control_service_pb2.ConnectRequest(register=register(**changes)))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
        assert not (await stack.capacity()).workers
    assert isinstance(error_from_rpc(caught.value), expected)


@pytest.mark.parametrize("incarnation", ["first", "second"])
async def test_a_worker_that_connects_anew_ends_its_old_stream_and_stays(
    incarnation: str, tmp_path: Path
) -> None:
    async with running_controller(stack_config(tmp_path)) as stack:
        old = await connected(stack)
        await connected(stack, incarnation=incarnation)
        # Only another process that had this place is told to drain.
        if incarnation == "second":
            last = await old.read()
            assert isinstance(last, control_service_pb2.ConnectResponse)
            assert last.HasField("drain")
        assert await old.read() is grpc.aio.EOF
        assert await old.code() is grpc.StatusCode.OK
        assert [w.worker_id for w in (await stack.capacity()).workers] == ["prefill-0"]


@pytest.mark.parametrize("ratio", [float("nan"), float("inf"), -0.1, 1000.1])
async def test_a_worker_that_reports_nonsense_is_turned_away(ratio: float, tmp_path: Path) -> None:
    async with running_controller(stack_config(tmp_path)) as stack:
        call = await connected(stack)
        report = generation_pb2.WorkerLoad(step_time_ratio=ratio)
        await call.write(control_service_pb2.ConnectRequest(report=report))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        await eventually(stack.capacity, lambda capacity: not capacity.workers)
    assert isinstance(error_from_rpc(caught.value), InvalidRequest)


async def test_what_is_larger_than_any_workers_memory_can_never_be_served(tmp_path: Path) -> None:
    async with running_controller(stack_config(tmp_path)) as stack:
        await connected(stack)
        await connected(
            stack,
            worker_id="decode-0",
            role=generation_pb2.WORKER_ROLE_DECODE,
            num_kv_blocks=1,
        )
        error = await error_of(stack.generate(prompt_text="hello", sampling={"max_tokens": 12}))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    domain_error = error_from_rpc(error)
    assert isinstance(domain_error, InvalidRequest)
    assert [v.field for v in domain_error.violations] == ["sampling.max_tokens"]


async def test_a_worker_that_joins_a_draining_controller_does_not_make_it_serve(
    tmp_path: Path,
) -> None:
    async with running_stack(stack_config(tmp_path, costs={"floor_s": 0.05})) as stack:
        running = stack.generate(
            prompt_text="hello", sampling={"max_tokens": 1000, "ignore_eos": True}
        )
        await running.read()
        stack.stopped.set()
        await eventually(lambda: is_serving(stack), lambda serving: not serving)
        await connected(stack, worker_id="prefill-1")
        assert not await is_serving(stack)
