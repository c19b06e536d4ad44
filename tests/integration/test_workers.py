"""A prefill and a decode worker on real sockets: pages move, tokens are exact, input is checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from headway.adapters.emulated import content
from headway.adapters.null_telemetry import NullSpan, NullTelemetry
from headway.core.request import Sampling
from headway.errors import HeadwayError, InvalidRequest, Refused, Unavailable
from headway.ports.engine import EngineLoad
from headway.ports.telemetry import AttributeValue, SpanKind
from headway.rpc.errors import error_from_rpc
from headway.v1.decode_service_pb2 import DecodeFinished, DecodeRequest
from headway.v1.generation_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    TokenChunk,
)
from headway.v1.prefill_service_pb2 import PrefillResponse
from tests.emulated_workers import (
    Pair,
    at_rest,
    decode_request,
    emulated_config,
    eventually,
    prefill_request,
    reserved,
    worker_pair,
    write_profile,
)

BLOCK = 16
CHUNK = 64
CONTEXT = 2048


@pytest.fixture
def fast_profile(tmp_path: Path) -> Path:
    return write_profile(tmp_path / "fast.toml", step_s=0.002)


@pytest.fixture
async def pair(fast_profile: Path) -> AsyncIterator[Pair]:
    config = emulated_config(
        fast_profile,
        max_step_tokens=CHUNK,
        max_model_len=CONTEXT,
        num_kv_blocks=256,
        max_num_running=1,
    )
    async with worker_pair(config) as pair:
        yield pair


@dataclass(frozen=True)
class Generated:
    chunks: list[TokenChunk]
    finished: DecodeFinished
    prefilled: PrefillResponse

    @property
    def token_ids(self) -> bytes:
        return bytes(token_id for chunk in self.chunks for token_id in chunk.token_ids)

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)


async def generate(
    pair: Pair, request: DecodeRequest, metadata: Sequence[tuple[str, str]] = ()
) -> Generated:
    """What the controller does, for one request."""
    responses = aiter(pair.decode_stub.Decode(request, metadata=metadata))
    target = await reserved(responses)
    prefilled = await pair.prefill_stub.Prefill(prefill_request(request, target), metadata=metadata)
    chunks = []
    async for response in responses:
        match response.WhichOneof("event"):
            case "tokens":
                chunks.append(response.tokens)
            case "finished":
                return Generated(chunks, response.finished, prefilled)
    raise AssertionError("the stream ended without DecodeFinished")


def prompt_of(num_tokens: int) -> list[int]:
    return [(7 * index) % 251 for index in range(num_tokens)]


def expected(prompt: Sequence[int], sampling: Sampling) -> content.Output:
    return content.output(content.block_hashes(prompt, BLOCK, seed=0)[-1], sampling)


@pytest.mark.parametrize("num_tokens", [1, BLOCK, BLOCK + 1, CHUNK, 3 * CHUNK + 5])
async def test_a_pair_yields_the_tokens_of_the_prompt(pair: Pair, num_tokens: int) -> None:
    generated = await generate(pair, decode_request("a", prompt_of(num_tokens), 20))
    output = expected(prompt_of(num_tokens), Sampling(20))
    assert (generated.token_ids, generated.text) == (output.token_ids, output.text)
    assert generated.finished.finish_reason == FINISH_REASON_LENGTH
    assert generated.finished.num_prompt_tokens_recomputed == 1


async def test_every_page_moves_once_and_is_let_go(pair: Pair) -> None:
    num_blocks = 13
    generated = await generate(pair, decode_request("a", prompt_of(num_blocks * BLOCK - 3), 2))
    assert generated.finished.kv_transfer.num_bytes == num_blocks * BLOCK * 64
    for worker in (pair.prefill, pair.decode):
        load = await eventually(worker.load, at_rest)
        assert load.resources.num_staged_pages_created == num_blocks * content.NUM_LAYERS


async def test_token_indices_have_no_gap(pair: Pair) -> None:
    generated = await generate(pair, decode_request("a", prompt_of(5), 50))
    next_index = 0
    for chunk in generated.chunks:
        assert chunk.first_index == next_index
        next_index += len(chunk.token_ids)
    assert next_index == 50


async def test_output_ends_before_a_stop_string(pair: Pair) -> None:
    whole = expected(prompt_of(9), Sampling(40)).text
    generated = await generate(pair, decode_request("a", prompt_of(9), 40, stop=[whole[10:13]]))
    assert generated.text == whole[:10]
    assert generated.finished.finish_reason == FINISH_REASON_STOP


async def test_requests_at_once_do_not_mix(fast_profile: Path) -> None:
    async with worker_pair(emulated_config(fast_profile, max_step_tokens=CHUNK)) as pair:
        prompts = {f"r{index}": prompt_of(20 + 37 * index) for index in range(12)}
        results = await asyncio.gather(
            *(generate(pair, decode_request(name, prompts[name], 30)) for name in prompts)
        )
    for prompt, generated in zip(prompts.values(), results, strict=True):
        assert generated.token_ids == expected(prompt, Sampling(30)).token_ids


async def test_pages_of_another_prompt_are_noticed(pair: Pair) -> None:
    decode = decode_request("a", prompt_of(2 * BLOCK), 5)
    responses = aiter(pair.decode_stub.Decode(decode))
    prefill = prefill_request(decode, await reserved(responses))
    prefill.prompt_token_ids[0] += 1
    await pair.prefill_stub.Prefill(prefill)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await anext(responses)
    assert failed.value.code() is grpc.StatusCode.DATA_LOSS
    await eventually(pair.decode.load, at_rest)


async def test_pages_that_never_come_fail_the_request_in_time(pair: Pair) -> None:
    request = decode_request("a", prompt_of(5), 5)
    request.kv_timeout.FromMilliseconds(50)
    responses = aiter(pair.decode_stub.Decode(request))
    await reserved(responses)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await anext(responses)
    assert failed.value.code() is grpc.StatusCode.DATA_LOSS
    await eventually(pair.decode.load, at_rest)


async def rejected_decode(pair: Pair, request: DecodeRequest) -> HeadwayError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await anext(aiter(pair.decode_stub.Decode(request)))
    return error_from_rpc(failed.value)


async def test_a_request_runs_once_at_a_time(pair: Pair) -> None:
    request = decode_request("a", prompt_of(5), 5)
    first = pair.decode_stub.Decode(request)
    await reserved(aiter(first))
    error = await rejected_decode(pair, request)
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == "request_id"
    first.cancel()


async def test_a_full_worker_refuses_and_recovers(pair: Pair) -> None:
    # Four places for each request that may run, and one may.
    calls = [
        pair.decode_stub.Decode(decode_request(f"r{index}", prompt_of(5), 5)) for index in range(4)
    ]
    for call in calls:
        await reserved(aiter(call))
    error = await rejected_decode(pair, decode_request("one too many", prompt_of(5), 5))
    assert isinstance(error, Refused)
    assert error.reason == "WORKER_FULL"
    for call in calls:
        call.cancel()
    await eventually(pair.decode.load, at_rest)
    generated = await generate(pair, decode_request("after", prompt_of(5), 5))
    assert len(generated.token_ids) == 5


async def test_a_draining_worker_finishes_and_takes_nothing_new(pair: Pair) -> None:
    request = decode_request("a", prompt_of(5), 5)
    responses = aiter(pair.decode_stub.Decode(request))
    target = await reserved(responses)
    pair.decode.slots.drain()
    assert isinstance(await rejected_decode(pair, decode_request("b", [1], 1)), Unavailable)
    await pair.prefill_stub.Prefill(prefill_request(request, target))
    last = [response async for response in responses][-1]
    assert last.WhichOneof("event") == "finished"
    await pair.decode.slots.wait_empty()


class RecordingTelemetry(NullTelemetry):
    """Keeps the spans: name to (parent, attributes)."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[str, Mapping[str, AttributeValue]]] = {}

    def start_span(
        self,
        name: str,
        *,
        parent: str,
        kind: SpanKind = "INTERNAL",
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> NullSpan:
        self.spans[name] = (parent, attributes or {})
        return NullSpan(f"child of {parent} in {name}")

    def add_span(
        self,
        name: str,
        *,
        parent: str,
        start_unix_ns: int,
        end_unix_ns: int,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> None:
        assert start_unix_ns <= end_unix_ns
        self.spans[name] = (parent, attributes or {})


async def test_spans_hang_on_the_callers_context(fast_profile: Path) -> None:
    telemetry = RecordingTelemetry()
    async with worker_pair(emulated_config(fast_profile), telemetry=telemetry) as pair:
        await generate(
            pair, decode_request("a", prompt_of(40), 8), metadata=[("traceparent", "caller")]
        )
    parents = {name: parent for name, (parent, _) in telemetry.spans.items()}
    prefill, decode = "headway.v1.PrefillService/Prefill", "headway.v1.DecodeService/Decode"
    assert parents == {
        prefill: "caller",
        decode: "caller",
        "prefill.queue": f"child of caller in {prefill}",
        "prefill.compute": f"child of caller in {prefill}",
        "kv.transfer": f"child of caller in {prefill}",
        "decode.queue": f"child of caller in {decode}",
        "decode": f"child of caller in {decode}",
    }
    assert telemetry.spans["prefill.compute"][1]["headway.predicted_s"] == pytest.approx(0.002)
    assert telemetry.spans["decode"][1]["headway.predicted_s"] == pytest.approx(7 * 0.002)


async def test_a_busy_worker_says_so(pair: Pair) -> None:
    call = pair.decode_stub.Decode(decode_request("a", prompt_of(5), 11))
    await reserved(aiter(call))

    def waits(load: EngineLoad) -> bool:
        return load.num_waiting == 1 and load.num_free_kv_blocks == 255

    await eventually(pair.decode.load, waits)
    call.cancel()
    load = await eventually(pair.decode.load, at_rest)
    assert load.num_free_kv_blocks == 256
