"""Decodes first, then chunks of prompts under a fixed token budget: Sarathi-Serve, and EDF."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import DECODE, Ints, Records
from headway.core.kernel import kernel
from headway.core.planner.baselines.blocks import is_runnable, open_room
from headway.core.planner.baselines.fill import arrival_rank, fill, in_sequence


@kernel
def form_sarathi(  # type: ignore[no-untyped-def]
    _now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    worker,  # noqa: ANN001
    grants: Ints,
) -> None:
    """All decodes, prompts already begun, new prompts; each first come, first served.

    `worker.token_budget` bounds the step, with or without decodes in it. Source: Sarathi-Serve
    (arXiv 2403.02310).
    """
    grants[:n] = 0
    rank = arrival_rank(requests, ids, n)
    group = np.full(n, -1)
    for k in range(n):
        request = requests[ids[k]]
        if is_runnable(requests, ids[k]):
            group[k] = 3 if request.guaranteed == 0 else 0
            if request.phase != DECODE:
                group[k] += 1 if request.num_blocks > 0 else 2
    rooms = open_room(
        requests, ids, n, worker, worker.token_budget, worker.num_blocks // 100, grants
    )
    sequence = in_sequence(requests, ids, group, rank)
    fill(requests, ids, n, sequence, rank, False, False, rooms, grants)


@kernel
def form_edf(  # type: ignore[no-untyped-def]
    _now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    worker,  # noqa: ANN001
    grants: Ints,
) -> None:
    """All decodes, then prompts by deadline; the earlier deadline may evict the later.

    What QLM (arXiv 2407.00047) does when there is one model: its request groups are then in
    the order of their deadlines, and a group at the head of the queue that lacks memory evicts
    running requests of lower priority.
    """
    grants[:n] = 0
    rank = arrival_rank(requests, ids, n)
    group = np.full(n, -1)
    for k in range(n):
        request = requests[ids[k]]
        if not is_runnable(requests, ids[k]):
            continue
        group[k] = (2 if request.guaranteed == 0 else 0) + (0 if request.phase == DECODE else 1)
        if request.guaranteed:
            rank[k] = request.prefill_due_at_s
    rooms = open_room(
        requests, ids, n, worker, worker.token_budget, worker.num_blocks // 100, grants
    )
    sequence = in_sequence(requests, ids, group, rank)
    fill(requests, ids, n, sequence, rank, True, False, rooms, grants)
