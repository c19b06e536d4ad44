"""Runs a worker's future: the batch former itself, on the perf model's time.

What admission promises is what the former will do, so admission asks the former. Its answer is
exact as long as steps take the time the perf model says and nothing else is admitted; when
something is, that admission has asked again.

Pages that are on their way hold their blocks from the start, as the decode engine sets them aside
before the prompt is sent. Best-effort pages are not in the plan until they join a batch, which
takes a look-ahead of its own: when they come depends on what else is promised meanwhile.
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
    Floats,
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

# Sums of times that differ by no more are equal.
_ROUNDING_S = 1e-6

# Answers of `look_ahead`, else the row that would be late.
ALL_ON_TIME = -1
TOO_LONG = -2
NO_ROOM = -3


@kernel
def look_ahead(
    now_s: float, requests: Records, n: int, workers: Records, grants: Ints, row: int
) -> tuple[int, float, float]:
    """Run steps until all promised prompts here are computed, or one will surely be late.

    Args:
        now_s: the present.
        requests: REQUEST records of this worker; changed to what they will be.
        n: how many.
        workers: WORKER records, shape (1,); changed likewise. Steps are taken to last
            `guard_ratio` longer than predicted.
        grants: of the step that runs now; overwritten.
        row: the row whose prompt's end is asked for; -1 for none.

    Returns:
        ALL_ON_TIME, TOO_LONG, NO_ROOM (of memory for the pages of `row`) or the first late row;
        the instant it ran to; and the instant at which the prompt of `row` is computed
        (infinite if it is not).
    """
    starts_at_s = np.empty(0)
    late, at_s, computed_at_s, _ = _run(
        now_s, requests, n, workers, grants, row, -np.inf, starts_at_s
    )
    return late, at_s, computed_at_s


@kernel
def step_starts(
    now_s: float, requests: Records, n: int, workers: Records, grants: Ints, until_s: float
) -> Floats:
    """When steps can start on this worker until `until_s`, ascending; at most `MAX_STEPS`.

    Args:
        now_s: as for `look_ahead`, and so the next four.
        requests: see there.
        n: see there.
        workers: see there.
        grants: see there.
        until_s: the last start is the first that is not before this.
    """
    starts_at_s = np.empty(MAX_STEPS)
    _, _, _, num_starts = _run(now_s, requests, n, workers, grants, -1, until_s, starts_at_s)
    return starts_at_s[:num_starts]


@kernel
def _run(  # noqa: C901, PLR0911, PLR0912 - compiled: one loop, and every branch of it is a phase
    now_s: float,
    requests: Records,
    n: int,
    workers: Records,
    grants: Ints,
    row: int,
    until_s: float,
    starts_at_s: Floats,
) -> tuple[int, float, float, int]:
    """As `look_ahead`, or to `until_s` if that is finite; notes at which instants steps start."""
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
    num_starts = 0
    at_s = now_s
    if not _set_blocks_aside(requests, n, worker, row):
        return NO_ROOM, at_s, computed_at_s, num_starts
    if worker.busy_until_s > now_s:
        at_s = worker.busy_until_s
    late = end_step(at_s, requests, n, worker, grants, ignored)
    if late >= 0:
        return late, at_s, computed_at_s, num_starts
    for _ in range(MAX_STEPS):
        if num_starts < len(starts_at_s):
            starts_at_s[num_starts] = at_s
            num_starts += 1
        next_arrival_s = np.inf
        is_open = False
        for k in range(n):
            r = requests[k]
            if r.phase == ARRIVING:
                if r.guaranteed == 0 and k != row:
                    continue
                if r.arrives_at_s <= at_s and r.num_blocks > 0:
                    r.phase = DECODE
                    r.num_computed_tokens = r.num_prompt_tokens - 1
                elif r.arrives_at_s > at_s:
                    next_arrival_s = min(next_arrival_s, r.arrives_at_s)
                is_open = is_open or not ignored[k]
            elif r.phase == PREFILL or (r.phase == DECODE and r.num_output_tokens == 0):
                is_open = is_open or not ignored[k]
            elif k == row and r.phase != PREFILL and np.isinf(computed_at_s):
                computed_at_s = at_s
        if (not is_open) if np.isinf(until_s) else at_s >= until_s:
            return ALL_ON_TIME, at_s, computed_at_s, num_starts
        if np.isinf(until_s):
            late = _hopeless(at_s, requests, n, worker, ignored)
            if late >= 0:
                return late, at_s, computed_at_s, num_starts
        form_slack(at_s, requests, ids, n, worker, grants)
        duration_s = worker.guard_ratio * begin_step(requests, ids, n, worker, grants)
        if duration_s == 0.0:
            if np.isinf(next_arrival_s):
                return TOO_LONG, at_s, computed_at_s, num_starts
            at_s = next_arrival_s
            continue
        at_s += duration_s
        late = end_step(at_s, requests, n, worker, grants, ignored)
        if late >= 0:
            return late, at_s, computed_at_s, num_starts
    return TOO_LONG, at_s, computed_at_s, num_starts


@kernel
def _set_blocks_aside(requests: Records, n: int, worker: Record, row: int) -> bool:
    """Give pages on their way the blocks they will fill; False if `row` finds too few."""
    for k in range(n):
        r = requests[k]
        if r.phase == ARRIVING and r.num_blocks == 0:
            needed = blocks_for(r.num_prompt_tokens, worker.block_size)
            if needed <= worker.num_free_blocks:
                worker.num_free_blocks -= needed
                r.num_blocks = needed
            elif k == row:
                return False
    return True


@kernel
def _hopeless(at_s: float, requests: Records, n: int, worker: Record, ignored: Flags) -> int:
    """The first row whose first token will be late even if it is all that is computed, or -1.

    It saves the steps until it is: what is late comes after all else.
    """
    token_s = worker.guard_ratio * worker.time_ratio * worker.token_s
    for k in range(n):
        r = requests[k]
        if ignored[k] or r.phase != PREFILL:
            continue
        num_left = r.num_prompt_tokens - r.num_computed_tokens
        due_at_s = r.prefill_due_at_s if r.leaves_after_prefill == 1 else r.next_due_at_s
        if at_s + token_s * num_left > due_at_s + _ROUNDING_S:
            return k
    return -1


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
            r.num_computed_tokens = r.num_unsent_tokens = 0
            r.prefill_due_at_s = r.next_due_at_s
            r.phase = PREFILL
    take_blocks(requests, ids, n, worker, grants)
    return float(step_s(worker, *shape_of(requests, ids, n, grants)))


@kernel
def end_step(  # noqa: C901, PLR0912 - compiled
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
            if r.leaves_after_prefill == 1:
                # What a step computed goes out after it, one prompt after the other.
                num_new = grant + r.num_unsent_tokens
                r.num_unsent_tokens = 0
                worker.link_free_at_s = (
                    max(worker.link_free_at_s, at_s) + num_new * worker.send_token_s
                )
            if r.num_computed_tokens < r.num_prompt_tokens:
                continue
            if r.leaves_after_prefill == 1:
                if worker.link_free_at_s > r.prefill_due_at_s and not ignored[k]:
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
