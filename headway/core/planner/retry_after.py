"""When a request that is not promised now should ask again."""

from __future__ import annotations

from headway.core.cluster import ClusterSnapshot
from headway.core.planner.interface import Constraint
from headway.core.planner.prediction import decode_step_s, prefill_queue
from headway.core.planner.question import Question

# Bounds of the advice when to come back: below, a refused caller would hammer the door;
# above, it would stay away longer than any forecast is good for.
MIN_RETRY_AFTER_S = 0.1
MAX_RETRY_AFTER_S = 60.0


def retry_after_s(question: Question, constraint: Constraint) -> float:
    """When it may fit: once the first decode ends, or once the prompt would be in time."""
    if constraint is Constraint.PREFILL_TIME:
        cluster, request = question.cluster, question.request
        computed_in_s = min(
            prefill_queue(worker, cluster.now_s).added_backlog_s(request.num_prompt_tokens)
            for worker in cluster.prefilling_workers
        )
        return clamped(question.excess_s(computed_in_s))
    return clamped(_soonest_room_s(question.cluster))


def _soonest_room_s(cluster: ClusterSnapshot) -> float:
    """Predicted time until some decode worker ends a request."""
    remaining_s = [
        float((worker.requests["num_output_bound"] - worker.requests["num_output_tokens"]).min())
        * decode_step_s(worker)
        for worker in cluster.decode_workers
        if len(worker.requests)
    ]
    return min(remaining_s, default=MIN_RETRY_AFTER_S)


def clamped(advice_s: float) -> float:
    """The advice within its bounds."""
    return min(max(advice_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
