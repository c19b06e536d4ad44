"""Live admission: the planner's promises, made from the controller's books.

The same `PromisePolicy` decides in the simulator. What a simulated worker does is known; what
a live one does is worked out from what was given to it, see `core.planner.picture`. Workers that
do not form their steps by deadline must also pass the closed-form test of
`core.planner.prediction`; docs/decisions/008 says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from headway.core.cluster import ClusterSnapshot, WorkerSnapshot
from headway.core.planner.arrival import Answer, Limit, Verdict
from headway.core.planner.interface import (
    Constraint,
    Decision,
    Guarantee,
    Placement,
    PlannerParams,
    Refuse,
    ServeBestEffort,
)
from headway.core.planner.live_view import LiveView
from headway.core.planner.pairs import handovers, usable_pairs
from headway.core.planner.prediction import decode_step_s, prefill_queue
from headway.core.planner.promising import PromisePolicy
from headway.core.planner.question import Question, request_record
from headway.core.planner.retry_after import (
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    clamped,
    retry_after_s,
)
from headway.core.request import RequestSpec
from headway.core.slo import Promise, Slo

_EXPLANATIONS = {
    Constraint.PREFILL_TIME: "the first token would be late",
    Constraint.DECODE_RATE: "tokens would not come fast enough",
    Constraint.KV_BLOCKS: "no worker has room for its KV cache",
    Constraint.TOO_COSTLY: "there is room for too few requests, and it would take that of several",
}


@dataclass(frozen=True, slots=True)
class _Misfit:
    constraint: Constraint
    retry_after_s: float


@dataclass(slots=True)
class PlannedAdmission:
    """Asks the planner. Keeps a picture of each worker, and what the planner learned there."""

    params: PlannerParams
    _policy: PromisePolicy = field(default_factory=PromisePolicy)
    _live: LiveView = field(init=False)

    def __post_init__(self) -> None:
        self._live = LiveView(self.params.guard_ratio)

    def observe(self, worker: WorkerSnapshot, now_s: float) -> None:
        """See `AdmissionPolicy.observe`."""
        self._live.observe(worker, now_s)

    def decide(
        self, request: RequestSpec, cluster: ClusterSnapshot, elapsed_s: float = 0.0
    ) -> Decision:
        """See `AdmissionPolicy.decide`."""
        if not _serves_both_phases(cluster):
            missing = "decode" if cluster.prefilling_workers else "prefill"
            return Refuse(Constraint.NO_WORKER, f"no {missing} worker serves", 1.0)
        if self.is_too_large(request, cluster):
            return Refuse(
                Constraint.TOO_LARGE,
                "prompt and max_tokens need more KV memory than any worker has",
                MAX_RETRY_AFTER_S,
            )
        misfit = _Misfit(Constraint.NOT_ASKED, MIN_RETRY_AFTER_S)
        if request.slo is not None:
            found = self._promised(request, request.slo, cluster, elapsed_s)
            if isinstance(found, Guarantee):
                return found
            misfit = found
            if request.refuse_if_not_promised:
                return self._refusal(request, cluster, elapsed_s, misfit)
        if cluster.num_best_effort_queued >= self.params.max_best_effort_queued:
            return Refuse(
                Constraint.QUEUE_FULL,
                f"{cluster.num_best_effort_queued} best-effort requests wait already",
                clamped(max(misfit.retry_after_s, 1.0)),
            )
        return ServeBestEffort(misfit.constraint)

    def is_too_large(self, request: RequestSpec, cluster: ClusterSnapshot) -> bool:
        """See `AdmissionPolicy.is_too_large`."""
        return _serves_both_phases(cluster) and not _fits_some_memory(request, cluster)

    def place_best_effort(
        self, request: RequestSpec, cluster: ClusterSnapshot, elapsed_s: float = 0.0
    ) -> Placement | None:
        """See `AdmissionPolicy.place_best_effort`."""
        if not _serves_both_phases(cluster):
            return None
        question = self._question(request, None, cluster, elapsed_s)
        if question.barred is not None:
            return None
        answer = self._policy.place_deferred(question.new, question.view, cluster.now_s)
        if answer.verdict is not Verdict.SERVE:
            return None
        return self._placement(question, answer, None)

    def _promised(
        self, request: RequestSpec, slo: Slo, cluster: ClusterSnapshot, elapsed_s: float
    ) -> Guarantee | _Misfit:
        zero_load_s = _zero_load_prefill_s(request, cluster)
        promise = slo.promise(zero_load_s)
        question = self._question(request, promise, cluster, elapsed_s)
        if question.excess_s(self.params.guard_ratio * zero_load_s) > 0:
            # Not for want of room, from which the planner learns: idle workers could not either.
            return _Misfit(Constraint.PREFILL_TIME, MIN_RETRY_AFTER_S)
        answer, limit = self._policy.judge(question.new, question.view, cluster.now_s)
        if limit is not Limit.NONE:
            constraint = question.barred or Constraint(limit.value)
            return _Misfit(constraint, retry_after_s(question, constraint))
        step_cap_s = float(question.view.workers["step_cap_s"][answer.prefill_worker])
        return Guarantee(self._placement(question, answer, step_cap_s), promise)

    def _refusal(
        self, request: RequestSpec, cluster: ClusterSnapshot, elapsed_s: float, misfit: _Misfit
    ) -> Refuse:
        def fits(slo: Slo) -> bool:
            promise = slo.promise(_zero_load_prefill_s(request, cluster))
            question = self._question(request, promise, cluster, elapsed_s)
            if question.barred is not None:
                return False
            limit = self._policy.limit(question.new, question.view, cluster.now_s)
            return limit is Limit.NONE

        fitting = (
            name
            for name, slo in sorted(self.params.tiers.items())
            if name != request.tier and fits(slo)
        )
        return Refuse(
            misfit.constraint,
            f"the bounds cannot be kept now: {_EXPLANATIONS[misfit.constraint]}",
            misfit.retry_after_s,
            next(fitting, None),
        )

    def _placement(self, question: Question, answer: Answer, step_cap_s: float | None) -> Placement:
        p, d = answer.prefill_worker, answer.decode_worker
        snapshots = [*question.cluster.prefill_workers, *question.cluster.decode_workers]
        request, now_s = question.request, question.cluster.now_s
        elapsed_s = now_s - question.arrived_at_s
        # The guard is for what is promised; the prediction is told without it.
        guard_ratio = self.params.guard_ratio
        computed_in_s = (answer.computed_at_s - now_s) / guard_ratio
        if not math.isfinite(computed_in_s):
            # Best effort is not run ahead: it gets what the promised ones leave.
            queue = prefill_queue(snapshots[p], now_s)
            computed_in_s = queue.added_backlog_s(request.num_prompt_tokens)
        step_s = decode_step_s(snapshots[d], request.num_prompt_tokens, request.sampling.max_tokens)
        transfer_s = snapshots[d].overhead_s if p != d else 0.0
        return Placement(
            prefill_worker_id=snapshots[p].spec.worker_id,
            decode_worker_id=snapshots[d].spec.worker_id,
            predicted_ttft_s=elapsed_s + computed_in_s + answer.handover_s / guard_ratio,
            predicted_tpot_s=step_s,
            predicted_kv_arrival_s=elapsed_s + computed_in_s + transfer_s,
            handover_allowance_s=answer.handover_s,
            step_cap_s=step_cap_s if step_cap_s != math.inf else None,
        )

    def _question(
        self,
        request: RequestSpec,
        promise: Promise | None,
        cluster: ClusterSnapshot,
        elapsed_s: float,
    ) -> Question:
        workers = [*cluster.prefill_workers, *cluster.decode_workers]
        before = self._live.keys
        pictures = self._live.update(workers, cluster.now_s)
        if before != self._live.keys:
            self._renumber(before, self._live.keys)
        arrived_at_s = cluster.now_s - elapsed_s
        record = request_record(request, promise, arrived_at_s)
        handovers_s = handovers(pictures, request, record, self.params.guard_ratio)
        pairs = usable_pairs(
            request, record, pictures, handovers_s, cluster.now_s, self.params.guard_ratio
        )
        view = self._live.view(record, handovers_s, pairs.allowed)
        return Question(request, cluster, arrived_at_s, view, pairs.barred)

    def _renumber(self, before: list[str], after: list[str]) -> None:
        """Workers came or went: what was learned of the others goes to their new numbers."""
        learned = {before[number]: length for number, length in self._policy.lengths.items()}
        self._policy.lengths = {
            number: learned[key] for number, key in enumerate(after) if key in learned
        }


def _zero_load_prefill_s(request: RequestSpec, cluster: ClusterSnapshot) -> float:
    """Seconds the prompt takes on the fastest worker for it when that is idle, as profiled."""
    return min(
        w.spec.perf_model.prefill_s(request.num_prompt_tokens, 0, w.spec.max_step_tokens)
        for w in cluster.prefilling_workers
    )


def _serves_both_phases(cluster: ClusterSnapshot) -> bool:
    return bool(cluster.prefilling_workers and cluster.decode_workers)


def _fits_some_memory(request: RequestSpec, cluster: ClusterSnapshot) -> bool:
    num_prompt_tokens = request.num_prompt_tokens
    num_tokens = num_prompt_tokens + request.sampling.max_tokens
    decoders = [
        w.spec
        for w in cluster.decode_workers
        if w.spec.blocks_for(num_tokens) <= w.spec.num_kv_blocks
    ]
    is_prefilled_elsewhere = any(
        w.spec.blocks_for(num_prompt_tokens) <= w.spec.num_kv_blocks
        for w in cluster.prefill_workers
    )
    return any(is_prefilled_elsewhere or spec.prefills_locally for spec in decoders)
