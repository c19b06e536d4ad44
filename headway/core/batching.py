"""One step's token grants, from the deadlines: the batch former of Headway.

The order of filling a step, whose length is bounded by the worker's `step_cap_s`, and always by
the earliest token that is due in it:
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

from headway.core.batch_state import (
    ARRIVING,
    DECODE,
    PREEMPT,
    PREFILL,
    Floats,
    Ints,
    Record,
    Records,
)
from headway.core.kernel import kernel
from headway.core.planner.speculation import draft_length
from headway.core.planner.step_time import chunk_within, step_s

# Best effort alone never makes a step longer than this many times an empty one.
BEST_EFFORT_STEP = 1.5

# Below this share of free blocks every decode is urgent: the sooner they end, the sooner their
# blocks come back, and admission has made sure that all of them find room until then.
SCARCE_BLOCKS = 0.2

# Decodes that are ahead by so many steps of all of them need not hurry while no prompt waits.
FAR_AHEAD_PASSES = 4.0

# Of a step's bound beyond an empty step, what decodes may take before prompts so as not to fall
# behind the line that starts at their first token.
PACED_SHARE = 0.35

# Orders what is due at the same instant by arrival; far below any time that matters.
_TIE = 1e-12

# Keys of prompts that are not promised; due times, counted from now, are far smaller.
_TIMELY_KEY = 1e6
_LATE_KEY = 2e6
_BEST_EFFORT_KEY = 3e6

# What a step holds so far.
_STEP = np.dtype(
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
        # The step's bound, that of best effort, and how many prompts wait that can be on time.
        ("limit_s", np.float64),
        # Until the earliest decode that can be on time is due.
        ("slack_s", np.float64),
        ("best_effort_s", np.float64),
        ("num_timely_prompts", np.int64),
    ]
)


@kernel
def blocks_for(num_tokens: int, block_size: int) -> int:
    """KV blocks that hold so many tokens."""
    return (num_tokens + block_size - 1) // block_size


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
    decode_key = np.empty(n, np.float64)
    prompts = np.empty(n, np.int64)
    prompt_key = np.empty(n, np.float64)
    num_decodes = 0
    num_prompts = 0
    step = np.zeros(1, _STEP)
    step[0].num_free = worker.num_free_blocks
    for k in range(n):
        grants[k] = 0
        r = requests[ids[k]]
        step[0].num_holding += int(r.num_blocks > 0)
        if r.phase == DECODE:
            decodes[num_decodes] = k
            decode_due[num_decodes] = r.next_due_at_s if r.guaranteed == 1 else np.inf
            decode_key[num_decodes] = _decode_key(r, now_s)
            num_decodes += 1
        elif r.phase == PREFILL:
            prompts[num_prompts] = k
            prompt_key[num_prompts] = _prompt_key(r, worker, now_s)
            step[0].num_timely_prompts += int(prompt_key[num_prompts] < _BEST_EFFORT_KEY)
            num_prompts += 1
    if num_decodes + num_prompts == 0:
        return
    order = np.argsort(decode_key[:num_decodes])
    decodes = decodes[:num_decodes][order]
    decode_due = decode_due[:num_decodes][order]
    prompts = prompts[:num_prompts][np.argsort(prompt_key[:num_prompts])]
    is_capped = num_prompts > 0 or _are_far_ahead(now_s, requests, ids, worker, decodes, decode_due)
    cap_s = _bound_step(now_s, worker, decode_due, num_prompts, is_capped, step)
    if worker.prefills == 0 and num_prompts == 0:
        until_s = _pages_wait_s(now_s, requests, ids, n, worker, step[0].slack_s)
        if until_s < step_s(worker, 1, 1, 0, 0.0, 0, 0, 0):
            return
        step[0].limit_s = min(step[0].limit_s, until_s)
    first_waiting = _urgent_decodes(
        now_s, cap_s, requests, ids, n, worker, grants, decodes, decode_due, step
    )
    _paced_decodes(now_s, requests, ids, worker, grants, decodes[first_waiting:], step)
    _prompts(now_s, requests, ids, n, worker, grants, prompts, step)
    _other_decodes(requests, ids, worker, grants, decodes[first_waiting:], step)
    if step[0].num_tokens == 0:
        _force_one(requests, ids, n, worker, grants)


@kernel
def _decode_key(r: Record, now_s: float) -> float:
    """Order of decodes: promised ones by deadline, then the others; ties by arrival."""
    if r.guaranteed == 1:
        return float(r.next_due_at_s - now_s + _TIE * r.order)
    return float(_BEST_EFFORT_KEY + 1e-6 * r.order)


@kernel
def _prompt_key(r: Record, worker: Record, now_s: float) -> float:
    """Order of prompts, smallest first.

    Promised ones by deadline; those that only asked for one, by length; then promised ones that
    are late, and last other best effort, both by arrival.
    """
    num_left = r.num_prompt_tokens - r.num_computed_tokens
    latest_at_s = r.prefill_due_at_s - worker.token_s * num_left
    if r.guaranteed == 1 and r.prefill_due_at_s >= now_s:
        key = r.prefill_due_at_s - now_s + _TIE * r.order
    elif r.guaranteed == 1:
        key = _LATE_KEY + 1e-6 * r.order
    elif latest_at_s >= now_s and not np.isinf(latest_at_s):
        key = _TIMELY_KEY + num_left
    else:
        key = _BEST_EFFORT_KEY + 1e-6 * r.order
    return float(key)


@kernel
def _are_far_ahead(
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
def _bound_step(
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
def _pages_wait_s(
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


@kernel
def _urgent_decodes(
    now_s: float,
    cap_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    worker: Record,
    grants: Ints,
    decodes: Ints,
    decode_due: Floats,
    step: Records,
) -> int:
    """Grant what cannot wait for the step after this one; returns the first that can.

    Kept in reserve is the time of one token for everybody: decodes that were put off together
    come due together, and would leave a step without slack for the noise of its duration.
    """
    s = step[0]
    pass_context = 0
    num_pass = 0
    for j in range(len(decodes)):
        if not np.isinf(decode_due[j]):
            num_pass += 1
            pass_context += requests[ids[decodes[j]]].num_computed_tokens
    pass_s = 0.0
    if num_pass > 0:
        whole_s = step_s(worker, num_pass, num_pass, pass_context, 0.0, 0, 0, 0)
        pass_s = whole_s - worker.time_ratio * worker.floor_s
    s.draft = draft_length(requests, ids, decodes[:num_pass], worker, s.num_timely_prompts > 0)
    # Shorter steps would cost more than they save, and make all the others late.
    efficient_s = worker.time_ratio * worker.floor_s + 0.5 * pass_s
    horizon_at_s = now_s + s.limit_s + min(cap_s, s.limit_s) + pass_s
    if worker.num_free_blocks < SCARCE_BLOCKS * worker.num_blocks:
        horizon_at_s = np.finfo(np.float64).max
    for j in range(len(decodes)):
        if decode_due[j] > horizon_at_s:
            return j
        k = decodes[j]
        r = requests[ids[k]]
        needed = blocks_for(r.num_computed_tokens + 1, worker.block_size) - r.num_blocks
        if needed > s.num_free:
            s.num_free += _make_room(requests, ids, n, grants, k, needed - s.num_free)
        if grants[k] == PREEMPT or needed > s.num_free:
            continue
        with_it_s = _with_one_more_s(r, worker, step)
        if with_it_s > max(s.slack_s, efficient_s) and s.num_tokens > 0:
            # The first of them would be late; this one can have the next step.
            return len(decodes)
        _grant_decode(r, k, worker, grants, step)
    return len(decodes)


@kernel
def _paced_decodes(
    now_s: float,
    requests: Records,
    ids: Ints,
    worker: Record,
    grants: Ints,
    decodes: Ints,
    step: Records,
) -> None:
    """Grant what would fall behind the line that starts at its first token.

    A first token that came early is followed at the promised pace as long as that leaves prompts
    most of the step; the lead is spent only when it does not.
    """
    s = step[0]
    if np.isinf(s.limit_s):
        # All of them find room after the prompts.
        return
    floor_s = worker.time_ratio * worker.floor_s
    bound_s = floor_s + PACED_SHARE * (s.limit_s - floor_s)
    horizon_at_s = now_s + 2.0 * s.limit_s
    for k in decodes:
        r = requests[ids[k]]
        if r.guaranteed == 0:
            return
        if r.next_due_at_s - r.lead_s > horizon_at_s:
            continue
        needed = blocks_for(r.num_computed_tokens + 1, worker.block_size) - r.num_blocks
        if grants[k] == PREEMPT or needed > s.num_free:
            continue
        if _with_one_more_s(r, worker, step) > bound_s:
            return
        _grant_decode(r, k, worker, grants, step)


@kernel
def _with_one_more_s(r: Record, worker: Record, step: Records) -> float:
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
def _grant_decode(r: Record, k: int, worker: Record, grants: Ints, step: Records) -> None:
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


@kernel
def _prompts(  # noqa: C901 - compiled
    now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    worker: Record,
    grants: Ints,
    prompts: Ints,
    step: Records,
) -> None:
    """Grant chunks in the given order until the step is full."""
    s = step[0]
    for k in prompts:
        r = requests[ids[k]]
        if grants[k] == PREEMPT or (r.num_blocks == 0 and s.num_holding >= worker.max_running):
            continue
        if r.guaranteed == 0 and r.num_blocks == 0:
            # It would be preempted before long, and all its work be lost.
            rest = s.num_free - blocks_for(r.num_prompt_tokens, worker.block_size)
            if rest < SCARCE_BLOCKS * worker.num_blocks and s.num_holding > 0:
                continue
        bound_s = s.limit_s
        if _prompt_key(r, worker, now_s) >= _BEST_EFFORT_KEY:
            bound_s = min(s.limit_s, s.best_effort_s)
        left_s = bound_s - worker.time_ratio * (
            worker.sequence_s * s.num_decodes
            + worker.context_token_s * s.context
            + worker.prefill_attention_s * s.attention
            + worker.chunk_s * s.num_chunks
            + worker.draft_floor_s * s.draft * int(s.num_drafted > 0)
            + worker.draft_sequence_s * s.num_drafted
        )
        num_left = min(
            r.num_prompt_tokens - r.num_computed_tokens, worker.max_step_tokens - s.num_tokens
        )
        chunk = chunk_within(worker, left_s, s.num_tokens, r.num_computed_tokens, num_left)
        if chunk <= 0:
            return
        needed = blocks_for(r.num_computed_tokens + chunk, worker.block_size) - r.num_blocks
        if needed > s.num_free and r.guaranteed == 1:
            s.num_free += _make_room(requests, ids, n, grants, k, needed - s.num_free)
        if needed > s.num_free:
            room = (s.num_free + r.num_blocks) * worker.block_size - r.num_computed_tokens
            chunk = min(chunk, room)
            if chunk <= 0:
                continue
            needed = blocks_for(r.num_computed_tokens + chunk, worker.block_size) - r.num_blocks
        s.num_holding += int(r.num_blocks == 0)
        s.num_free -= max(needed, 0)
        grants[k] = chunk
        s.num_tokens += chunk
        s.num_chunks += 1
        s.attention += chunk * (r.num_computed_tokens + 0.5 * chunk)
        if chunk < num_left:
            return
        due_s = (r.prefill_due_at_s - now_s) / worker.step_guard_ratio
        if r.guaranteed == 1 and due_s > 0.0:
            # It is complete with this step, which must not make it late.
            s.limit_s = min(s.limit_s, due_s)


@kernel
def _other_decodes(
    requests: Records, ids: Ints, worker: Record, grants: Ints, decodes: Ints, step: Records
) -> None:
    """Grant decodes that are ahead of their line, while the step stays within its bound."""
    s = step[0]
    for k in decodes:
        if grants[k] > 0:
            continue
        r = requests[ids[k]]
        bound_s = s.limit_s
        if r.guaranteed == 0:
            if s.num_timely_prompts > 0 and s.num_tokens > 0:
                return
            bound_s = min(bound_s, s.best_effort_s)
        needed = blocks_for(r.num_computed_tokens + 1, worker.block_size) - r.num_blocks
        if grants[k] == PREEMPT or needed > s.num_free:
            continue
        with_it_s = _with_one_more_s(r, worker, step)
        if with_it_s > bound_s and s.num_tokens > 0:
            return
        _grant_decode(r, k, worker, grants, step)


@kernel
def _make_room(
    requests: Records, ids: Ints, n: int, grants: Ints, keep: int, num_wanted: int
) -> int:
    """Preempt until `num_wanted` more blocks are free; returns how many became free.

    Best effort goes first, the latest first; then promised requests whose next token is due
    after that of the one in need, the last due first.
    """
    needy = requests[ids[keep]]
    freed = 0
    while freed < num_wanted:
        victim = -1
        victim_key = -np.inf
        for k in range(n):
            r = requests[ids[k]]
            if k == keep or grants[k] != 0 or r.num_blocks == 0:
                continue
            if r.phase not in (PREFILL, DECODE):
                continue
            if r.guaranteed == 1 and (
                needy.guaranteed == 0 or r.next_due_at_s <= needy.next_due_at_s
            ):
                continue
            key = r.next_due_at_s + _TIE * r.order
            if r.guaranteed == 0:
                key = 1e12 + r.order
            if key > victim_key:
                victim = k
                victim_key = key
        if victim < 0:
            return freed
        grants[victim] = PREEMPT
        freed += requests[ids[victim]].num_blocks
    return freed


@kernel
def _force_one(  # noqa: C901 - compiled
    requests: Records, ids: Ints, n: int, worker: Record, grants: Ints
) -> None:
    """Memory is full of requests none of which can go on: let the first that came go on."""
    first = -1
    num_free = worker.num_free_blocks
    num_holding = 0
    for k in range(n):
        r = requests[ids[k]]
        if grants[k] == PREEMPT:
            num_free += r.num_blocks
        num_holding += int(r.num_blocks > 0)
        if r.phase in (PREFILL, DECODE) and (first < 0 or r.order < requests[ids[first]].order):
            first = k
    r = requests[ids[first]]
    if r.num_blocks == 0 and num_holding >= worker.max_running:
        return
    wanted = 1
    if r.phase == PREFILL:
        wanted = min(r.num_prompt_tokens - r.num_computed_tokens, worker.max_step_tokens)
    needed = blocks_for(r.num_computed_tokens + wanted, worker.block_size) - r.num_blocks
    if grants[first] == PREEMPT:
        num_free -= r.num_blocks
    while num_free < needed:
        victim = -1
        for k in range(n):
            other = requests[ids[k]]
            if k == first or other.num_blocks == 0 or grants[k] == PREEMPT:
                continue
            if other.phase in (PREFILL, DECODE) and (
                victim < 0 or other.order > requests[ids[victim]].order
            ):
                victim = k
        if victim < 0:
            return
        grants[victim] = PREEMPT
        num_free += requests[ids[victim]].num_blocks
    grants[first] = wanted
