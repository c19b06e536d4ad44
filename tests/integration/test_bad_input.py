"""What can never be served is refused with every reason, before anything is kept for it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from headway.errors import InvalidRequest
from headway.rpc.errors import error_from_rpc
from headway.v1 import inference_service_pb2 as pb
from headway.v1.generation_pb2 import ResourceCounters
from tests.controller_stack import Call, Stack, rest, running_stack, stack_config

MAX_MODEL_LEN = 4096
VOCAB_SIZE = 512


def seconds(value: float) -> Duration:
    return Duration(seconds=math.floor(value), nanos=round(value % 1 * 1e9))


def stage(**fields: Any) -> pb.StageSlo:
    return pb.StageSlo(**({"tpot": seconds(0.1)} | fields))


def slo(*stages: pb.StageSlo) -> dict[str, Any]:
    return {"prompt_text": "x", "slo": pb.Slo(stages=stages)}


FIRST = stage(ttft=seconds(1))


def sampling(**fields: Any) -> dict[str, Any]:
    return {"prompt_text": "x", "sampling": fields}


# What is sent, and the fields that the answer must name: all of them and no others.
BAD_INPUT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no prompt": ({}, ["prompt_text"]),
    "empty chat text": ({"messages": [{"role": "nobody"}]}, ["messages[0].role"]),
    "two prompts": ({"prompt_text": "x", "prompt_token_ids": [1]}, ["prompt_token_ids"]),
    "more than 1 MiB": ({"prompt_text": "x" * (1 << 20)}, [""]),
    "text beyond the context": ({"prompt_text": "x" * MAX_MODEL_LEN}, ["prompt_text"]),
    "ids beyond the context": ({"prompt_token_ids": [1] * MAX_MODEL_LEN}, ["prompt_token_ids"]),
    "output beyond the context": (
        {"prompt_text": "x" * 4000, "sampling": {"max_tokens": 97}},
        ["sampling.max_tokens"],
    ),
    "output beyond any context": (sampling(max_tokens=1 << 31), ["sampling.max_tokens"]),
    "unknown token": ({"prompt_token_ids": [1, VOCAB_SIZE]}, ["prompt_token_ids[1]"]),
    "unknown tier": ({"prompt_text": "x", "tier": "nope"}, ["tier"]),
    "tier and slo": (slo(FIRST) | {"tier": "chat"}, ["slo"]),
    "unknown enum value": ({"prompt_text": "x", "when_not_promised": 99}, ["when_not_promised"]),
    "no stages": (slo(), ["slo.stages"]),
    "nine stages": (slo(*[stage(end_after_tokens=1)] * 9), ["slo.stages"]),
    "no bounds": (slo(pb.StageSlo()), ["slo.stages[0].ttft", "slo.stages[0].tpot"]),
    "zero ttft": (slo(stage(ttft=seconds(0))), ["slo.stages[0].ttft"]),
    "negative ttft": (slo(stage(ttft=seconds(-1))), ["slo.stages[0].ttft"]),
    "endless ttft": (slo(stage(ttft=seconds(1e9))), ["slo.stages[0].ttft"]),
    "malformed ttft": (
        slo(stage(ttft=Duration(seconds=1, nanos=-5))),
        ["slo.stages[0].ttft"],
    ),
    "zero tpot": (slo(stage(ttft=seconds(1), tpot=seconds(0))), ["slo.stages[0].tpot"]),
    "slow-down of one": (slo(stage(ttft_slowdown=1.0)), ["slo.stages[0].ttft_slowdown"]),
    "slow-down NaN": (slo(stage(ttft_slowdown=math.nan)), ["slo.stages[0].ttft_slowdown"]),
    "slow-down infinite": (slo(stage(ttft_slowdown=math.inf)), ["slo.stages[0].ttft_slowdown"]),
    "stage without end": (slo(FIRST, stage()), ["slo.stages[0].end_token_id"]),
    "last stage with end": (
        slo(stage(ttft=seconds(1), end_after_tokens=1)),
        ["slo.stages[0].end_after_tokens"],
    ),
    "ttft in a later stage": (
        slo(stage(ttft=seconds(1), end_after_tokens=1), stage(ttft=seconds(1))),
        ["slo.stages[1].ttft"],
    ),
    "unknown end token": (
        slo(stage(ttft=seconds(1), end_token_id=VOCAB_SIZE), stage()),
        ["slo.stages[0].end_token_id"],
    ),
    "stage of no tokens": (
        slo(stage(ttft=seconds(1), end_after_tokens=0), stage()),
        ["slo.stages[0].end_after_tokens"],
    ),
    "hot temperature": (sampling(temperature=2.1), ["sampling.temperature"]),
    "NaN temperature": (sampling(temperature=math.nan), ["sampling.temperature"]),
    "zero top_p": (sampling(top_p=0.0), ["sampling.top_p"]),
    "large top_p": (sampling(top_p=1.1), ["sampling.top_p"]),
    "large top_k": (sampling(top_k=VOCAB_SIZE + 1), ["sampling.top_k"]),
    "seventeen stops": (sampling(stop=["x"] * 17), ["sampling.stop"]),
    "empty and long stop": (
        sampling(stop=["", "y", "é" * 33]),
        ["sampling.stop[0]", "sampling.stop[2]"],
    ),
    "no deadline at all": ({"prompt_text": "x", "deadline": seconds(0)}, ["deadline"]),
    "deadline beyond an hour": ({"prompt_text": "x", "deadline": seconds(3601)}, ["deadline"]),
    "negative deadline": ({"prompt_text": "x", "deadline": seconds(-1)}, ["deadline"]),
    "many at once": (
        slo(stage(ttft_slowdown=0.5)) | {"tier": "nope", "sampling": {"temperature": -1.0}},
        ["slo", "tier", "slo.stages[0].ttft_slowdown", "sampling.temperature"],
    ),
}


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    config = stack_config(
        tmp_path, costs={"floor_s": 0.0005}, engine={"max_model_len": MAX_MODEL_LEN}
    )
    async with running_stack(config) as started:
        yield started


async def violated_fields(call: Call) -> list[str]:
    messages, error = await rest(call)
    assert messages == []
    assert error is not None
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    domain_error = error_from_rpc(error)
    assert isinstance(domain_error, InvalidRequest)
    return [violation.field for violation in domain_error.violations]


async def assert_nothing_was_allocated(stack: Stack) -> None:
    capacity = await stack.capacity()
    assert capacity.num_requests_running == capacity.num_best_effort_queued == 0
    for worker in capacity.workers:
        assert worker.load.resources == ResourceCounters()


@pytest.mark.parametrize("name", BAD_INPUT)
async def test_every_reason_is_named_and_nothing_allocated(name: str, stack: Stack) -> None:
    fields, expected = BAD_INPUT[name]
    assert sorted(await violated_fields(stack.generate(**fields))) == sorted(expected)
    await assert_nothing_was_allocated(stack)


# Field 77, which no version has: as a varint at the top, and inside the second stage.
UNKNOWN_FIELD = b"\xe8\x04\x01"


async def test_unknown_fields_are_refused_at_any_depth(stack: Stack) -> None:
    stages = [stage(ttft=seconds(1), end_after_tokens=1), stage()]
    stages[1].MergeFromString(UNKNOWN_FIELD)
    request = pb.GenerateRequest(prompt_text="x", slo=pb.Slo(stages=stages))
    request.MergeFromString(UNKNOWN_FIELD)
    fields = await violated_fields(stack.stub.Generate(request))
    assert fields == ["#77", "slo.stages[1].#77"]
    await assert_nothing_was_allocated(stack)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_text": "x" * (MAX_MODEL_LEN - 1)},
        {"prompt_text": "x" * 4000, "sampling": {"max_tokens": 96}},
        {"prompt_token_ids": [VOCAB_SIZE - 1], "deadline": seconds(3600)},
        {"messages": [{"role": "user", "content": "x"}]},
        slo(stage(ttft=seconds(1), end_token_id=5), stage(end_after_tokens=1), stage()),
        sampling(temperature=2.0, top_p=1.0, top_k=VOCAB_SIZE, seed=0, stop=["s" * 64] * 16),
    ],
)
async def test_what_is_just_within_the_limits_is_served(
    fields: dict[str, Any], stack: Stack
) -> None:
    call = stack.generate(**fields)
    first = await call.read()
    assert isinstance(first, pb.GenerateResponse)
    assert first.HasField("admission")
    call.cancel()
    await stack.wait_at_rest()


@pytest.mark.parametrize(("num_prompt_tokens", "expected"), [(10, 256), (MAX_MODEL_LEN - 7, 7)])
async def test_no_max_tokens_means_256_or_what_is_left(
    num_prompt_tokens: int, expected: int, stack: Stack
) -> None:
    messages, _ = await rest(
        stack.generate(prompt_text="x" * num_prompt_tokens, sampling={"ignore_eos": True})
    )
    assert messages[-1].finished.usage.num_output_tokens == expected
