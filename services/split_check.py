"""Whether prompts are computed on prefill workers: looked at before a stack says it is ready.

A stack whose decode workers compute prompts without anybody having placed them there serves the
right tokens and breaks promises, so nobody would notice. One request shows it.
"""

from __future__ import annotations

import asyncio

from headway.client import Admission, AsyncClient, Capacity, Finished
from headway.core.request import RequestState
from headway.errors import StackFailed

# Several KV blocks for every tokenizer, and short enough for every model.
_PROMPT = " ".join(map(str, range(40)))
_DEADLINE_S = 60.0
_SETTLING_S = 10.0
_POLL_S = 0.05


async def check_split(client: AsyncClient) -> None:
    """Send one request through workers of both roles and look at what became of its KV.

    Raises:
        StackFailed: its KV did not move, the decode worker computed more of the prompt than its
            last token, or a worker still holds something of it when nothing runs any more.
        HeadwayError: the request was not served.
    """
    admission: Admission | None = None
    finished: Finished | None = None
    async for event in client.generate(prompt=_PROMPT, max_tokens=2, deadline_s=_DEADLINE_S):
        match event:
            case Admission():
                admission = event
            case Finished():
                finished = event
    assert admission is not None
    assert finished is not None
    if finished.state is not RequestState.SUCCEEDED:
        said = finished.error_message
        raise StackFailed(f"the first request ended as {finished.state.value}: {said}")
    num_bytes = finished.kv_transfer.num_bytes if finished.kv_transfer is not None else 0
    num_computed = finished.usage.num_prompt_tokens_recomputed
    if num_bytes == 0 or num_computed > 1:
        raise StackFailed(
            "prompts are computed on decode workers, which the config does not allow"
            f" (decode.prefills): of {finished.usage.num_prompt_tokens} prompt tokens"
            f" {num_computed} were computed again, and {num_bytes} bytes of KV moved from"
            f" {admission.prefill_worker_id} to {admission.decode_worker_id}"
        )
    await _let_go(client)


async def _let_go(client: AsyncClient) -> None:
    """Until workers have given back all they held, or other requests hold something."""
    try:
        async with asyncio.timeout(_SETTLING_S):
            while holders := _holders(await client.capacity()):  # noqa: ASYNC110 - of other processes
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        names = ", ".join(holders)
        raise StackFailed(f"nothing runs, and {names} still hold slots, KV or pages") from None


def _holders(capacity: Capacity) -> list[str]:
    if capacity.num_requests_running + capacity.num_best_effort_queued:
        return []
    return [
        worker.worker_id
        for worker in capacity.workers
        if (held := worker.load.resources).num_slots_created != held.num_slots_released
        or held.num_kv_blocks_created != held.num_kv_blocks_released
        or held.num_staged_pages_created != held.num_staged_pages_released
    ]
