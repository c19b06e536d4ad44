"""Whether a request fits on one place: its workers are probed, and hand-over is allowed for."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import ARRIVING, Records
from headway.core.planner.arrival import Answer, ClusterView, Limit, Verdict
from headway.core.planner.handover import latest_arrival
from headway.core.planner.probe import DECODE_RATE, FITS, KV_BLOCKS, LATE, probe

_LIMITS = {
    FITS: Limit.NONE,
    LATE: Limit.PREFILL_TIME,
    DECODE_RATE: Limit.DECODE_RATE,
    KV_BLOCKS: Limit.KV_BLOCKS,
}


def fit_at(
    new: int,
    p: int,
    d: int,
    view: ClusterView,
    now_s: float,
    length_s: float,
    free_at_s: float,
    arrival: tuple[int, float],
) -> tuple[Limit, Answer]:
    """What keeps `new` from being prefilled on worker `p` and decoded on `d`, if anything does.

    Args:
        new: row of `view.requests`.
        p: row of `view.workers`.
        d: likewise; it may be the same.
        view: all workers.
        now_s: the present.
        length_s: step length of `p` to plan with.
        free_at_s: when the step that runs on `p` ends.
        arrival: what `arrival_at` says of `d`; of no use where `p` is `d`.

    Returns:
        NONE and where it is served, or what is in the way.
    """
    if p == d:
        record = view.record_on(new, p)
        handover_s = 0.0
        if view.local_handover_s is not None:
            handover_s = float(view.local_handover_s[p])
            record["prefill_due_at_s"] -= handover_s
            record["next_due_at_s"] -= handover_s
        found, computed_at_s = _probe(record, p, view, now_s, length_s, free_at_s)
        return _LIMITS[found], Answer(Verdict.SERVE, p, p, 0.0, handover_s, computed_at_s)
    found, arrives_at_s = arrival
    if found != FITS:
        return _LIMITS[found], Answer(Verdict.DEFER)
    record = view.record_on(new, p)
    handover_s = 0.0
    if view.handover_s is not None:
        handover_s = float(view.handover_s[d])
    elif np.isfinite(arrives_at_s):
        handover_s = float(record["next_due_at_s"]) - (arrives_at_s - view.link_latency_s)
    record["leaves_after_prefill"] = 1
    record["prefill_due_at_s"] -= handover_s
    found, computed_at_s = _probe(record, p, view, now_s, length_s, free_at_s)
    return _LIMITS[found], Answer(Verdict.SERVE, p, d, arrives_at_s, handover_s, computed_at_s)


def arrival_at(new: int, d: int, view: ClusterView, now_s: float) -> tuple[int, float]:
    """Whether worker `d` can decode what another one prefills, and when it must arrive.

    Returns:
        One of the codes of `core.planner.probe`, and the instant.
    """
    record = view.requests[new : new + 1].copy()[0]
    record["phase"] = ARRIVING
    due_at_s = float(record["next_due_at_s"])
    worker = view.workers[d]
    if view.handover_s is None and np.isfinite(due_at_s):
        found, arrives_at_s = latest_arrival(
            now_s, view.requests, view.ids[d], view.counts[d], view.grants[d], worker, record
        )
        return found, arrives_at_s
    arrives_at_s = due_at_s if view.handover_s is None else due_at_s - view.handover_s[d]
    record["arrives_at_s"] = arrives_at_s
    length_s, free_at_s = float(worker["step_cap_s"]), float(worker["busy_until_s"])
    found, _ = _probe(record, d, view, now_s, length_s, free_at_s)
    return found, arrives_at_s


def _probe(
    record: Records,
    w: int,
    view: ClusterView,
    now_s: float,
    length_s: float,
    free_at_s: float,
) -> tuple[int, float]:
    return probe(
        now_s,
        view.requests,
        view.ids[w],
        view.counts[w],
        view.grants[w],
        view.workers[w],
        record,
        length_s,
        free_at_s,
    )
