"""How many tokens to draft per decode: as many as pay, often none."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import Ints, Record, Records
from headway.core.kernel import kernel


@kernel
def expected_tokens(acceptance: float, num_drafted: int) -> float:
    """Tokens that one verification of a draft yields on average, its own included.

    (1 - a^(k+1)) / (1 - a) for k drafted tokens, each accepted with probability a if all before
    it were (Leviathan et al., arXiv 2211.17192).
    """
    if acceptance >= 1.0:
        return 1.0 + num_drafted
    return (1.0 - acceptance ** (num_drafted + 1)) / (1.0 - acceptance)


@kernel
def draft_length(
    requests: Records, ids: Ints, decodes: Ints, worker: Record, prompts_wait: bool
) -> int:
    """The length, the same for all decodes of the step, at which a token costs least.

    While prompts wait, a decode costs what it takes away from them; otherwise it costs its
    share of the step, so that drafts are nearly free as long as memory, not compute, is what
    a step waits for.

    Args:
        requests: REQUEST records.
        ids: rows of `requests` on this worker.
        decodes: positions in `ids` of the promised decodes.
        worker: WORKER record.
        prompts_wait: whether prefill chunks compete for the step.
    """
    if worker.max_draft_tokens == 0 or len(decodes) == 0:
        return 0
    num = len(decodes)
    context = 0.0
    acceptance = 0.0
    for k in decodes:
        r = requests[ids[k]]
        context += r.num_computed_tokens
        acceptance += r.acceptance
    acceptance /= num
    fixed_part_s = worker.sequence_s * num + worker.context_token_s * context
    best = 0
    best_cost_s = np.inf
    for length in range(worker.max_draft_tokens + 1):
        new_s = worker.token_s * num * (1 + length)
        if not prompts_wait:
            new_s = max(worker.floor_s, new_s + worker.fixed_s)
        drafting_s = worker.draft_floor_s * length + worker.draft_sequence_s * num * length
        cost_s = (new_s + fixed_part_s + drafting_s) / (num * expected_tokens(acceptance, length))
        if cost_s < best_cost_s:
            best = length
            best_cost_s = cost_s
    return best
