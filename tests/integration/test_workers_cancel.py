"""However and whenever a request ends early, both workers let go of all it held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from headway.ports.engine import EngineLoad
from headway.rpc.server import open_channel
from headway.v1.decode_service_pb2_grpc import DecodeServiceStub
from headway.v1.prefill_service_pb2_grpc import PrefillServiceStub
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

CONTEXT = 1024
LONG_PROMPT = list(range(CONTEXT - 24))

# Time enough to reach every stage, and far less than any stage lasts.
DEADLINE_S = 2.0


@dataclass(frozen=True)
class Stage:
    """How to hold a request in one stage of its life, and how to see that it is there.

    Attributes:
        blocker_prompt, blocker_max_tokens: another request, which comes first; none if empty.
    """

    reached: Callable[[EngineLoad, EngineLoad], bool]
    prompt: list[int]
    max_tokens: int = 20
    blocker_prompt: tuple[int, ...] = ()
    blocker_max_tokens: int = 0


STAGES = {
    "waiting for blocks to prefill": Stage(
        lambda prefill, _: prefill.num_running == 1 and prefill.num_waiting == 1,
        prompt=LONG_PROMPT,
        blocker_prompt=tuple(LONG_PROMPT),
        blocker_max_tokens=1,
    ),
    "prefilling": Stage(
        lambda prefill, _: prefill.num_running == 1,
        prompt=LONG_PROMPT,
    ),
    "transferring": Stage(
        lambda _, decode: decode.resources.num_staged_pages_created > 0,
        prompt=LONG_PROMPT,
    ),
    "waiting for blocks to decode": Stage(
        lambda prefill, decode: (
            decode.num_waiting == 2 and prefill.resources.num_staged_pages_created > 0
        ),
        prompt=list(range(40)),
        blocker_prompt=tuple(LONG_PROMPT),
        blocker_max_tokens=20,
    ),
    "decoding": Stage(
        lambda _, decode: decode.num_running == 1,
        prompt=[1],
        max_tokens=900,
    ),
}


async def loads(pair: Pair) -> tuple[EngineLoad, EngineLoad]:
    return await pair.prefill.load(), await pair.decode.load()


@pytest.mark.parametrize("cause", ["cancel", "deadline", "disconnect"])
@pytest.mark.parametrize("name", STAGES)
async def test_nothing_is_left_behind(tmp_path: Path, name: str, cause: str) -> None:
    stage = STAGES[name]
    # A step takes 100 ms: a long prompt is computed in 6 s, a long output in 90 s.
    config = emulated_config(
        write_profile(tmp_path / "slow.toml", step_s=0.1),
        max_step_tokens=16,
        max_model_len=CONTEXT,
        num_kv_blocks=CONTEXT // 16,
    )
    timeout_s = DEADLINE_S if cause == "deadline" else None
    async with worker_pair(config) as pair:
        blocker = None
        if stage.blocker_prompt:
            request = decode_request("blocker", stage.blocker_prompt, stage.blocker_max_tokens)
            blocker = pair.decode_stub.Decode(request)
            target = await reserved(aiter(blocker))
            if stage.blocker_max_tokens == 1:
                blocking_prefill = pair.prefill_stub.Prefill(prefill_request(request, target))
                await eventually(pair.prefill.load, lambda load: load.num_running == 1)

        async with (
            open_channel(pair.prefill.address) as prefill_channel,
            open_channel(pair.decode.address) as decode_channel,
        ):
            request = decode_request("victim", stage.prompt, stage.max_tokens)
            decode = DecodeServiceStub(decode_channel).Decode(request, timeout=timeout_s)
            responses = aiter(decode)
            prefill = PrefillServiceStub(prefill_channel).Prefill(
                prefill_request(request, await reserved(responses)), timeout=timeout_s
            )
            await eventually(lambda: loads(pair), lambda both: stage.reached(*both))
            assert not decode.done()
            match cause:
                case "cancel":
                    prefill.cancel()
                    decode.cancel()
                case "disconnect":
                    await prefill_channel.close()
                    await decode_channel.close()
                case "deadline":
                    assert await decode.code() is grpc.StatusCode.DEADLINE_EXCEEDED

        if blocker is not None:
            blocker.cancel()
            if stage.blocker_max_tokens == 1:
                blocking_prefill.cancel()
        for worker in (pair.prefill, pair.decode):
            await eventually(worker.load, at_rest)
            await worker.slots.wait_empty()
