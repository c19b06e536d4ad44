"""What a step that is being filled holds so far, and what one more decode adds to it."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import Ints, Record, Records
from headway.core.batching.blocks import blocks_for
from headway.core.kernel import kernel
from headway.core.planner.step_time import step_s

# One record.
STEP = np.dtype(
    [
        ("num_tokens", np.int64),
        ("num_decodes", np.int64),
        ("context", np.int64),
        ("attention", np.float64),
        ("num_chunks", np.int64),
        ("num_drafted", np.int64),
        ("num_free", np.int64),
        ("num_holding", np.int64),
        # Drafted tokens per decode in this step.
        ("draft", np.int64),
        # The step's bound.
        ("limit_s", np.float64),
        # Until the earliest decode that can be on time is due.
        ("slack_s", np.float64),
        # The bound where only best effort is left.
        ("best_effort_s", np.float64),
        # How many prompts wait that can be on time.
        ("num_timely_prompts", np.int64),
    ]
)


@kernel
def with_one_more_s(r: Record, worker: Record, step: Records) -> float:
    """What the step takes with one more decode, drafts included."""
    s = step[0]
    return float(
        step_s(
            worker,
            s.num_tokens + 1 + s.draft,
            s.num_decodes + 1,
            s.context + r.num_computed_tokens,
            s.attention,
            s.num_chunks,
            s.draft,
            s.num_drafted + s.draft,
        )
    )


@kernel
def grant_decode(r: Record, k: int, worker: Record, grants: Ints, step: Records) -> None:
    """Grant one token, and drafts as far as blocks and tokens go; there is room for one."""
    s = step[0]
    grant = 1 + min(s.draft, r.num_output_bound - r.num_output_tokens - 1)
    grant = max(1, min(grant, worker.max_step_tokens - s.num_tokens))
    needed = blocks_for(r.num_computed_tokens + grant, worker.block_size) - r.num_blocks
    if needed > s.num_free:
        grant = 1
        needed = blocks_for(r.num_computed_tokens + 1, worker.block_size) - r.num_blocks
    if s.num_tokens >= worker.max_step_tokens:
        return
    s.num_free -= max(needed, 0)
    grants[k] = grant
    s.num_tokens += grant
    s.num_drafted += grant - 1
    s.num_decodes += 1
    s.context += r.num_computed_tokens
