"""Whether the decodes of a worker can keep their pace to the end, in closed form."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import DECODE, Record, Records
from headway.core.batching import blocks_for
from headway.core.kernel import kernel

# Instants that are looked at, in seconds from now: sets change fast at first.
_FIRST_S = 0.25
_RATIO = 1.3
_NUM_INSTANTS = 50

SUSTAINED, DECODE_RATE, KV_BLOCKS = range(3)


@kernel
def sustained(requests: Records, n: int, worker: Record) -> int:
    """Check the promised decodes at growing distances, each proceeding at its promised pace.

    At any instant, with s the steps per second that the tightest pace asks for, B decodes and
    their contexts, the roofline of core.perf_model gives the share of time they take:
    s * fixed + sum of (token + sequence + context * c) / tpot on the compute side, and the same
    with the floor and without the token term on the memory side. Both must stay below 1.

    Args:
        requests: REQUEST records of one worker.
        n: how many.
        worker: WORKER record.

    Returns:
        SUSTAINED, or what breaks first: DECODE_RATE or KV_BLOCKS.
    """
    # Steps near the limit follow each other without slack, so each has to hold for itself.
    scale = worker.time_ratio * worker.step_guard_ratio
    after_s = 0.0
    for instant in range(_NUM_INSTANTS):
        compute = 0.0
        memory = 0.0
        tightest_s = np.inf
        num_blocks = 0
        next_s = _FIRST_S if instant == 0 else _RATIO * after_s
        for k in range(n):
            r = requests[k]
            if r.phase != DECODE or r.guaranteed == 0:
                continue
            tpot_s = r.tpot_s
            num_new = after_s / tpot_s
            if r.num_stage_tokens_left > 0 and num_new > r.num_stage_tokens_left:
                in_stage_s = r.num_stage_tokens_left * tpot_s
                tpot_s = r.later_tpot_s
                num_new = r.num_stage_tokens_left + (after_s - in_stage_s) / tpot_s
            if num_new >= r.num_output_bound - r.num_output_tokens:
                continue
            context = r.num_computed_tokens + num_new
            # Memory is fullest just before somebody ends: what each holds at the next instant.
            left = r.num_output_bound - r.num_output_tokens - num_new
            grown = context + min(left, (next_s - after_s) / tpot_s)
            num_blocks += blocks_for(int(grown) + 1, worker.block_size)
            per_token_s = worker.sequence_s + worker.context_token_s * context
            memory += per_token_s / tpot_s
            compute += (per_token_s + worker.token_s) / tpot_s
            tightest_s = min(tightest_s, tpot_s)
        if np.isinf(tightest_s):
            return SUSTAINED
        if scale * (compute + worker.fixed_s / tightest_s) > 1.0:
            return DECODE_RATE
        if scale * (memory + worker.floor_s / tightest_s) > 1.0:
            return DECODE_RATE
        if num_blocks > worker.num_blocks:
            return KV_BLOCKS
        after_s = next_s
    return SUSTAINED
