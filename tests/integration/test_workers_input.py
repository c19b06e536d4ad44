"""Workers trust nobody: bad input is refused with all that is wrong, before anything is held."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from headway.errors import HeadwayError, InvalidRequest
from headway.rpc.errors import error_from_rpc
from headway.v1.decode_service_pb2 import DecodeRequest, Demand, DemandStage
from headway.v1.generation_pb2 import SamplingParams
from headway.v1.kv_transfer_service_pb2 import KvTarget
from headway.v1.prefill_service_pb2 import PrefillRequest
from tests.emulated_workers import (
    Pair,
    decode_request,
    emulated_config,
    worker_pair,
    write_profile,
)

CONTEXT = 2048

NOWHERE = KvTarget(address="127.0.0.1:1", transfer_id="t", ticket=b"t")


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    profile = write_profile(tmp_path / "fast.toml", step_s=0.002)
    config = emulated_config(profile, max_model_len=CONTEXT, num_kv_blocks=256)
    async with worker_pair(config) as pair:
        yield pair


async def rejected_decode(pair: Pair, request: DecodeRequest) -> HeadwayError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await anext(aiter(pair.decode_stub.Decode(request)))
    return error_from_rpc(failed.value)


async def rejected_prefill(pair: Pair, request: PrefillRequest) -> HeadwayError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await pair.prefill_stub.Prefill(request)
    return error_from_rpc(failed.value)


BAD_DECODES: dict[str, tuple[DecodeRequest, str]] = {
    "no id": (decode_request("", [1], 1), "request_id"),
    "long id": (decode_request("x" * 129, [1], 1), "request_id"),
    "no prompt": (decode_request("a", [], 1), "prompt_token_ids"),
    "long prompt": (decode_request("a", [1] * (CONTEXT + 1), 1), "prompt_token_ids"),
    "no output": (decode_request("a", [1], 0), "sampling.max_tokens"),
    "long output": (decode_request("a", [1] * 48, CONTEXT - 47), "sampling.max_tokens"),
    "no time": (
        DecodeRequest(request_id="a", prompt_token_ids=[1], sampling=SamplingParams(max_tokens=1)),
        "kv_timeout",
    ),
    "too much time": (
        DecodeRequest(
            request_id="a",
            prompt_token_ids=[1],
            sampling=SamplingParams(max_tokens=1),
            kv_timeout=Duration(seconds=3601),
        ),
        "kv_timeout",
    ),
    "priority": (
        DecodeRequest(
            request_id="a",
            prompt_token_ids=[1],
            sampling=SamplingParams(max_tokens=1),
            kv_timeout=Duration(seconds=1),
            priority=2,
        ),
        "priority",
    ),
    "a step cap of nothing": (
        DecodeRequest(
            request_id="a",
            prompt_token_ids=[1],
            sampling=SamplingParams(max_tokens=1),
            kv_timeout=Duration(seconds=1),
            step_cap=Duration(),
        ),
        "step_cap",
    ),
    "a prompt that was not placed here": (
        DecodeRequest(
            request_id="a",
            prompt_token_ids=[1],
            sampling=SamplingParams(max_tokens=1),
            kv_timeout=Duration(seconds=1),
            local_prefill=True,
        ),
        "local_prefill",
    ),
    "a demand without stages": (
        DecodeRequest(
            request_id="a",
            prompt_token_ids=[1],
            sampling=SamplingParams(max_tokens=1),
            kv_timeout=Duration(seconds=1),
            demand=Demand(first_token=Duration(seconds=1)),
        ),
        "demand.stages",
    ),
    "a demand without a pace": (
        DecodeRequest(
            request_id="a",
            prompt_token_ids=[1],
            sampling=SamplingParams(max_tokens=1),
            kv_timeout=Duration(seconds=1),
            demand=Demand(first_token=Duration(seconds=1), stages=[DemandStage()]),
        ),
        "demand.stages",
    ),
}

BAD_PREFILLS: dict[str, tuple[PrefillRequest, str]] = {
    "no id": (PrefillRequest(prompt_token_ids=[1], target=NOWHERE), "request_id"),
    "no prompt": (PrefillRequest(request_id="a", target=NOWHERE), "prompt_token_ids"),
    "long prompt": (
        PrefillRequest(request_id="a", prompt_token_ids=[1] * (CONTEXT + 1), target=NOWHERE),
        "prompt_token_ids",
    ),
    "no address": (
        PrefillRequest(
            request_id="a",
            prompt_token_ids=[1],
            target=KvTarget(transfer_id="t", ticket=b"t"),
        ),
        "target.address",
    ),
    "no ticket": (
        PrefillRequest(
            request_id="a",
            prompt_token_ids=[1],
            target=KvTarget(address="127.0.0.1:1", transfer_id="t"),
        ),
        "target.ticket",
    ),
    "a negative step cap": (
        PrefillRequest(
            request_id="a", prompt_token_ids=[1], target=NOWHERE, step_cap=Duration(seconds=-1)
        ),
        "step_cap",
    ),
}


@pytest.mark.parametrize("name", BAD_DECODES)
async def test_a_decode_worker_says_what_is_wrong(pair: Pair, name: str) -> None:
    request, field = BAD_DECODES[name]
    error = await rejected_decode(pair, request)
    assert isinstance(error, InvalidRequest)
    assert [violation.field for violation in error.violations] == [field]
    assert (await pair.decode.load()).resources.num_slots_created == 0


@pytest.mark.parametrize("name", BAD_PREFILLS)
async def test_a_prefill_worker_says_what_is_wrong(pair: Pair, name: str) -> None:
    request, field = BAD_PREFILLS[name]
    error = await rejected_prefill(pair, request)
    assert isinstance(error, InvalidRequest)
    assert [violation.field for violation in error.violations] == [field]
    assert (await pair.prefill.load()).resources.num_slots_created == 0


async def test_a_prefill_worker_names_all_that_is_wrong(pair: Pair) -> None:
    error = await rejected_prefill(pair, PrefillRequest())
    assert isinstance(error, InvalidRequest)
    assert {violation.field for violation in error.violations} == {
        "request_id",
        "prompt_token_ids",
        "target.address",
        "target.transfer_id",
        "target.ticket",
    }
