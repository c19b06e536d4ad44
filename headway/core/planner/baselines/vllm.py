"""vLLM's two schedulers. DistServe's pools run the first: prompts only, or decodes only."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import DECODE, Ints, Records
from headway.core.kernel import kernel
from headway.core.planner.baselines.blocks import is_runnable, open_room
from headway.core.planner.baselines.fill import arrival_rank, fill, in_sequence


@kernel
def _prompts(requests: Records, ids: Ints, n: int, guaranteed: int) -> Ints:
    """Groups: prompts of one class, those begun first."""
    group = np.full(n, -1)
    for k in range(n):
        request = requests[ids[k]]
        if (
            is_runnable(requests, ids[k])
            and request.phase != DECODE
            and request.guaranteed == guaranteed
        ):
            group[k] = 0 if request.num_blocks > 0 else 1
    return group


@kernel
def form_vllm_v0(  # type: ignore[no-untyped-def]
    _now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    worker,  # noqa: ANN001
    grants: Ints,
) -> None:
    """Prompts first, alone and whole, first come first served; otherwise all decodes.

    A step takes prompts up to `worker.token_budget` tokens together, and always at least one:
    vLLM allows no budget below its longest prompt, and DistServe's saturation length only stops
    the adding of prompts. Only a prompt longer than a step can be is cut. 1 % of the blocks stay
    free when a prompt starts. Best-effort prompts run while no promised request decodes, since
    they would stall it.
    """
    grants[:n] = 0
    rank = arrival_rank(requests, ids, n)
    num_watermark_blocks = worker.num_blocks // 100
    decodes = np.full(n, -1)
    num_promised_decodes = 0
    for k in range(n):
        request = requests[ids[k]]
        if request.phase == DECODE:
            decodes[k] = 1 - request.guaranteed
            num_promised_decodes += request.guaranteed
    for guaranteed in (1, 0):
        if guaranteed == 0 and num_promised_decodes > 0:
            break
        rooms = open_room(
            requests, ids, n, worker, worker.token_budget, num_watermark_blocks, grants
        )
        sequence = in_sequence(requests, ids, _prompts(requests, ids, n, guaranteed), rank)
        fill(requests, ids, n, sequence, rank, False, True, rooms, grants)
        if rooms[0].num_granted_tokens > 0:
            return
    rooms = open_room(
        requests, ids, n, worker, worker.max_step_tokens, num_watermark_blocks, grants
    )
    sequence = in_sequence(requests, ids, decodes, rank)
    fill(requests, ids, n, sequence, rank, False, False, rooms, grants)


@kernel
def form_vllm_v1(  # type: ignore[no-untyped-def]
    _now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    worker,  # noqa: ANN001
    grants: Ints,
) -> None:
    """One token budget for all: running requests in their order, then waiting ones in theirs.

    `worker.token_budget` is `max_num_batched_tokens`. Decodes and prompts already begun are
    running alike.
    """
    grants[:n] = 0
    rank = arrival_rank(requests, ids, n)
    group = np.full(n, -1)
    for k in range(n):
        request = requests[ids[k]]
        if is_runnable(requests, ids[k]):
            group[k] = (2 if request.guaranteed == 0 else 0) + (1 if request.num_blocks == 0 else 0)
    rooms = open_room(requests, ids, n, worker, worker.token_budget, 0, grants)
    sequence = in_sequence(requests, ids, group, rank)
    fill(requests, ids, n, sequence, rank, False, False, rooms, grants)
