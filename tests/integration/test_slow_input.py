"""What happens while a request is still being read, and to a client that does not read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from headway.adapters.null_telemetry import NullSpan, NullTelemetry
from headway.adapters.tokenizer import BytesTokenizer
from headway.config import ModelConfig
from headway.errors import Refused, Unavailable
from headway.ports.telemetry import AttributeValue, SpanKind
from headway.rpc.errors import error_from_rpc
from headway.v1 import inference_service_pb2 as pb
from headway.v1.inference_service_pb2_grpc import InferenceServiceStub
from services.controller import process, servicer
from tests.controller_stack import Call, rest, running_controller, running_stack, stack_config

# Longer texts are tokenised in a thread.
LONG_TEXT = "x" * 5000


class HeldTokenizer:
    """Implements `ports.Tokenizer`: tokenises when the test lets it."""

    def __init__(self) -> None:
        self._bytes = BytesTokenizer()
        self.vocab_size = self._bytes.vocab_size
        self.began = threading.Event()
        self.released = threading.Event()

    def encode(self, text: str) -> list[int]:
        self.began.set()
        self.released.wait()
        return self._bytes.encode(text)

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        return self.encode(messages[0][1])


@pytest.fixture
async def tokenizer(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HeldTokenizer]:
    tokenizer = HeldTokenizer()

    def load(_: ModelConfig) -> HeldTokenizer:
        return tokenizer

    monkeypatch.setattr(process, "load_tokenizer", load)
    yield tokenizer
    tokenizer.released.set()


async def error_of(call: Call) -> Exception:
    messages, error = await rest(call)
    assert messages == []
    assert error is not None
    return error_from_rpc(error)


async def test_requests_that_are_being_read_count_among_those_served(
    tokenizer: HeldTokenizer, tmp_path: Path
) -> None:
    config = stack_config(tmp_path, controller={"max_requests": 1})
    async with running_controller(config) as stack:
        reading = stack.generate(prompt_text=LONG_TEXT)
        reading_error = asyncio.create_task(error_of(reading))
        await asyncio.to_thread(tokenizer.began.wait)
        refused = await error_of(stack.generate(prompt_token_ids=[1]))
        tokenizer.released.set()
        await reading_error
        later = await error_of(stack.generate(prompt_token_ids=[1]))
    assert isinstance(refused, Refused)
    assert refused.reason == "QUEUE_FULL"
    assert isinstance(later, Unavailable)


async def test_a_request_read_while_the_controller_was_told_to_end_is_not_admitted(
    tokenizer: HeldTokenizer, tmp_path: Path
) -> None:
    async with running_stack(stack_config(tmp_path, costs={"floor_s": 0.05})) as stack:
        running = stack.generate(
            prompt_token_ids=[1], sampling={"max_tokens": 1000, "ignore_eos": True}
        )
        await running.read()
        reading = stack.generate(prompt_text=LONG_TEXT)
        reading_error = asyncio.create_task(error_of(reading))
        await asyncio.to_thread(tokenizer.began.wait)
        stack.stopped.set()
        refused = await error_of(stack.generate(prompt_token_ids=[1]))
        tokenizer.released.set()
        error = await reading_error
    assert isinstance(refused, Unavailable)
    assert isinstance(error, Unavailable)
    assert "shuts down" in str(error)


async def test_the_deadline_counts_from_the_arrival_of_the_call(
    tokenizer: HeldTokenizer, tmp_path: Path
) -> None:
    async with running_stack(stack_config(tmp_path, costs={"floor_s": 0.001})) as stack:
        deadline_s = 0.2
        deadline = Duration(nanos=int(deadline_s * 1e9))
        call = stack.generate(
            prompt_text=LONG_TEXT,
            deadline=deadline,
            sampling={"max_tokens": 1},
        )
        reading = asyncio.create_task(rest(call))
        await asyncio.to_thread(tokenizer.began.wait)
        # Not to wait for something, but to let time pass.
        await asyncio.sleep(deadline_s)
        tokenizer.released.set()
        messages, _ = await reading
    finished = messages[-1].finished
    assert finished.state == pb.FINAL_STATE_DEADLINE_EXCEEDED
    assert finished.usage.num_output_tokens == 0


@dataclass(frozen=True, slots=True)
class CallSpan(NullSpan):
    ended: asyncio.Event

    def end(self, error: str = "") -> None:
        self.ended.set()


class CallTelemetry(NullTelemetry):
    """Tells when the controller's side of a Generate call has ended."""

    def __init__(self) -> None:
        self.call = CallSpan("", asyncio.Event())

    def start_span(
        self,
        name: str,
        *,
        parent: str,
        kind: SpanKind = "INTERNAL",
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> NullSpan:
        if name.endswith("/Generate"):
            return self.call
        return super().start_span(name, parent=parent, kind=kind, attributes=attributes)


async def test_a_client_that_does_not_read_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry = CallTelemetry()
    monkeypatch.setattr(process, "build_telemetry", lambda *_: telemetry)
    monkeypatch.setattr(servicer, "SLOW_READER_S", 0.3)
    config = stack_config(
        tmp_path,
        costs={"floor_s": 0.0001},
        engine={"max_model_len": 100_000, "num_kv_blocks": 10_000},
    )
    # What grpc itself reads ahead is made small: it would take the whole output.
    options = [("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0)]
    async with (
        running_stack(config) as stack,
        grpc.aio.insecure_channel(stack.address, options=options) as channel,
    ):
        sampling = {"max_tokens": 90_000, "ignore_eos": True}
        call = InferenceServiceStub(channel).Generate(
            pb.GenerateRequest(prompt_text="hello", sampling=sampling)
        )
        await call.read()
        await telemetry.call.ended.wait()
        capacity = await stack.wait_at_rest()
        assert not call.done()
        messages, error = await rest(call)
    assert all(w.load.resources.num_slots_created == 1 for w in capacity.workers)
    assert error is not None
    assert error.code() is grpc.StatusCode.CANCELLED
    assert not any(message.HasField("finished") for message in messages)
