"""Niyama: chunks as long as the tightest decode allows, and hopeless prompts last.

Constants and rules: Niyama (arXiv 2503.22562) and its published scheduler.
"""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import DECODE, PREFILL, Ints, Records
from headway.core.kernel import kernel
from headway.core.planner.baselines.blocks import is_runnable, open_room
from headway.core.planner.baselines.fill import arrival_rank, fill, in_sequence
from headway.core.planner.step_time import step_s

# Tokens of a step; the scheduler tries them by bisection, here the longest first.
_STEP_TOKENS = np.array([2552, 2048, 1792, 1536, 1280, 1024, 768, 512, 256, 128])
_MIN_STEP_TOKENS = 128
_MAX_STEP_TOKENS_WHEN_FULL = 512
# Predicted times are stretched by this before they are compared with the slack.
_SAFETY_RATIO = 1.2
# Weight of remaining work against the deadline in the order of prompts.
_WORK_S_PER_TOKEN = 0.008
_FIRST_TOKENS_PER_S = 8500.0
_DECAY = 0.995

# REQUEST.mark: 0 at first, this once relegated, 1 + lateness of the first token in DECODE.
_RELEGATED = -1.0
_LATENESS_BASE = 1.0


@kernel
def _min_slack_s(now_s: float, requests: Records, ids: Ints, n: int) -> float:
    """Least time any promised decode has for its next token.

    Tokens are due on a line from the first token, which starts at its due time or when it came,
    whichever was later. The lateness is seen in the step that follows the first token.
    """
    slack_s = np.inf
    for k in range(n):
        request = requests[ids[k]]
        if request.phase != DECODE or request.guaranteed == 0:
            continue
        if request.mark < _LATENESS_BASE and request.num_output_tokens > 0:
            late_s = now_s - (request.next_due_at_s - request.tpot_s)
            request.mark = _LATENESS_BASE + max(0.0, late_s)
        late_s = max(0.0, request.mark - _LATENESS_BASE)
        slack_s = min(slack_s, request.next_due_at_s + late_s - now_s)
    return slack_s


@kernel
def _sequence(  # type: ignore[no-untyped-def]
    now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    worker,  # noqa: ANN001
) -> Ints:
    """Decodes, prompts, relegated prompts, then best effort; relegates what has become late."""
    key = arrival_rank(requests, ids, n)
    group = np.full(n, -1)
    for k in range(n):
        request = requests[ids[k]]
        if not is_runnable(requests, ids[k]):
            continue
        if request.guaranteed == 0:
            group[k] = 3 if request.phase == DECODE else 4
            continue
        group[k] = 0
        if request.phase != PREFILL:
            continue
        num_left = request.num_prompt_tokens - request.num_computed_tokens
        key[k] = request.prefill_due_at_s + _WORK_S_PER_TOKEN * num_left
        # A request that has had its first token computes again what it lost; its due time for
        # the prompt says nothing any more.
        if (
            request.num_output_tokens == 0
            and request.mark == 0.0
            and now_s + num_left / worker.mark > request.prefill_due_at_s
        ):
            request.mark = _RELEGATED
        group[k] = 2 if request.mark == _RELEGATED else 1
    return in_sequence(requests, ids, group, key)


@kernel
def _predicted_s(  # type: ignore[no-untyped-def]
    requests: Records,
    ids: Ints,
    sequence: Ints,
    worker,  # noqa: ANN001
    num_budget_tokens: int,
) -> float:
    """Time of a step of so many tokens, filled in this sequence; KV memory left aside."""
    num_tokens = num_decodes = num_context = num_chunks = 0
    attention = 0.0
    for k in sequence:
        if num_tokens >= num_budget_tokens:
            break
        request = requests[ids[k]]
        if request.phase == DECODE:
            num_tokens += 1
            num_decodes += 1
            num_context += request.num_computed_tokens
            continue
        num_left = request.num_prompt_tokens - request.num_computed_tokens
        grant = min(num_left, num_budget_tokens - num_tokens)
        num_tokens += grant
        num_chunks += 1
        attention += grant * (request.num_computed_tokens + 0.5 * grant)
    return step_s(worker, num_tokens, num_decodes, num_context, attention, num_chunks, 0, 0)


@kernel
def form_niyama(  # type: ignore[no-untyped-def]
    now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    worker,  # noqa: ANN001
    grants: Ints,
) -> None:
    """Decodes, then prompts by deadline plus remaining work, in a step the slack allows.

    A step is never longer than `worker.token_budget`, except for its decodes. A prompt that
    the recent prefill throughput (`worker.mark`) cannot finish in time goes behind all others,
    once and for good. The throughput is taken from predicted step times.
    """
    grants[:n] = 0
    if worker.mark == 0.0:
        worker.mark = _FIRST_TOKENS_PER_S
    sequence = _sequence(now_s, requests, ids, n, worker)
    slack_s = _min_slack_s(now_s, requests, ids, n)
    num_most = worker.token_budget
    if worker.num_free_blocks * worker.block_size / 32 < 1000:
        num_most = min(num_most, _MAX_STEP_TOKENS_WHEN_FULL)
    num_budget_tokens = _MIN_STEP_TOKENS
    if slack_s > 0.0:
        for num_tokens in _STEP_TOKENS:
            num_budget_tokens = min(num_tokens, num_most)
            time_s = _predicted_s(requests, ids, sequence, worker, num_budget_tokens)
            if _SAFETY_RATIO * time_s <= slack_s:
                break
    num_decodes = 0
    for k in sequence:
        num_decodes += 1 if requests[ids[k]].phase == DECODE else 0
    rooms = open_room(
        requests,
        ids,
        n,
        worker,
        max(num_decodes, num_budget_tokens),
        worker.num_blocks // 100,
        grants,
    )
    rank = arrival_rank(requests, ids, n)
    fill(requests, ids, n, sequence, rank, False, False, rooms, grants)
    _learn_throughput(requests, ids, n, worker, grants)


@kernel
def _learn_throughput(  # type: ignore[no-untyped-def]
    requests: Records,
    ids: Ints,
    n: int,
    worker,  # noqa: ANN001
    grants: Ints,
) -> None:
    num_tokens = num_decodes = num_context = num_chunks = num_prompt_tokens = 0
    attention = 0.0
    for k in range(n):
        request = requests[ids[k]]
        grant = grants[k]
        if grant <= 0:
            continue
        num_tokens += grant
        if request.phase == DECODE:
            num_decodes += 1
            num_context += request.num_computed_tokens
        else:
            num_chunks += 1
            num_prompt_tokens += grant
            attention += grant * (request.num_computed_tokens + 0.5 * grant)
    if num_prompt_tokens > 0:
        time_s = step_s(worker, num_tokens, num_decodes, num_context, attention, num_chunks, 0, 0)
        worker.mark = _DECAY * worker.mark + (1.0 - _DECAY) * num_prompt_tokens / time_s
