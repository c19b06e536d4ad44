"""SCORPIO: prompts by deadline, decodes by credit (arXiv 2505.23022).

A decode whose TPOT is k times the tightest one takes part in one step of k.
"""

from __future__ import annotations

import math

import numpy as np

from headway.core.batch_state import DECODE, Floats, Ints, Records
from headway.core.kernel import kernel
from headway.core.planner.baselines.blocks import is_runnable, open_room
from headway.core.planner.baselines.fill import arrival_rank, fill, in_sequence
from headway.core.planner.step_time import step_s

# Sums of shares such as 1/3 fall short of 1 by rounding.
_ROUNDING = 1e-9


@kernel
def rate_per_s(requests: Records, request_id: int) -> float:
    """Tokens per second the request asks for; 0 where it asks for no pace."""
    tpot_s = requests[request_id].tpot_s
    return 1.0 / tpot_s if tpot_s > 0.0 else 0.0


@kernel
def add_to_batch(batch: Floats, requests: Records, request_id: int) -> None:
    """Count one request into a virtual batch.

    Args:
        batch: the highest rate in it, the sum of rates, and that of rate times context tokens.
        requests: REQUEST records.
        request_id: row of `requests`.
    """
    rate = rate_per_s(requests, request_id)
    request = requests[request_id]
    batch[0] = max(batch[0], rate)
    batch[1] += rate
    batch[2] += rate * max(request.num_prompt_tokens, request.num_computed_tokens)


@kernel
def add_begun(batch: Floats, requests: Records, ids: Ints, n: int, guaranteed: int) -> None:
    """Count the requests of one class that have begun into a virtual batch."""
    for k in range(n):
        request = requests[ids[k]]
        if (
            request.num_blocks > 0
            and request.guaranteed == guaranteed
            and is_runnable(requests, ids[k])
        ):
            add_to_batch(batch, requests, ids[k])


@kernel
def is_within_tpot(worker, batch: Floats) -> bool:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Whether a step of the virtual batch size takes no longer than the tightest TPOT.

    The virtual batch size is the sum of tightest TPOT / TPOT: the mean number of requests in a
    step, when each one takes part as often as it must.
    """
    if batch[0] == 0.0:
        return True
    num_decodes = math.ceil(batch[1] / batch[0] - _ROUNDING)
    num_context = int(batch[2] / batch[0])
    return step_s(worker, num_decodes, num_decodes, num_context, 0.0, 0, 0, 0) * batch[0] <= 1.0  # type: ignore[no-any-return]


@kernel
def _add_credit(requests: Records, ids: Ints, n: int) -> None:
    """`mark` of each decode grows by its share of the steps; at 1 it takes part."""
    fastest = 0.0
    for guaranteed in (1, 0):
        for k in range(n):
            request = requests[ids[k]]
            if request.phase == DECODE and request.guaranteed == guaranteed:
                fastest = max(fastest, rate_per_s(requests, ids[k]))
        if fastest > 0.0:
            break
    for k in range(n):
        if requests[ids[k]].phase == DECODE:
            rate = rate_per_s(requests, ids[k])
            requests[ids[k]].mark += min(1.0, rate / fastest) if fastest > 0.0 else 1.0


@kernel
def _hold_back(requests: Records, ids: Ints, n: int, sequence: Ints, worker) -> Ints:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """The sequence without the prompts whose start would make the virtual batch too large."""
    batch = np.zeros(3)
    add_begun(batch, requests, ids, n, 1)
    counts_best_effort = False
    kept = np.empty(len(sequence), np.int64)
    num_kept = 0
    for k in sequence:
        if requests[ids[k]].guaranteed == 0 and not counts_best_effort:
            counts_best_effort = True
            add_begun(batch, requests, ids, n, 0)
        if requests[ids[k]].num_blocks == 0:
            larger = batch.copy()
            add_to_batch(larger, requests, ids[k])
            # A rate that no step can serve must still be served when it is alone.
            if batch[1] > 0.0 and not is_within_tpot(worker, larger):
                continue
            batch = larger
        kept[num_kept] = k
        num_kept += 1
    return kept[:num_kept]


@kernel
def form_scorpio(  # type: ignore[no-untyped-def]
    now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    worker,  # noqa: ANN001
    grants: Ints,
) -> None:
    """Decodes that have credit, then prompts by deadline; those past it come last.

    A prompt starts only while a step of the virtual batch size keeps the tightest TPOT.
    `worker.token_budget` bounds the step.
    """
    grants[:n] = 0
    _add_credit(requests, ids, n)
    key = arrival_rank(requests, ids, n)
    group = np.full(n, -1)
    for k in range(n):
        request = requests[ids[k]]
        if not is_runnable(requests, ids[k]):
            continue
        first = 0 if request.guaranteed else 3
        if request.phase == DECODE:
            group[k] = first if request.mark >= 1.0 - _ROUNDING else -1
            continue
        group[k] = first + 1
        if request.guaranteed:
            key[k] = request.prefill_due_at_s
            group[k] = 1 if now_s <= request.prefill_due_at_s else 2
    sequence = in_sequence(requests, ids, group, key)
    sequence = _hold_back(requests, ids, n, sequence, worker)
    rooms = open_room(
        requests, ids, n, worker, worker.token_budget, worker.num_blocks // 100, grants
    )
    rank = arrival_rank(requests, ids, n)
    fill(requests, ids, n, sequence, rank, False, False, rooms, grants)
    for k in range(n):
        if grants[k] > 0 and requests[ids[k]].phase == DECODE:
            requests[ids[k]].mark -= 1.0
