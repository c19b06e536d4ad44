"""Promise a request only if the perf model says that it, and all before it, will be on time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headway.core.cluster import ClusterSnapshot, DecodeTask, PrefillTask, WorkerSnapshot
from headway.core.planner.interface import (
    Constraint,
    Decision,
    Guarantee,
    Placement,
    PlannerParams,
    Refuse,
    ServeBestEffort,
)
from headway.core.planner.prediction import (
    PrefillOutlook,
    decode_blocks,
    decode_step_s,
    prefill_blocks,
    prefill_outlook,
)
from headway.core.request import RequestSpec
from headway.core.slo import Slo

# Bounds of the advice when to come back: below, a refused caller would hammer the door;
# above, it would stay away longer than any forecast is good for.
MIN_RETRY_AFTER_S = 0.1
MAX_RETRY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class _Misfit:
    constraint: Constraint
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class _DecodePlace:
    worker: WorkerSnapshot
    step_s: float

    @property
    def handover_s(self) -> float:
        # The request waits for the step that runs when its pages are complete, then for its
        # own first one.
        return self.worker.overhead_s + 2 * self.step_s


@dataclass(frozen=True, slots=True)
class _Pair:
    """A prefill worker that would have computed the prompt in `prefilled_in_s`, and a place."""

    prefill_worker_id: str
    prefilled_in_s: float
    place: _DecodePlace

    @property
    def ttft_s(self) -> float:
        return self.prefilled_in_s + self.place.handover_s

    @property
    def preference(self) -> tuple[float, float, str, str]:
        """Least work to do goes first.

        The measured overhead is left out: it is learned from requests, so a worker that once
        looked slow would get none and look slow for ever. The ids break ties, so that a plan
        never depends on the order of registration.
        """
        decode_worker_id = self.place.worker.spec.worker_id
        return self.prefilled_in_s, self.place.step_s, self.prefill_worker_id, decode_worker_id

    def placement(self, elapsed_s: float) -> Placement:
        return Placement(
            prefill_worker_id=self.prefill_worker_id,
            decode_worker_id=self.place.worker.spec.worker_id,
            predicted_ttft_s=elapsed_s + self.ttft_s,
            predicted_tpot_s=self.place.step_s,
            predicted_handover_s=self.place.handover_s,
        )


@dataclass(frozen=True, slots=True)
class FeasibilityPolicy:
    """First come, first served: tests each pair of workers, takes the one with least backlog.

    A promise is checked once, against predictions that assume that every request uses all of
    its max_tokens, multiplied by the guard. Best effort counts like any other work, because
    nothing is preempted.
    """

    params: PlannerParams

    def decide(
        self, request: RequestSpec, cluster: ClusterSnapshot, elapsed_s: float = 0.0
    ) -> Decision:
        """See `AdmissionPolicy.decide`."""
        if not (cluster.prefill_workers and cluster.decode_workers):
            missing = "decode" if cluster.prefill_workers else "prefill"
            return Refuse(Constraint.NO_WORKER, f"no {missing} worker serves", 1.0)
        if self.is_too_large(request, cluster):
            return Refuse(
                Constraint.TOO_LARGE,
                "prompt and max_tokens need more KV memory than any worker has",
                MAX_RETRY_AFTER_S,
            )
        misfit = _Misfit(Constraint.NOT_ASKED, MIN_RETRY_AFTER_S)
        if request.slo is not None:
            match self._fit(request, request.slo, cluster, elapsed_s):
                case Guarantee() as guarantee:
                    return guarantee
                case _Misfit() as misfit:
                    if request.refuse_if_not_promised:
                        return self._refusal(request, cluster, elapsed_s, misfit)
        if cluster.num_best_effort_queued >= self.params.max_best_effort_queued:
            return Refuse(
                Constraint.QUEUE_FULL,
                f"{cluster.num_best_effort_queued} best-effort requests wait already",
                _clamped(max(misfit.retry_after_s, 1.0)),
            )
        return ServeBestEffort(misfit.constraint)

    def is_too_large(self, request: RequestSpec, cluster: ClusterSnapshot) -> bool:
        """See `AdmissionPolicy.is_too_large`."""
        has_both_roles = bool(cluster.prefill_workers and cluster.decode_workers)
        return has_both_roles and not _fits_some_memory(request, cluster)

    def place_best_effort(
        self, request: RequestSpec, cluster: ClusterSnapshot, elapsed_s: float = 0.0
    ) -> Placement | None:
        """See `AdmissionPolicy.place_best_effort`.

        A prefill worker holds at most one waiting best-effort prompt, or what fits in one
        step: more would only lengthen what a guaranteed prompt has to wait for.
        """
        prompt = PrefillTask(request.request_id, request.num_prompt_tokens, False, math.inf)
        task = _decode_task(request, math.inf)
        places = [
            place
            for worker in cluster.decode_workers
            if _has_decode_room(worker, request)
            and (place := self._sustained(worker, task)) is not None
        ]
        if not places:
            return None
        pairs = [
            _Pair(worker.spec.worker_id, outlook.backlog_s, place)
            for worker in cluster.prefill_workers
            if _has_prefill_room(worker, request) and _takes_best_effort(worker, request)
            if (outlook := self._harmless(worker, cluster.now_s, prompt)) is not None
            for place in places
        ]
        if not pairs:
            return None
        return min(pairs, key=lambda pair: pair.preference).placement(elapsed_s)

    def _fit(
        self, request: RequestSpec, slo: Slo, cluster: ClusterSnapshot, elapsed_s: float
    ) -> Guarantee | _Misfit:
        prefill_workers = [w for w in cluster.prefill_workers if _has_prefill_room(w, request)]
        decode_workers = [w for w in cluster.decode_workers if _has_decode_room(w, request)]
        if not prefill_workers or not decode_workers:
            return _Misfit(Constraint.KV_BLOCKS, _soonest_room_s(cluster))
        task = _decode_task(request, slo.tightest_tpot_s)
        places = [p for w in decode_workers if (p := self._sustained(w, task)) is not None]
        if not places:
            return _Misfit(Constraint.DECODE_RATE, _soonest_room_s(cluster))
        promise = slo.promise(zero_load_prefill_s(request, cluster))
        prompt = PrefillTask(request.request_id, request.num_prompt_tokens, True, math.inf)
        pairs = [
            _Pair(worker.spec.worker_id, outlook.backlog_s, place)
            for worker in prefill_workers
            if (outlook := self._harmless(worker, cluster.now_s, prompt)) is not None
            for place in places
        ]
        if not pairs:
            return _Misfit(Constraint.PREFILL_TIME, MIN_RETRY_AFTER_S)
        # What has passed since the arrival is certain: the guard is for what is predicted.
        bound_s = (promise.ttft_s - elapsed_s) / self.params.guard_ratio
        on_time = [pair for pair in pairs if pair.ttft_s <= bound_s]
        if not on_time:
            excess_s = min(pair.ttft_s for pair in pairs) - bound_s
            return _Misfit(Constraint.PREFILL_TIME, _clamped(excess_s))
        best = min(on_time, key=lambda pair: pair.preference)
        return Guarantee(best.placement(elapsed_s), promise)

    def _sustained(self, worker: WorkerSnapshot, task: DecodeTask) -> _DecodePlace | None:
        """The worker's steps with `task` added, if they stay within everybody's pace."""
        if len(worker.decodes) >= worker.spec.max_num_running:
            return None
        step_s = decode_step_s(worker, (task,))
        tightest_s = min((t.tpot_s for t in worker.decodes), default=math.inf)
        if step_s * self.params.guard_ratio > min(tightest_s, task.tpot_s):
            return None
        return _DecodePlace(worker, step_s)

    def _harmless(
        self, worker: WorkerSnapshot, now_s: float, prompt: PrefillTask
    ) -> PrefillOutlook | None:
        """The worker's prompts with `prompt` added, if no guaranteed one is late then.

        One that seems late without `prompt` also keeps it out: the prediction is on the safe
        side, so it may still be on time if nothing joins its last step.
        """
        if len(worker.prefills) >= worker.spec.max_num_running:
            return None
        outlook = prefill_outlook(worker, now_s, self.params.guard_ratio, (prompt,))
        return None if outlook.late else outlook

    def _refusal(
        self, request: RequestSpec, cluster: ClusterSnapshot, elapsed_s: float, misfit: _Misfit
    ) -> Refuse:
        fitting = (
            name
            for name, slo in sorted(self.params.tiers.items())
            if name != request.tier
            and isinstance(self._fit(request, slo, cluster, elapsed_s), Guarantee)
        )
        return Refuse(
            misfit.constraint,
            f"the bounds cannot be kept now: {_EXPLANATIONS[misfit.constraint]}",
            misfit.retry_after_s,
            next(fitting, None),
        )


_EXPLANATIONS = {
    Constraint.PREFILL_TIME: "the first token would be late",
    Constraint.DECODE_RATE: "tokens would not come fast enough",
    Constraint.KV_BLOCKS: "no worker has room for its KV cache",
}


def zero_load_prefill_s(request: RequestSpec, cluster: ClusterSnapshot) -> float:
    """Seconds the prompt takes on the fastest prefill worker when it is idle, as profiled."""
    return min(
        w.spec.perf_model.prefill_s(request.num_prompt_tokens, 0, w.spec.max_step_tokens)
        for w in cluster.prefill_workers
    )


def _decode_task(request: RequestSpec, tpot_s: float) -> DecodeTask:
    return DecodeTask(
        request.request_id, request.num_prompt_tokens, 0, request.sampling.max_tokens, tpot_s
    )


def _has_prefill_room(worker: WorkerSnapshot, request: RequestSpec) -> bool:
    spec = worker.spec
    num_blocks = prefill_blocks(worker) + spec.blocks_for(request.num_prompt_tokens)
    return num_blocks <= spec.num_kv_blocks


def _has_decode_room(worker: WorkerSnapshot, request: RequestSpec) -> bool:
    spec = worker.spec
    num_tokens = request.num_prompt_tokens + request.sampling.max_tokens
    num_blocks = decode_blocks(worker) + spec.blocks_for(num_tokens)
    return num_blocks <= spec.num_kv_blocks


def _takes_best_effort(worker: WorkerSnapshot, request: RequestSpec) -> bool:
    num_tokens = [task.num_prompt_tokens for task in worker.prefills if not task.guaranteed]
    fits_one_step = sum(num_tokens) + request.num_prompt_tokens <= worker.spec.max_step_tokens
    return len(num_tokens) < 2 or fits_one_step


def _fits_some_memory(request: RequestSpec, cluster: ClusterSnapshot) -> bool:
    num_prompt_tokens = request.num_prompt_tokens
    num_tokens = num_prompt_tokens + request.sampling.max_tokens
    return any(
        w.spec.blocks_for(num_prompt_tokens) <= w.spec.num_kv_blocks
        for w in cluster.prefill_workers
    ) and any(w.spec.blocks_for(num_tokens) <= w.spec.num_kv_blocks for w in cluster.decode_workers)


def _soonest_room_s(cluster: ClusterSnapshot) -> float:
    """Predicted time until some decode worker ends a request."""
    remaining_s = (
        (task.max_tokens - task.num_output_tokens) * decode_step_s(worker)
        for worker in cluster.decode_workers
        for task in worker.decodes
    )
    return _clamped(min(remaining_s, default=MIN_RETRY_AFTER_S))


def _clamped(retry_after_s: float) -> float:
    return min(max(retry_after_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
