"""The order in which a step is filled: by deadlines.

The length of a step is bounded by the worker's `step_cap_s`, and always by the earliest token that
is due in it. It is filled with:
1. decodes that cannot wait for the step after this one;
2. decodes that would fall behind the pace counted from their first token, in part of the step;
3. prompts with a promise, the earliest deadline first, in the largest chunks that fit;
4. best-effort prompts that can still meet the bounds they asked for, the shortest first;
5. decodes that are ahead of their demand line, the least ahead first;
6. other best effort, in steps so short that a promised prompt which arrives meanwhile waits
   little.
The cap holds while prompts wait, and also while none does if decodes are far ahead: a prompt
that comes is late if the running step is long.
Source of slack and demand lines: SLOs-Serve (arXiv 2504.08784); the two-step look-ahead, the
reserve of one whole pass and the cap are ours.
"""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import DECODE, PREFILL, Ints, Record, Records
from headway.core.batching.bounds import are_far_ahead, bound_step, pages_wait_s
from headway.core.batching.decodes import (
    grant_other_decodes,
    grant_paced_decodes,
    grant_urgent_decodes,
)
from headway.core.batching.order import BEST_EFFORT_KEY, decode_key, prompt_key
from headway.core.batching.preemption import force_one
from headway.core.batching.prompts import grant_prompts
from headway.core.batching.step_state import STEP
from headway.core.kernel import kernel
from headway.core.planner.step_time import step_s


@kernel
def form_slack(
    now_s: float, requests: Records, ids: Ints, n: int, worker: Record, grants: Ints
) -> None:
    """Fill `grants[:n]` for the requests `ids[:n]` of this worker.

    Args:
        now_s: the instant the step starts.
        requests: REQUEST records.
        ids: rows of `requests` on this worker.
        n: how many.
        worker: WORKER record.
        grants: int64, at least n long. 0: not in this step; PREEMPT: give up its KV blocks;
            in PREFILL, tokens of the prompt; in DECODE, 1 + drafted tokens.
    """
    decodes = np.empty(n, np.int64)
    decode_due = np.empty(n, np.float64)
    decode_keys = np.empty(n, np.float64)
    prompts = np.empty(n, np.int64)
    prompt_keys = np.empty(n, np.float64)
    num_decodes = 0
    num_prompts = 0
    step = np.zeros(1, STEP)
    step[0].num_free = worker.num_free_blocks
    for k in range(n):
        grants[k] = 0
        r = requests[ids[k]]
        step[0].num_holding += int(r.num_blocks > 0)
        if r.phase == DECODE:
            decodes[num_decodes] = k
            decode_due[num_decodes] = r.next_due_at_s if r.guaranteed == 1 else np.inf
            decode_keys[num_decodes] = decode_key(r, now_s)
            num_decodes += 1
        elif r.phase == PREFILL:
            prompts[num_prompts] = k
            prompt_keys[num_prompts] = prompt_key(r, worker, now_s)
            step[0].num_timely_prompts += int(prompt_keys[num_prompts] < BEST_EFFORT_KEY)
            num_prompts += 1
    if num_decodes + num_prompts == 0:
        return
    order = np.argsort(decode_keys[:num_decodes])
    decodes = decodes[:num_decodes][order]
    decode_due = decode_due[:num_decodes][order]
    prompts = prompts[:num_prompts][np.argsort(prompt_keys[:num_prompts])]
    is_capped = num_prompts > 0 or are_far_ahead(now_s, requests, ids, worker, decodes, decode_due)
    cap_s = bound_step(now_s, worker, decode_due, num_prompts, is_capped, step)
    if worker.prefills == 0 and num_prompts == 0:
        until_s = pages_wait_s(now_s, requests, ids, n, worker, step[0].slack_s)
        if until_s < step_s(worker, 1, 1, 0, 0.0, 0, 0, 0):
            return
        step[0].limit_s = min(step[0].limit_s, until_s)
    first_waiting = grant_urgent_decodes(
        now_s, cap_s, requests, ids, n, worker, grants, decodes, decode_due, step
    )
    grant_paced_decodes(now_s, requests, ids, worker, grants, decodes[first_waiting:], step)
    grant_prompts(now_s, requests, ids, n, worker, grants, prompts, step)
    grant_other_decodes(requests, ids, worker, grants, decodes[first_waiting:], step)
    if step[0].num_tokens == 0:
        force_one(requests, ids, n, worker, grants)
