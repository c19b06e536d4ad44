"""What one step of a baseline hands out: tokens, KV blocks and places, and how it takes them back.

Preemption is by recomputation, as in vLLM: a victim loses all its blocks. Best effort always
loses first.
"""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import DECODE, PREEMPT, PREFILL, Floats, Ints, Records
from headway.core.batching import blocks_for
from headway.core.kernel import kernel

# One record: the state of a step that is being formed.
ROOM = np.dtype(
    [
        ("num_budget_tokens", np.int64),
        # The budget, or where one prompt alone may exceed it, what the worker can do at most.
        ("max_step_tokens", np.int64),
        ("num_granted_tokens", np.int64),
        ("block_size", np.int64),
        ("num_free_blocks", np.int64),
        # Blocks that prompts already begun still need. No new prompt may take them, or prompts
        # would push each other out half-way.
        ("num_owed_blocks", np.int64),
        # Blocks that must stay free beyond those when a new prompt begins.
        ("num_watermark_blocks", np.int64),
        ("num_holders", np.int64),
        ("max_holders", np.int64),
        # 0 after someone lost blocks to a running request, or after a new prompt did not fit.
        ("may_start", np.int64),
    ]
)


@kernel
def new_blocks(requests: Records, request_id: int, grant: int, block_size: int) -> int:
    """Blocks that a grant adds to those the request holds."""
    request = requests[request_id]
    num_blocks = blocks_for(request.num_computed_tokens + grant, block_size)
    return max(0, num_blocks - request.num_blocks)  # type: ignore[no-any-return]


@kernel
def is_runnable(requests: Records, request_id: int) -> bool:
    """Whether a step can do something for this request."""
    request = requests[request_id]
    return request.phase == DECODE or (  # type: ignore[no-any-return]
        request.phase == PREFILL and request.num_computed_tokens < request.num_prompt_tokens
    )


@kernel
def owed_blocks(requests: Records, request_id: int, grant: int, block_size: int) -> int:
    """Blocks that a prompt, if begun, needs after this grant until it is computed."""
    request = requests[request_id]
    if request.phase != PREFILL or (request.num_blocks == 0 and grant == 0):
        return 0
    num_held = request.num_blocks + new_blocks(requests, request_id, grant, block_size)
    return max(0, blocks_for(request.num_prompt_tokens, block_size) - num_held)  # type: ignore[no-any-return]


@kernel
def open_room(  # type: ignore[no-untyped-def]
    requests: Records,
    ids: Ints,
    n: int,
    worker,  # noqa: ANN001
    num_budget_tokens: int,
    num_watermark_blocks: int,
    grants: Ints,
) -> Records:
    """The ROOM at the start of a step; `grants` may hold PREEMPT already, and nothing else.

    Returns:
        Shape (1,).
    """
    rooms = np.zeros(1, ROOM)
    room = rooms[0]
    room.num_budget_tokens = min(num_budget_tokens, worker.max_step_tokens)
    room.max_step_tokens = worker.max_step_tokens
    room.block_size = worker.block_size
    room.num_free_blocks = worker.num_free_blocks
    room.num_watermark_blocks = num_watermark_blocks
    room.max_holders = worker.max_running
    room.may_start = 1
    for k in range(n):
        num_blocks = requests[ids[k]].num_blocks
        if grants[k] == PREEMPT:
            room.num_free_blocks += num_blocks
        elif num_blocks > 0:
            room.num_holders += 1
            room.num_owed_blocks += owed_blocks(requests, ids[k], 0, worker.block_size)
    return rooms


@kernel
def take(requests: Records, ids: Ints, k: int, grant: int, rooms: Records, grants: Ints) -> None:
    """Give `grant` tokens and their blocks to the request at position k, which had nothing yet."""
    room = rooms[0]
    size = room.block_size
    room.num_owed_blocks -= owed_blocks(requests, ids[k], 0, size)
    room.num_owed_blocks += owed_blocks(requests, ids[k], grant, size)
    room.num_free_blocks -= new_blocks(requests, ids[k], grant, size)
    room.num_granted_tokens += grant
    if requests[ids[k]].num_blocks == 0:
        room.num_holders += 1
    grants[k] = grant


@kernel
def preempt(requests: Records, ids: Ints, k: int, rooms: Records, grants: Ints) -> None:
    """Take all blocks from the request at position k, and what this step gave it."""
    room = rooms[0]
    grant = grants[k]
    room.num_owed_blocks -= owed_blocks(requests, ids[k], grant, room.block_size)
    room.num_free_blocks += requests[ids[k]].num_blocks
    if grant > 0:
        room.num_free_blocks += new_blocks(requests, ids[k], grant, room.block_size)
        room.num_granted_tokens -= grant
    room.num_holders -= 1
    grants[k] = PREEMPT


@kernel
def outranks(requests: Records, ids: Ints, rank: Floats, a: int, b: int) -> bool:
    """Whether the request at position a keeps its blocks longer than the one at b."""
    first, second = requests[ids[a]], requests[ids[b]]
    if first.guaranteed != second.guaranteed:
        return first.guaranteed > second.guaranteed  # type: ignore[no-any-return]
    if rank[a] != rank[b]:
        return rank[a] < rank[b]  # type: ignore[no-any-return]
    return first.order < second.order  # type: ignore[no-any-return]


@kernel
def next_victim(requests: Records, ids: Ints, n: int, rank: Floats, grants: Ints) -> int:
    """Position of the running request that loses its blocks first; -1 if none runs."""
    victim = -1
    for k in range(n):
        if requests[ids[k]].num_blocks == 0 or grants[k] == PREEMPT:
            continue
        if is_runnable(requests, ids[k]) and (
            victim < 0 or outranks(requests, ids, rank, victim, k)
        ):
            victim = k
    return victim
