"""Lets requests in, and gives them their workers: at once, or when there is room for them."""

from __future__ import annotations

from headway.core.cluster import ClusterSnapshot
from headway.core.cluster_book import ClusterBook
from headway.core.effects import Effect, SendAdmission, SendRefusal, StartDecode
from headway.core.planner.interface import (
    AdmissionPolicy,
    Constraint,
    Guarantee,
    Placement,
    Refuse,
    ServeBestEffort,
)
from headway.core.progress import Progress
from headway.core.request import RequestSpec
from headway.core.request_book import RequestBook


class Intake:
    """Asks the policy, and writes into the books what it decided."""

    def __init__(
        self,
        policy: AdmissionPolicy,
        cluster: ClusterBook,
        requests: RequestBook,
        max_requests: int,
    ) -> None:
        """Args: max_requests: beyond so many admitted and not ended, requests are refused."""
        self._policy = policy
        self._cluster = cluster
        self._requests = requests
        self._max_requests = max_requests
        self._num_plans = 0

    def arrived(self, request: RequestSpec, arrived_at_s: float, now_s: float) -> list[Effect]:
        """Refuse, or admit and place; best effort waits while others wait already."""
        self._num_plans += 1
        plan_id = f"plan-{self._num_plans}"
        if len(self._requests) >= self._max_requests:
            message = f"{len(self._requests)} requests are served already"
            refusal = Refuse(Constraint.QUEUE_FULL, message, 1.0)
            return [SendRefusal(request.request_id, plan_id, refusal)]
        cluster = self._snapshot(now_s)
        elapsed_s = now_s - arrived_at_s
        match self._policy.decide(request, cluster, elapsed_s):
            case Refuse() as refusal:
                return [SendRefusal(request.request_id, plan_id, refusal)]
            case Guarantee(placement, promise):
                admission = SendAdmission(request, plan_id, promise, placement, None)
                progress = Progress(request, arrived_at_s, promise, self._num_plans)
                return [admission, *self._admit(progress, placement, now_s)]
            case ServeBestEffort(constraint):
                placed = (
                    None  # nobody overtakes those that wait already
                    if self._requests.num_queued
                    else self._policy.place_best_effort(request, cluster, elapsed_s)
                )
                admission = SendAdmission(request, plan_id, None, placed, constraint)
                progress = Progress(request, arrived_at_s, None, self._num_plans)
                return [admission, *self._admit(progress, placed, now_s)]

    def place_queued(self, now_s: float) -> list[Effect]:
        """Start best-effort requests, in the order they came, while the first one fits."""
        effects: list[Effect] = []
        while (progress := self._requests.first_queued) is not None:
            elapsed_s = now_s - progress.arrived_at_s
            cluster = self._snapshot(now_s)
            placement = self._policy.place_best_effort(progress.spec, cluster, elapsed_s)
            if placement is None:
                break
            self._requests.dequeue(progress)
            effects.append(self._place(progress, placement, now_s))
        return effects

    def first_if_too_large(self, now_s: float) -> Progress | None:
        """The first that waits, if no worker which is left could ever hold it."""
        progress = self._requests.first_queued
        if progress is None or not self._policy.is_too_large(progress.spec, self._snapshot(now_s)):
            return None
        return progress

    def _admit(self, progress: Progress, placement: Placement | None, now_s: float) -> list[Effect]:
        self._requests.add(progress)
        if placement is None:
            self._requests.queue(progress)
            return self._requests.wake()
        return [*self._requests.wake(), self._place(progress, placement, now_s)]

    def _place(self, progress: Progress, placement: Placement, now_s: float) -> Effect:
        progress.place(placement, now_s)
        self._cluster.place(progress)
        return StartDecode(
            request=progress.spec,
            worker_id=placement.decode_worker_id,
            promise=progress.promise_from(now_s),
            step_cap_s=placement.step_cap_s if placement.is_local else None,
            remaining_s=progress.deadline_at_s - now_s,
            local_prefill=placement.is_local,
            prefill_due_s=progress.prefill_due_s(now_s) if placement.is_local else None,
        )

    def _snapshot(self, now_s: float) -> ClusterSnapshot:
        return self._cluster.snapshot(now_s, self._requests.num_queued)
