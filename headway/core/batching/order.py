"""The order of decodes, and that of prompts, in which a step is filled."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import Record
from headway.core.kernel import kernel

# Orders what is due at the same instant by arrival; far below any time that matters.
TIE = 1e-12

# Keys of prompts that are not promised; due times, counted from now, are far smaller.
_TIMELY_KEY = 1e6
_LATE_KEY = 2e6
BEST_EFFORT_KEY = 3e6


@kernel
def decode_key(r: Record, now_s: float) -> float:
    """Order of decodes: promised ones by deadline, then the others; ties by arrival."""
    if r.guaranteed == 1:
        return float(r.next_due_at_s - now_s + TIE * r.order)
    return float(BEST_EFFORT_KEY + 1e-6 * r.order)


@kernel
def prompt_key(r: Record, worker: Record, now_s: float) -> float:
    """Order of prompts, smallest first.

    Promised ones by deadline; those that only asked for one, by length; then promised ones that
    are late, and last other best effort, both by arrival.
    """
    num_left = r.num_prompt_tokens - r.num_computed_tokens
    latest_at_s = r.prefill_due_at_s - worker.token_s * num_left
    if r.guaranteed == 1 and r.prefill_due_at_s >= now_s:
        key = r.prefill_due_at_s - now_s + TIE * r.order
    elif r.guaranteed == 1:
        key = _LATE_KEY + 1e-6 * r.order
    elif latest_at_s >= now_s and not np.isinf(latest_at_s):
        key = _TIMELY_KEY + num_left
    else:
        key = BEST_EFFORT_KEY + 1e-6 * r.order
    return float(key)
