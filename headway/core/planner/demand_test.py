"""A cheap test that most requests without a place fail: the work due by a deadline is too much.

The demand-bound test of earliest-deadline-first scheduling (Baruah et al., "Preemptively
scheduling hard-real-time sporadic tasks on one processor", 1990), with the roofline of
core.perf_model as the time that work takes at least, however it is cut into steps.
"""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import DECODE, PREFILL, Ints, Record, Records
from headway.core.kernel import kernel

# Lateness below this, in seconds, may be rounding.
_MARGIN_S = 1e-6
# The time that is needed grows while more tokens are due in it; it is bounded from below so often.
_NUM_ROUNDS = 6


@kernel
def surely_late(
    now_s: float, requests: Records, n: int, workers: Records, grants: Ints, row: int
) -> bool:
    """Whether no order of steps computes all promised prompts in time, tokens due before included.

    If so, `look_ahead` finds a row that would be late.

    Args:
        now_s: the present.
        requests: REQUEST records of this worker.
        n: how many.
        workers: WORKER records, shape (1,).
        grants: of the step that runs now.
        row: the row whose prompt must be in time, promised or not.
    """
    asked = requests[row : row + 1]
    own_due_at_s = _due_at_s(asked[0])
    latest_due_at_s = own_due_at_s
    for k in range(n):
        r = requests[k]
        if r.phase == PREFILL and r.guaranteed == 1 and r.next_due_at_s >= now_s:
            latest_due_at_s = max(latest_due_at_s, _due_at_s(r))
    if np.isinf(own_due_at_s):
        return False
    if _is_late(now_s, own_due_at_s, requests, n, workers, grants, row):
        return True
    return latest_due_at_s > own_due_at_s and bool(
        _is_late(now_s, latest_due_at_s, requests, n, workers, grants, row)
    )


@kernel
def _due_at_s(r: Record) -> float:
    """When the prompt must be computed."""
    return float(r.prefill_due_at_s if r.leaves_after_prefill == 1 else r.next_due_at_s)


@kernel
def _is_late(  # noqa: C901 - compiled
    now_s: float,
    due_at_s: float,
    requests: Records,
    n: int,
    workers: Records,
    grants: Ints,
    row: int,
) -> bool:
    """Whether the prompts that are due by then take longer than until then."""
    worker = workers[0]
    scale = worker.time_ratio * worker.guard_ratio
    starts_at_s = max(now_s, worker.busy_until_s)
    num_prompt_tokens = 0
    prompt_s = 0.0
    for k in range(n):
        r = requests[k]
        if r.phase != PREFILL or _due_at_s(r) > due_at_s:
            continue
        if k != row and (r.guaranteed == 0 or r.next_due_at_s < now_s):
            continue
        computed = r.num_computed_tokens + max(grants[k], 0)
        num_left = r.num_prompt_tokens - computed
        if num_left > 0:
            num_prompt_tokens += num_left
            attention = num_left * (computed + 0.5 * num_left)
            prompt_s += worker.prefill_attention_s * attention + worker.chunk_s
    if num_prompt_tokens == 0:
        return False
    ends_at_s = starts_at_s
    for _ in range(_NUM_ROUNDS):
        num_tokens = num_prompt_tokens
        num_steps = num_tokens // worker.max_step_tokens
        decode_s = 0.0
        for k in range(n):
            r = requests[k]
            if r.phase != DECODE or r.guaranteed == 0 or r.next_due_at_s < now_s:
                continue
            # Tokens due before `ends_at_s`, that of the running step left out.
            gap_s = max(r.tpot_s, r.later_tpot_s)
            num_granted = int(grants[k] > 0)
            late_s = ends_at_s - r.next_due_at_s - num_granted * gap_s
            if late_s <= 0.0:
                continue
            num_due = min(
                int(late_s / gap_s) + 1,
                r.num_output_bound - r.num_output_tokens - num_granted,
            )
            num_tokens += num_due
            num_steps = max(num_steps, num_due)
            decode_s += num_due * (
                worker.sequence_s + worker.context_token_s * r.num_computed_tokens
            )
        step_s = max(
            num_steps * worker.floor_s, num_tokens * worker.token_s + num_steps * worker.fixed_s
        )
        before_s = ends_at_s
        ends_at_s = starts_at_s + scale * (step_s + prompt_s + decode_s)
        if ends_at_s > due_at_s + _MARGIN_S:
            return True
        if ends_at_s <= before_s:
            return False
    return False
