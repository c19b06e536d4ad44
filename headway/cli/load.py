"""Sends an open-loop load: each request at its time, however the ones before it fare."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from itertools import takewhile

from headway.cli.tally import Tally
from headway.cli.workload import PlannedRequest, prompt_token_ids
from headway.client import Admission, AsyncClient, Finished, RequestMeter
from headway.client.contract import StreamContract
from headway.errors import HeadwayError
from headway.ports import Clock


def until(planned: Iterable[PlannedRequest], end_s: float) -> Iterable[PlannedRequest]:
    """The requests planned before `end_s`."""
    return takewhile(lambda request: request.at_s < end_s, planned)


async def run_load(
    clients: Sequence[AsyncClient],
    planned: Iterable[PlannedRequest],
    *,
    seed: int,
    tally: Tally,
    clock: Clock,
) -> None:
    """Send every request at its time, over the clients in turn; returns when all have ended.

    Args:
        clients: one connection each; a single one carries some thousand tokens a second.
        planned: in order of time; read as the load goes on.
        seed: of the prompts' contents.
        tally: filled while the load runs.
        clock: measures everything.
    """
    started_at_s = clock.now_s()
    async with asyncio.TaskGroup() as running:
        for index, request in enumerate(planned):
            # Even when late the loop must turn, or no request would make progress.
            await asyncio.sleep(max(0.0, started_at_s + request.at_s - clock.now_s()))
            lag_s = clock.now_s() - started_at_s - request.at_s
            tally.max_start_lag_s = max(tally.max_start_lag_s, lag_s)
            prompt = prompt_token_ids(request.num_prompt_tokens, seed=seed + index)
            running.create_task(
                _one(clients[index % len(clients)], request, prompt, tally=tally, clock=clock)
            )


async def _one(
    client: AsyncClient,
    request: PlannedRequest,
    prompt: list[int],
    *,
    tally: Tally,
    clock: Clock,
) -> None:
    tier = tally.tier(request.tier)
    tier.num_asked += 1
    meter = RequestMeter(clock.now_s())
    contract = StreamContract()
    error: HeadwayError | None = None
    try:
        async for event in client.generate(
            prompt_token_ids=prompt,
            tier=request.tier,
            when_not_promised=request.when_not_promised,
            max_tokens=request.num_output_tokens,
            ignore_eos=True,
        ):
            meter.event(event, clock.now_s())
            contract.event(event)
            match event:
                case Admission():
                    tier.admitted(event.guaranteed)
                case Finished():
                    tally.kv.ended(event)
                case _:
                    pass
    except HeadwayError as raised:
        error = raised
    contract.ended(error)
    tier.violations.update(contract.violations)
    tier.ended(meter, error)
