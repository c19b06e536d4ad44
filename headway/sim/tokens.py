"""Output tokens: how many one step yields, and what each of them counts for."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import GONE
from headway.core.kernel import kernel
from headway.sim.truth import uniform
from headway.sim.world_state import LOG, NUM_FINISHED, NUM_TOKENS_LOGGED, SERVED, World


@kernel
def num_accepted(world: World, w: int, row: int, num_drafted: int) -> int:
    """How many drafted tokens are kept: each only if all before it were."""
    acceptance = world.sim[row % world.sim.shape[0]].acceptance
    num_kept = 0
    while num_kept < num_drafted and (
        uniform(world.truths[w].seed, row, world.step_numbers[w] * 16 + num_kept) < acceptance
    ):
        num_kept += 1
    return num_kept


@kernel
def emit(world: World, holder: int, row: int, now_s: float) -> None:
    """One output token leaves. `holder`: row that holds the blocks; `row`: that of the decode."""
    num_requests = world.sim.shape[0]
    index = row if row < num_requests else row - num_requests
    r = world.requests[row]
    sim = world.sim[index]
    r.num_output_tokens += 1
    late = now_s > r.next_due_at_s
    if r.num_output_tokens == 1:
        sim.first_token_at_s = now_s
        r.lead_s = max(0.0, r.next_due_at_s - now_s)
    is_last = r.num_output_tokens == sim.num_output_tokens
    is_checkpoint = r.num_output_tokens == 1 or r.num_output_tokens % 10 == 0 or is_last
    if late:
        sim.num_late_tokens += 1
        if is_checkpoint and r.guaranteed == 0:
            # It has missed what it asked for; nobody needs to hurry any more.
            r.next_due_at_s = np.inf
        sim.num_checkpoints_missed += int(is_checkpoint)
    if world.options[LOG] == 1 and is_checkpoint:
        entry = world.token_log[world.counters[NUM_TOKENS_LOGGED]]
        world.counters[NUM_TOKENS_LOGGED] += 1
        entry.request = index
        entry.index = r.num_output_tokens - 1
        entry.at_s = now_s
    r.num_stage_tokens_left -= 1
    if r.num_stage_tokens_left == 0:
        r.tpot_s = r.later_tpot_s
    r.next_due_at_s += r.tpot_s
    if is_last:
        sim.last_token_at_s = now_s
        sim.outcome = SERVED
        world.finished[world.counters[NUM_FINISHED]] = index
        world.counters[NUM_FINISHED] += 1
        r.phase = GONE
        world.requests[holder].phase = GONE
    elif r.num_output_tokens >= r.num_output_bound:
        # The plan was too low; half as much again is what it counts on from here.
        r.num_output_bound = r.num_output_tokens + max(1, r.num_output_tokens // 2)
