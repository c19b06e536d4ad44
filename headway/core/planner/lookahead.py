"""Runs a worker's future: the batch former itself, on the perf model's time.

What admission promises is what the former will do, so admission asks the former. Its answer is
exact as long as steps take the time the perf model says and nothing else is admitted; when
something is, that admission has asked again.
"""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import (
    ARRIVING,
    DECODE,
    GONE,
    LEAVING,
    PREEMPT,
    PREFILL,
    Flags,
    Ints,
    Record,
    Records,
)
from headway.core.batching import blocks_for, form_slack
from headway.core.kernel import kernel
from headway.core.planner.grants import shape_of, take_blocks
from headway.core.planner.step_time import step_s

# Future checked step by step at most; prompts that wait longer are not promised anything.
MAX_STEPS = 2000

# Answers of `look_ahead`, else the row that would be late.
ALL_ON_TIME = -1
TOO_LONG = -2


@kernel
def look_ahead(  # noqa: C901, PLR0912 - compiled: one loop, and every branch of it is a phase
    now_s: float, requests: Records, n: int, workers: Records, grants: Ints, row: int
) -> tuple[int, float, float]:
    """Run steps until all promised prompts here are computed, or the first promise breaks.

    Args:
        now_s: the present.
        requests: REQUEST records of this worker; changed to what they will be.
        n: how many.
        workers: WORKER records, shape (1,); changed likewise. Steps are taken to last
            `guard_ratio` longer than predicted.
        grants: of the step that runs now; overwritten.
        row: the row whose prompt's end is asked for; -1 for none.

    Returns:
        ALL_ON_TIME, TOO_LONG or the first late row; the instant it ended at; and the instant at
        which the prompt of `row` is computed (infinite if it is not).
    """
    # An array as argument: numba frees one whose last use is the reading of a record from it,
    # and the record with it.
    worker = workers[0]
    ids = np.arange(n)
    ignored = np.zeros(n, np.bool_)
    for k in range(n):
        # What is late already cannot be saved by refusing others.
        ignored[k] = requests[k].guaranteed == 0 or requests[k].next_due_at_s < now_s
        if k == row and not np.isinf(requests[k].next_due_at_s):
            ignored[k] = False
    computed_at_s = np.inf
    at_s = now_s
    if worker.busy_until_s > now_s:
        at_s = worker.busy_until_s
    late = _end_step(at_s, requests, n, worker, grants, ignored)
    if late >= 0:
        return late, at_s, computed_at_s
    for _ in range(MAX_STEPS):
        next_arrival_s = np.inf
        is_open = False
        for k in range(n):
            r = requests[k]
            if r.phase == ARRIVING:
                if r.arrives_at_s <= at_s:
                    r.phase = DECODE
                    r.num_computed_tokens = r.num_prompt_tokens - 1
                    needed = blocks_for(r.num_prompt_tokens, worker.block_size) - r.num_blocks
                    if needed > 0:
                        worker.num_free_blocks -= needed
                        r.num_blocks += needed
                    is_open = is_open or not ignored[k]
                else:
                    next_arrival_s = min(next_arrival_s, r.arrives_at_s)
                    is_open = is_open or not ignored[k]
            elif r.phase == PREFILL or (r.phase == DECODE and r.num_output_tokens == 0):
                is_open = is_open or not ignored[k]
            elif k == row and r.phase != PREFILL and np.isinf(computed_at_s):
                computed_at_s = at_s
        if not is_open:
            return ALL_ON_TIME, at_s, computed_at_s
        form_slack(at_s, requests, ids, n, worker, grants)
        duration_s = worker.guard_ratio * begin_step(requests, ids, n, worker, grants)
        if duration_s == 0.0:
            if np.isinf(next_arrival_s):
                return TOO_LONG, at_s, computed_at_s
            at_s = next_arrival_s
            continue
        at_s += duration_s
        late = _end_step(at_s, requests, n, worker, grants, ignored)
        if late >= 0:
            return late, at_s, computed_at_s
    return TOO_LONG, at_s, computed_at_s


@kernel
def begin_step(requests: Records, ids: Ints, n: int, worker: Record, grants: Ints) -> float:
    """Take the blocks of a step; its seconds, 0 if it is empty."""
    for k in range(n):
        if grants[k] == PREEMPT:
            r = requests[k]
            worker.num_free_blocks += r.num_blocks
            r.num_blocks = 0
            if r.phase == DECODE:
                # The prompt, and the output so far.
                r.num_prompt_tokens = r.num_computed_tokens + 1
            r.num_computed_tokens = 0
            r.prefill_due_at_s = r.next_due_at_s
            r.phase = PREFILL
    take_blocks(requests, ids, n, worker, grants)
    return float(step_s(worker, *shape_of(requests, ids, n, grants)))


@kernel
def _end_step(  # noqa: C901 - compiled
    at_s: float, requests: Records, n: int, worker: Record, grants: Ints, ignored: Flags
) -> int:
    """Hand out what a step produced at `at_s`; the first row that is late, or -1."""
    for k in range(n):
        grant = grants[k]
        if grant <= 0:
            continue
        grants[k] = 0
        r = requests[k]
        if r.phase == PREFILL:
            r.num_computed_tokens += grant
            if r.num_computed_tokens < r.num_prompt_tokens:
                continue
            if r.leaves_after_prefill == 1:
                if at_s > r.prefill_due_at_s and not ignored[k]:
                    return k
                worker.num_free_blocks += r.num_blocks
                r.num_blocks = 0
                r.phase = LEAVING
                continue
            r.phase = DECODE
        elif r.phase == DECODE:
            r.num_computed_tokens += 1
        else:
            continue
        if at_s > r.next_due_at_s and not ignored[k]:
            return k
        if r.num_output_tokens == 0:
            r.lead_s = max(0.0, r.next_due_at_s - at_s)
        r.num_output_tokens += 1
        r.num_stage_tokens_left -= 1
        if r.num_stage_tokens_left == 0:
            r.tpot_s = r.later_tpot_s
        r.next_due_at_s += r.tpot_s
        if r.num_output_tokens >= r.num_output_bound:
            worker.num_free_blocks += r.num_blocks
            r.num_blocks = 0
            r.phase = GONE
    return -1
