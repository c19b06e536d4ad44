"""The three times that decodes are granted tokens while a step is filled."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import PREEMPT, Floats, Ints, Record, Records
from headway.core.batching.blocks import SCARCE_BLOCKS, blocks_for
from headway.core.batching.preemption import make_room
from headway.core.batching.step_state import grant_decode, with_one_more_s
from headway.core.kernel import kernel
from headway.core.planner.speculation import draft_length
from headway.core.planner.step_time import step_s

# Of a step's bound beyond an empty step, what decodes may take before prompts so as not to fall
# behind the line that starts at their first token.
PACED_SHARE = 0.35


@kernel
def grant_urgent_decodes(
    now_s: float,
    cap_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    worker: Record,
    grants: Ints,
    decodes: Ints,
    decode_due: Floats,
    step: Records,
) -> int:
    """Grant what cannot wait for the step after this one; returns the first that can.

    Kept in reserve is the time of one token for everybody: decodes that were put off together
    come due together, and would leave a step without slack for the noise of its duration.
    """
    s = step[0]
    pass_context = 0
    num_pass = 0
    for j in range(len(decodes)):
        if not np.isinf(decode_due[j]):
            num_pass += 1
            pass_context += requests[ids[decodes[j]]].num_computed_tokens
    pass_s = 0.0
    if num_pass > 0:
        whole_s = step_s(worker, num_pass, num_pass, pass_context, 0.0, 0, 0, 0)
        pass_s = whole_s - worker.time_ratio * worker.floor_s
    s.draft = draft_length(requests, ids, decodes[:num_pass], worker, s.num_timely_prompts > 0)
    # Shorter steps would cost more than they save, and make all the others late.
    efficient_s = worker.time_ratio * worker.floor_s + 0.5 * pass_s
    horizon_at_s = now_s + s.limit_s + min(cap_s, s.limit_s) + pass_s
    if worker.num_free_blocks < SCARCE_BLOCKS * worker.num_blocks:
        horizon_at_s = np.finfo(np.float64).max
    for j in range(len(decodes)):
        if decode_due[j] > horizon_at_s:
            return j
        k = decodes[j]
        r = requests[ids[k]]
        needed = blocks_for(r.num_computed_tokens + 1, worker.block_size) - r.num_blocks
        if needed > s.num_free:
            s.num_free += make_room(requests, ids, n, grants, k, needed - s.num_free)
        if grants[k] == PREEMPT or needed > s.num_free:
            continue
        with_it_s = with_one_more_s(r, worker, step)
        if with_it_s > max(s.slack_s, efficient_s) and s.num_tokens > 0:
            # The first of them would be late; this one can have the next step.
            return len(decodes)
        grant_decode(r, k, worker, grants, step)
    return len(decodes)


@kernel
def grant_paced_decodes(
    now_s: float,
    requests: Records,
    ids: Ints,
    worker: Record,
    grants: Ints,
    decodes: Ints,
    step: Records,
) -> None:
    """Grant what would fall behind the line that starts at its first token.

    A first token that came early is followed at the promised pace as long as that leaves prompts
    most of the step; the lead is spent only when it does not.
    """
    s = step[0]
    if np.isinf(s.limit_s):
        # All of them find room after the prompts.
        return
    floor_s = worker.time_ratio * worker.floor_s
    bound_s = floor_s + PACED_SHARE * (s.limit_s - floor_s)
    horizon_at_s = now_s + 2.0 * s.limit_s
    for k in decodes:
        r = requests[ids[k]]
        if r.guaranteed == 0:
            return
        if r.next_due_at_s - r.lead_s > horizon_at_s:
            continue
        needed = blocks_for(r.num_computed_tokens + 1, worker.block_size) - r.num_blocks
        if grants[k] == PREEMPT or needed > s.num_free:
            continue
        if with_one_more_s(r, worker, step) > bound_s:
            return
        grant_decode(r, k, worker, grants, step)


@kernel
def grant_other_decodes(
    requests: Records, ids: Ints, worker: Record, grants: Ints, decodes: Ints, step: Records
) -> None:
    """Grant decodes that are ahead of their line, while the step stays within its bound."""
    s = step[0]
    for k in decodes:
        if grants[k] > 0:
            continue
        r = requests[ids[k]]
        bound_s = s.limit_s
        if r.guaranteed == 0:
            if s.num_timely_prompts > 0 and s.num_tokens > 0:
                return
            bound_s = min(bound_s, s.best_effort_s)
        needed = blocks_for(r.num_computed_tokens + 1, worker.block_size) - r.num_blocks
        if grants[k] == PREEMPT or needed > s.num_free:
            continue
        with_it_s = with_one_more_s(r, worker, step)
        if with_it_s > bound_s and s.num_tokens > 0:
            return
        grant_decode(r, k, worker, grants, step)
