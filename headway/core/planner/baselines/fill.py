"""Fills a step in a given sequence; what most baselines share once the sequence is known."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import DECODE, PREEMPT, Floats, Ints, Records
from headway.core.kernel import kernel
from headway.core.planner.baselines.blocks import (
    is_runnable,
    new_blocks,
    next_victim,
    outranks,
    owed_blocks,
    preempt,
    take,
)


@kernel
def arrival_rank(requests: Records, ids: Ints, n: int) -> Floats:
    """First come, first served, as a sort key of each position."""
    rank = np.empty(n, np.float64)
    for k in range(n):
        rank[k] = requests[ids[k]].order
    return rank


@kernel
def in_sequence(requests: Records, ids: Ints, group: Ints, key: Floats) -> Ints:
    """Positions by group, key and arrival.

    Args:
        requests: REQUEST records.
        ids: rows of `requests`.
        group: of each position; negative leaves it out.
        key: of each position.
    """
    positions = np.argsort(key, kind="mergesort")
    for j in range(1, len(positions)):
        # Equal keys: by arrival, not by their place in `ids`, which means nothing.
        k, m = positions[j], j
        while (
            m > 0
            and key[positions[m - 1]] == key[k]
            and requests[ids[positions[m - 1]]].order > requests[ids[k]].order
        ):
            positions[m] = positions[m - 1]
            m -= 1
        positions[m] = k
    sequence = np.empty(len(positions), np.int64)
    num_placed = 0
    for wanted in range(group.max() + 1 if len(group) else 0):
        for k in positions:
            if group[k] == wanted:
                sequence[num_placed] = k
                num_placed += 1
    return sequence[:num_placed]


@kernel
def _run_on(
    requests: Records,
    ids: Ints,
    n: int,
    k: int,
    grant: int,
    rank: Floats,
    rooms: Records,
    grants: Ints,
) -> None:
    """A running request gets its grant, at the cost of those it outranks, or loses its blocks."""
    room = rooms[0]
    request = requests[ids[k]]
    while new_blocks(requests, ids[k], grant, room.block_size) > room.num_free_blocks:
        room.may_start = 0
        victim = next_victim(requests, ids, n, rank, grants)
        preempts_itself = victim == k
        if preempts_itself and room.num_granted_tokens > 0:
            preempt(requests, ids, k, rooms, grants)
            return
        if preempts_itself:
            # Only KV that arrives for others is in its way; to lose its own would win nothing.
            num_slots = (request.num_blocks + room.num_free_blocks) * room.block_size
            grant = min(grant, num_slots - request.num_computed_tokens)
            if grant <= 0:
                return
            break
        preempt(requests, ids, victim, rooms, grants)
    take(requests, ids, k, grant, rooms, grants)


@kernel
def _fits(rooms: Records, num_prompt_blocks: int) -> bool:
    room = rooms[0]
    # Alone, a request may have everything.
    num_watermark_blocks = room.num_watermark_blocks if room.num_holders > 0 else 0
    num_free = room.num_free_blocks - room.num_owed_blocks - num_watermark_blocks
    return num_prompt_blocks <= num_free and room.num_holders < room.max_holders  # type: ignore[no-any-return]


@kernel
def _could_fit(
    requests: Records,
    ids: Ints,
    n: int,
    k: int,
    evicts: bool,
    rank: Floats,
    rooms: Records,
    grants: Ints,
) -> bool:
    """Whether the prompt at k would fit without all the running requests it may push out."""
    room = rooms[0]
    request = requests[ids[k]]
    num_left = request.num_prompt_tokens - request.num_computed_tokens
    num_missing = new_blocks(requests, ids[k], num_left, room.block_size)
    num_missing -= room.num_free_blocks - room.num_owed_blocks
    num_victims = 0
    for other in range(n):
        i = ids[other]
        if requests[i].num_blocks == 0 or grants[other] == PREEMPT or not is_runnable(requests, i):
            continue
        if outranks(requests, ids, rank, k, other) and (
            evicts or request.guaranteed > requests[i].guaranteed
        ):
            grant = grants[other]
            num_victims += 1
            num_missing -= requests[i].num_blocks + owed_blocks(requests, i, grant, room.block_size)
            num_missing -= new_blocks(requests, i, grant, room.block_size)
    if num_victims < room.num_holders:
        num_missing += room.num_watermark_blocks
    return num_victims > 0 and num_missing <= 0


@kernel
def _start(
    requests: Records,
    ids: Ints,
    n: int,
    k: int,
    grant: int,
    evicts: bool,
    rank: Floats,
    rooms: Records,
    grants: Ints,
) -> None:
    """A waiting request starts if all of its prompt has room; otherwise no other one may."""
    request = requests[ids[k]]
    num_left = request.num_prompt_tokens - request.num_computed_tokens
    num_prompt_blocks = new_blocks(requests, ids[k], num_left, rooms[0].block_size)
    if not _fits(rooms, num_prompt_blocks) and not _could_fit(
        requests, ids, n, k, evicts, rank, rooms, grants
    ):
        rooms[0].may_start = 0
        return
    while not _fits(rooms, num_prompt_blocks):
        victim = next_victim(requests, ids, n, rank, grants)
        preempt(requests, ids, victim, rooms, grants)
    take(requests, ids, k, grant, rooms, grants)


@kernel
def fill(
    requests: Records,
    ids: Ints,
    n: int,
    sequence: Ints,
    rank: Floats,
    evicts: bool,
    whole: bool,
    rooms: Records,
    grants: Ints,
) -> None:
    """Hand out the step's budget: decodes get one token, prompts a chunk or nothing.

    A running request that lacks blocks takes them from the running request of the lowest rank,
    which may be itself; after that no prompt starts. A prompt starts only if all of it has
    room, and the first one that has none ends the starting. Source: vLLM 0.32, V1 scheduler
    (`scheduler_reserve_full_isl` is on by default).

    Args:
        requests: REQUEST records.
        ids: rows of `requests` on this worker.
        n: how many of `ids` are valid.
        sequence: positions in `ids`, first served first.
        rank: smaller keeps its blocks longer; best effort always loses first. Shape (n,).
        evicts: whether a prompt may start at the cost of promised running requests that it
            outranks. At the cost of best effort a promised one always may.
        whole: no chunks; the first prompt of a step may exceed the budget.
        rooms: the ROOM of this step.
        grants: shape (n,) or longer.
    """
    room = rooms[0]
    for k in sequence:
        num_tokens = room.num_budget_tokens - room.num_granted_tokens
        if num_tokens <= 0:
            return
        if grants[k] == PREEMPT:
            continue
        request = requests[ids[k]]
        num_left = request.num_prompt_tokens - request.num_computed_tokens
        if request.phase == DECODE:
            _run_on(requests, ids, n, k, 1, rank, rooms, grants)
            continue
        if whole and room.num_granted_tokens == 0:
            num_tokens = room.max_step_tokens
        grant = min(num_left, num_tokens)
        if request.num_blocks > 0:
            _run_on(requests, ids, n, k, grant, rank, rooms, grants)
        elif room.may_start and whole and grant < num_left and room.num_granted_tokens > 0:
            room.may_start = 0
        elif room.may_start:
            _start(requests, ids, n, k, grant, evicts, rank, rooms, grants)
