"""Sends an open-loop load: each request at its time, however the ones before it fare."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import takewhile

from headway.cli.tally import Tally
from headway.cli.workload import PlannedRequest, prompt_token_ids
from headway.client import Admission, AsyncClient, Finished, RequestMeter
from headway.client.contract import StreamContract
from headway.errors import HeadwayError
from headway.ports.clock import Clock

# What one request of a load does: its number, the request, its prompt.
Send = Callable[[int, PlannedRequest, list[int]], Coroutine[None, None, None]]


def until(planned: Iterable[PlannedRequest], end_s: float) -> Iterable[PlannedRequest]:
    """The requests planned before `end_s`."""
    return takewhile(lambda request: request.at_s < end_s, planned)


async def open_loop(
    planned: Iterable[PlannedRequest],
    send: Send,
    *,
    seed: int,
    clock: Clock,
    lagged: Callable[[float], None],
) -> None:
    """Start `send` for every request at its time; returns when all have ended.

    Args:
        planned: in order of time; read as the load goes on.
        send: sends one request.
        seed: of the prompts' contents.
        clock: measures everything.
        lagged: told for each request how late it was started.
    """
    started_at_s = clock.now_s()
    async with asyncio.TaskGroup() as running:
        for index, request in enumerate(planned):
            # Even when late the loop must turn, or no request would make progress.
            await asyncio.sleep(max(0.0, started_at_s + request.at_s - clock.now_s()))
            lagged(clock.now_s() - started_at_s - request.at_s)
            prompt = prompt_token_ids(request.num_prompt_tokens, seed=seed + index)
            running.create_task(send(index, request, prompt))


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
        planned: as of `open_loop`.
        seed: as of `open_loop`.
        clock: as of `open_loop`.
        tally: filled while the load runs.
    """

    async def send(index: int, request: PlannedRequest, prompt: list[int]) -> None:
        await _one(clients[index % len(clients)], request, prompt, tally=tally, clock=clock)

    def lagged(lag_s: float) -> None:
        tally.max_start_lag_s = max(tally.max_start_lag_s, lag_s)

    await open_loop(planned, send, seed=seed, clock=clock, lagged=lagged)


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
