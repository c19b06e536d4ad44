"""Who gives up KV blocks so that another can go on."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import DECODE, PREEMPT, PREFILL, Ints, Record, Records
from headway.core.batching.blocks import blocks_for
from headway.core.batching.order import TIE
from headway.core.kernel import kernel


@kernel
def make_room(
    requests: Records, ids: Ints, n: int, grants: Ints, keep: int, num_wanted: int
) -> int:
    """Preempt until `num_wanted` more blocks are free; returns how many became free.

    Best effort goes first, the latest first; then promised requests whose next token is due
    after that of the one in need, the last due first.
    """
    needy = requests[ids[keep]]
    freed = 0
    while freed < num_wanted:
        victim = -1
        victim_key = -np.inf
        for k in range(n):
            r = requests[ids[k]]
            if k == keep or grants[k] != 0 or r.num_blocks == 0:
                continue
            if r.phase not in (PREFILL, DECODE):
                continue
            if r.guaranteed == 1 and (
                needy.guaranteed == 0 or r.next_due_at_s <= needy.next_due_at_s
            ):
                continue
            key = r.next_due_at_s + TIE * r.order
            if r.guaranteed == 0:
                key = 1e12 + r.order
            if key > victim_key:
                victim = k
                victim_key = key
        if victim < 0:
            return freed
        grants[victim] = PREEMPT
        freed += requests[ids[victim]].num_blocks
    return freed


@kernel
def force_one(  # noqa: C901 - compiled
    requests: Records, ids: Ints, n: int, worker: Record, grants: Ints
) -> None:
    """Memory is full of requests none of which can go on: let the first that came go on."""
    first = -1
    num_free = worker.num_free_blocks
    num_holding = 0
    for k in range(n):
        r = requests[ids[k]]
        if grants[k] == PREEMPT:
            num_free += r.num_blocks
        num_holding += int(r.num_blocks > 0)
        if r.phase in (PREFILL, DECODE) and (first < 0 or r.order < requests[ids[first]].order):
            first = k
    r = requests[ids[first]]
    if r.num_blocks == 0 and num_holding >= worker.max_running:
        return
    wanted = 1
    if r.phase == PREFILL:
        wanted = min(r.num_prompt_tokens - r.num_computed_tokens, worker.max_step_tokens)
    needed = blocks_for(r.num_computed_tokens + wanted, worker.block_size) - r.num_blocks
    if grants[first] == PREEMPT:
        num_free -= r.num_blocks
    while num_free < needed:
        victim = -1
        for k in range(n):
            other = requests[ids[k]]
            if k == first or other.num_blocks == 0 or grants[k] == PREEMPT:
                continue
            if other.phase in (PREFILL, DECODE) and (
                victim < 0 or other.order > requests[ids[victim]].order
            ):
                victim = k
        if victim < 0:
            return
        grants[victim] = PREEMPT
        num_free += requests[ids[victim]].num_blocks
    grants[first] = wanted
