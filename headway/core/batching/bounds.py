"""How long a step may become: what is due in it or right after it, and the worker's cap."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import ARRIVING, Floats, Ints, Record, Records
from headway.core.kernel import kernel
from headway.core.planner.step_time import step_s

# Best effort alone never makes a step longer than this many times an empty one.
BEST_EFFORT_STEP = 1.5

# Decodes that are ahead by so many steps of all of them need not hurry while no prompt waits.
FAR_AHEAD_PASSES = 4.0


@kernel
def are_far_ahead(
    now_s: float, requests: Records, ids: Ints, worker: Record, decodes: Ints, decode_due: Floats
) -> bool:
    """Whether half of the promised decodes or more could do without the next few whole passes."""
    num = 0
    context = 0
    for j in range(len(decodes)):
        if not np.isinf(decode_due[j]):
            num += 1
            context += requests[ids[decodes[j]]].num_computed_tokens
    if num == 0:
        return False
    whole_s = step_s(worker, num, num, context, 0.0, 0, 0, 0)
    return bool(decode_due[num // 2] > now_s + FAR_AHEAD_PASSES * whole_s)


@kernel
def bound_step(
    now_s: float,
    worker: Record,
    decode_due: Floats,
    num_prompts: int,
    is_capped: bool,
    step: Records,
) -> float:
    """Set the step's bounds; returns the cap that holds for the next step too."""
    s = step[0]
    alone_s = step_s(worker, 1, 1, 0, 0.0, 0, 0, 0)
    s.best_effort_s = BEST_EFFORT_STEP * alone_s
    cap_s = worker.step_cap_s if is_capped else np.inf
    if s.num_timely_prompts == 0 and num_prompts > 0:
        cap_s = s.best_effort_s
    s.limit_s = cap_s
    s.slack_s = np.inf
    # The earliest token that can still be on time bounds the step.
    for due_at_s in decode_due:
        slack_s = (due_at_s - now_s) / worker.step_guard_ratio
        if slack_s >= alone_s:
            s.slack_s = slack_s
            s.limit_s = min(cap_s, slack_s)
            break
    return cap_s


@kernel
def pages_wait_s(
    now_s: float, requests: Records, ids: Ints, n: int, worker: Record, slack_s: float
) -> float:
    """How long a step may last for promised pages on their way to be decoded in time after it.

    Where that is less than the shortest step takes, the worker waits for them. Infinite if a
    decode that is here is due before them: `slack_s` is the time until the earliest is.
    """
    wait_s = np.inf
    due_s = np.inf
    for k in range(n):
        r = requests[ids[k]]
        if r.phase != ARRIVING or r.guaranteed == 0 or r.arrives_at_s <= now_s:
            continue
        own_s = worker.step_guard_ratio * step_s(worker, 1, 1, r.num_prompt_tokens, 0.0, 0, 0, 0)
        start_s = max(r.arrives_at_s, r.next_due_at_s - own_s) - now_s
        if start_s < wait_s:
            wait_s = start_s
            due_s = (r.next_due_at_s - now_s) / worker.step_guard_ratio
    return wait_s / worker.step_guard_ratio if due_s <= slack_s else np.inf
