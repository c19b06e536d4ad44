"""The open-loop load against a real gRPC server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from headway.adapters.system_clock import SystemClock
from headway.cli.load import run_load
from headway.cli.tally import Tally
from headway.cli.workload import PlannedRequest
from headway.client import AsyncClient
from headway.errors import Refused
from headway.v1 import inference_service_pb2 as pb
from tests.scripted_controller import ScriptedController, admission, finished, serving, tokens


async def run(controller: ScriptedController, tiers: list[str]) -> Tally:
    tally = Tally()
    planned = [PlannedRequest(0.01 * i, tier, "refuse", 5, 2) for i, tier in enumerate(tiers)]
    async with (
        serving(controller) as address,
        AsyncClient(address) as first,
        AsyncClient(address) as second,
    ):
        await run_load([first, second], planned, seed=1, tally=tally, clock=SystemClock())
    return tally


async def test_no_request_waits_for_those_before_it() -> None:
    arrived = asyncio.Semaphore(0)
    all_arrived = asyncio.Event()

    async def answer_when_all_are_here(
        _request: pb.GenerateRequest, _context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        arrived.release()
        if arrived._value == 6:
            all_arrived.set()
        yield admission()
        await all_arrived.wait()
        yield tokens(0, 72, 73)
        yield finished()

    controller = ScriptedController(answer_when_all_are_here)
    tally = await run(controller, ["chat"] * 6)
    assert tally.tier("chat").num_succeeded == 6
    assert tally.tier("chat").num_attained == 6
    assert tally.kv.num_transfers == 6
    prompts = {tuple(request.prompt_token_ids) for request in controller.requests}
    assert {len(prompt) for prompt in prompts} == {5}
    assert len(prompts) == 6


async def test_refusals_and_failures_do_not_stop_the_load() -> None:
    async def by_tier(
        request: pb.GenerateRequest, _context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        if request.tier == "refused":
            raise Refused("PREFILL_TIME", "too much to do", 1.0)
        yield admission(guaranteed=False, binding_constraint="PREFILL_TIME")
        yield finished(
            pb.FINAL_STATE_FAILED if request.tier == "failed" else pb.FINAL_STATE_SUCCEEDED
        )

    tally = await run(ScriptedController(by_tier), ["refused", "failed", "chat", "refused"])
    assert tally.tier("refused").refusals == {"PREFILL_TIME": 2}
    assert tally.tier("failed").failures == {"FAILED": 1}
    assert tally.tier("chat").num_best_effort == 1
    assert tally.total("num_running") == 0
