"""A real engine's steps: formed, and counted as soon as the engine has taken them in.

An engine may be told of step n + 1 before step n has ended, so the records are moved on when a
step is scheduled, as if it had ended already: each of its decodes yields one token. What drafts
yield beyond that is known only at the step's end.
"""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import (
    ARRIVING,
    DECODE,
    LEAVING,
    PREFILL,
    REQUEST,
    Ints,
    Record,
    Records,
)
from headway.core.batching import blocks_for, form_slack
from headway.core.kernel import kernel
from headway.core.numba_start import load_numba
from headway.core.planner.acceptance import acceptance_of, new_acceptances, observe_decode
from headway.core.planner.grants import shape_of
from headway.core.planner.step_time import chunk_within, step_s


def warm_up(worker: Records) -> None:
    """Load the functions below, or compile them, before a step waits for it.

    Args:
        worker: WORKER record, shape (1,); not changed.
    """
    load_numba()
    nobody = np.zeros(1, REQUEST)
    nobody["phase"] = ARRIVING
    row, number = np.zeros(1, np.int64), np.zeros(1, np.int64)
    form_step(0.0, nobody, row, 1, worker[0], number)
    predict_step(nobody, row, 1, worker[0], number)
    count_step(nobody, row, number, 1, worker[0], 0, 1, 0.0)
    count_accepted(nobody, row, number, number, 1)
    seen = new_acceptances(0.5, 1)
    observe_decode(seen[0], 0, 0)
    acceptance_of(seen[0])
    tokens_within_cap(worker[0])


@kernel
def form_step(
    now_s: float, requests: Records, ids: Ints, n: int, worker: Record, grants: Ints
) -> float:
    """As `form_slack`; returns how long the step will take, 0 if it is empty."""
    form_slack(now_s, requests, ids, n, worker, grants)
    return predict_step(requests, ids, n, worker, grants)


@kernel
def predict_step(requests: Records, ids: Ints, n: int, worker: Record, grants: Ints) -> float:
    """How long a step with these grants takes, 0 if it is empty."""
    return float(step_s(worker, *shape_of(requests, ids, n, grants)))


@kernel
def tokens_within_cap(worker: Record) -> int:
    """Tokens of one new prompt that keep a step within the cap: a budget for unformed steps.

    At least one, and at most `max_step_tokens`, also where no cap is set.
    """
    return max(1, chunk_within(worker, worker.step_cap_s, 0, 0, worker.max_step_tokens))


@kernel
def count_step(
    requests: Records,
    rows: Ints,
    num_computed: Ints,
    n: int,
    worker: Record,
    num_lookahead: int,
    max_model_len: int,
    ends_at_s: float,
) -> None:
    """Move the records of a step's requests on.

    Args:
        requests: REQUEST records.
        rows: of those in the step.
        num_computed: tokens each of them has KV for at the step's end, drafts included.
        n: how many.
        worker: WORKER record.
        num_lookahead: tokens the engine allocates blocks for beyond these.
        max_model_len: it never allocates for more tokens than this.
        ends_at_s: when the step is predicted to end, and its tokens to leave.
    """
    for j in range(n):
        r = requests[rows[j]]
        r.num_computed_tokens = num_computed[j]
        slots = min(num_computed[j] + num_lookahead, max_model_len)
        r.num_blocks = max(r.num_blocks, blocks_for(slots, worker.block_size))
        if r.phase == PREFILL:
            if num_computed[j] < r.num_prompt_tokens:
                continue
            r.phase = DECODE
        if r.num_output_tokens == 0:
            r.lead_s = max(0.0, r.next_due_at_s - ends_at_s)
        _token(r)


@kernel
def count_accepted(
    requests: Records, rows: Ints, num_computed: Ints, num_accepted: Ints, n: int
) -> None:
    """Take in how many drafted tokens were right; `num_computed` no longer counts the others."""
    for j in range(n):
        r = requests[rows[j]]
        r.num_computed_tokens = num_computed[j]
        for _ in range(num_accepted[j]):
            _token(r)


@kernel
def _token(r: Record) -> None:
    r.num_output_tokens += 1
    r.num_stage_tokens_left -= 1
    if r.num_stage_tokens_left == 0:
        r.tpot_s = r.later_tpot_s
    r.next_due_at_s += r.tpot_s
    if r.num_output_tokens >= r.num_output_bound:
        # Its last step is under way.
        r.phase = LEAVING
