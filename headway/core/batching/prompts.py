"""Prompts are granted chunks, as large as what is left of the step."""

from __future__ import annotations

from headway.core.batch_state import PREEMPT, Ints, Record, Records
from headway.core.batching.blocks import SCARCE_BLOCKS, blocks_for
from headway.core.batching.order import BEST_EFFORT_KEY, prompt_key
from headway.core.batching.preemption import make_room
from headway.core.kernel import kernel
from headway.core.planner.step_time import chunk_within


@kernel
def grant_prompts(  # noqa: C901 - compiled
    now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    worker: Record,
    grants: Ints,
    prompts: Ints,
    step: Records,
) -> None:
    """Grant chunks in the given order until the step is full."""
    s = step[0]
    for k in prompts:
        r = requests[ids[k]]
        if grants[k] == PREEMPT or (r.num_blocks == 0 and s.num_holding >= worker.max_running):
            continue
        if r.guaranteed == 0 and r.num_blocks == 0:
            # It would be preempted before long, and all its work be lost.
            rest = s.num_free - blocks_for(r.num_prompt_tokens, worker.block_size)
            if rest < SCARCE_BLOCKS * worker.num_blocks and s.num_holding > 0:
                continue
        bound_s = s.limit_s
        if prompt_key(r, worker, now_s) >= BEST_EFFORT_KEY:
            bound_s = min(s.limit_s, s.best_effort_s)
        left_s = bound_s - worker.time_ratio * (
            worker.sequence_s * s.num_decodes
            + worker.context_token_s * s.context
            + worker.prefill_attention_s * s.attention
            + worker.chunk_s * s.num_chunks
            + worker.draft_floor_s * s.draft * int(s.num_drafted > 0)
            + worker.draft_sequence_s * s.num_drafted
        )
        num_left = min(
            r.num_prompt_tokens - r.num_computed_tokens, worker.max_step_tokens - s.num_tokens
        )
        chunk = chunk_within(worker, left_s, s.num_tokens, r.num_computed_tokens, num_left)
        if chunk <= 0:
            return
        needed = blocks_for(r.num_computed_tokens + chunk, worker.block_size) - r.num_blocks
        if needed > s.num_free and r.guaranteed == 1:
            s.num_free += make_room(requests, ids, n, grants, k, needed - s.num_free)
        if needed > s.num_free:
            room = (s.num_free + r.num_blocks) * worker.block_size - r.num_computed_tokens
            chunk = min(chunk, room)
            if chunk <= 0:
                continue
            needed = blocks_for(r.num_computed_tokens + chunk, worker.block_size) - r.num_blocks
        s.num_holding += int(r.num_blocks == 0)
        s.num_free -= max(needed, 0)
        grants[k] = chunk
        s.num_tokens += chunk
        s.num_chunks += 1
        s.attention += chunk * (r.num_computed_tokens + 0.5 * chunk)
        if chunk < num_left:
            return
        due_s = (r.prefill_due_at_s - now_s) / worker.step_guard_ratio
        if r.guaranteed == 1 and due_s > 0.0:
            # It is complete with this step, which must not make it late.
            s.limit_s = min(s.limit_s, due_s)
