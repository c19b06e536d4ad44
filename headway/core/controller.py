"""The controller's state machine: events in, effects out.

One request: StartDecode reserves a place on the decode worker and learns where the pages go;
StartPrefill computes the prompt and sends them there; then the decode worker's tokens are
relayed until it is done. Where one worker is chosen for both phases, StartDecode is all it gets:
the worker computes the prompt and goes on. Whatever ends the request first ends it for good: it
gets one SendFinished, its calls are aborted, and later events that name it mean nothing.
"""

from __future__ import annotations

from typing import assert_never

from headway.core.cluster import WorkerLoad, WorkerRole, WorkerSnapshot, WorkerSpec
from headway.core.cluster_book import ClusterBook
from headway.core.effects import AbortOnWorkers, Effect, RelayTokens, StartPrefill
from headway.core.events import (
    AttemptFailed,
    CancelCause,
    CancelRequested,
    DecodeCompleted,
    DecodeReserved,
    Event,
    FailureReason,
    PrefillComputed,
    RequestArrived,
    RoleAsked,
    RoleTaken,
    TimePassed,
    TokensProduced,
    WorkerJoined,
    WorkerLost,
    WorkerReported,
)
from headway.core.intake import Intake
from headway.core.planner.interface import AdmissionPolicy
from headway.core.progress import Progress
from headway.core.request import RequestState
from headway.core.request_book import RequestBook
from headway.core.roles import Roles


class Controller:
    """Admits, places and relays; every token passes here, no KV does.

    The work per token does not grow with the number of requests.
    """

    def __init__(self, policy: AdmissionPolicy, *, max_requests: int) -> None:
        """Args: max_requests: beyond so many admitted and not ended, requests are refused."""
        self._policy = policy
        self._cluster = ClusterBook()
        self._requests = RequestBook()
        self._intake = Intake(policy, self._cluster, self._requests, max_requests)
        self._roles = Roles()
        self._room_changed = False

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """What must be done because `event` happened at `now_s`."""
        effects = self._effects(event, now_s)
        if self._room_changed:
            self._room_changed = False
            effects += self._place_queued(now_s)
        effects += self._roles.ended(self._cluster)
        return effects

    @property
    def workers(self) -> list[WorkerSnapshot]:
        """All workers, draining ones too, sorted by id."""
        return self._cluster.workers()

    @property
    def num_best_effort_queued(self) -> int:
        return self._requests.num_queued

    @property
    def num_requests_running(self) -> int:
        """Admitted and not ended, those in the best-effort queue left out."""
        return len(self._requests) - self._requests.num_queued

    def has_request(self, request_id: str) -> bool:
        return self._requests.get(request_id) is not None

    def _effects(self, event: Event, now_s: float) -> list[Effect]:  # noqa: C901, PLR0911, PLR0912 - one line per event
        match event:
            case TokensProduced():
                return self._tokens_produced(event, now_s)
            case RequestArrived(request, arrived_at_s):
                return self._intake.arrived(request, arrived_at_s, now_s)
            case DecodeReserved():
                return self._reserved(event, now_s)
            case PrefillComputed():
                return self._computed(event, now_s)
            case DecodeCompleted():
                return self._completed(event, now_s)
            case AttemptFailed():
                return self._attempt_failed(event, now_s)
            case CancelRequested(request_id, cause):
                return self._cancelled(request_id, cause, now_s)
            case TimePassed():
                return self._time_passed(now_s)
            case WorkerReported(worker_id, incarnation, load):
                return self._reported(worker_id, incarnation, load)
            case WorkerJoined(spec):
                return self._joined(spec, now_s)
            case WorkerLost(worker_id, incarnation):
                return self._lost(worker_id, incarnation, now_s)
            case RoleAsked():
                return self._role_asked(event)
            case RoleTaken():
                return self._role_taken(event)
            case _:
                assert_never(event)

    def _joined(self, spec: WorkerSpec, now_s: float) -> list[Effect]:
        previous = self._cluster.incarnation(spec.worker_id)
        effects = self._lost(spec.worker_id, previous, now_s) if previous is not None else []
        self._cluster.join(spec)
        self._room_changed = True
        return effects

    def _reported(self, worker_id: str, incarnation: str, load: WorkerLoad) -> list[Effect]:
        if self._cluster.incarnation(worker_id) == incarnation:
            self._cluster.report(worker_id, load)
            self._room_changed = True
        return []

    def _role_asked(self, event: RoleAsked) -> list[Effect]:
        if self._cluster.incarnation(event.worker_id) is None:
            return []
        wants = event.prefills_locally
        return [*self._roles.ask(self._cluster, event.worker_id, prefills_locally=wants)]

    def _role_taken(self, event: RoleTaken) -> list[Effect]:
        if self._cluster.incarnation(event.worker_id) == event.incarnation:
            takes = event.prefills_locally
            self._roles.taken(self._cluster, event.worker_id, prefills_locally=takes)
            self._room_changed = True
        return []

    def _lost(self, worker_id: str, incarnation: str, now_s: float) -> list[Effect]:
        if self._cluster.incarnation(worker_id) != incarnation:
            return []
        self._roles.forget(worker_id)
        effects: list[Effect] = []
        message = f"the connection to worker {worker_id} ended"
        for request_id in self._cluster.lose(worker_id):
            progress = self._requests[request_id]
            effects += self._fail(progress, FailureReason.WORKER_LOST, message, now_s)
        return effects

    def _place_queued(self, now_s: float) -> list[Effect]:
        """Start best-effort requests that fit now, and fail one that would block the others."""
        effects: list[Effect] = []
        while True:
            effects += self._intake.place_queued(now_s)
            too_large = self._intake.first_if_too_large(now_s)
            if too_large is None:
                return effects
            message = "the only workers with enough KV memory for it are gone"
            effects += self._fail(too_large, FailureReason.WORKER_LOST, message, now_s)

    def _reserved(self, event: DecodeReserved, now_s: float) -> list[Effect]:
        progress = self._requests.get(event.request_id)
        if progress is None or progress.placement is None or progress.prefill_sent_at_s is not None:
            return []
        progress.prefill_sent_at_s = now_s
        self._cluster.prefill_sent(progress, now_s)
        if progress.prefills_locally:
            return []
        return [
            StartPrefill(
                request=progress.spec,
                worker_id=progress.placement.prefill_worker_id,
                due_s=progress.prefill_due_s(now_s),
                step_cap_s=progress.placement.step_cap_s,
                kv_handle=event.kv_handle,
                remaining_s=progress.deadline_at_s - now_s,
            )
        ]

    def _computed(self, event: PrefillComputed, now_s: float) -> list[Effect]:
        progress = self._requests.get(event.request_id)
        if progress is None or not progress.prefill_runs:
            return []
        progress.prefill_runs = False
        progress.prefill_result = event
        self._observe(progress, now_s)
        self._cluster.computed(progress, now_s)
        if progress.state is not RequestState.PREFILLING:
            self._cluster.handed_over(progress)
        elif not progress.prefills_locally:
            progress.move_to(RequestState.TRANSFERRING)
        self._room_changed = True
        return []

    def _tokens_produced(self, event: TokensProduced, now_s: float) -> list[Effect]:
        progress = self._requests.get(event.request_id)
        if progress is None:
            return []
        num_before = progress.num_output_tokens
        end = event.first_index + len(event.token_ids)
        if event.first_index < num_before and end <= num_before:
            return []  # a duplicate
        max_tokens = progress.spec.sampling.max_tokens
        in_order = event.first_index == num_before and end <= max_tokens
        if not in_order or progress.prefill_sent_at_s is None:
            message = f"tokens [{event.first_index}, {end}) came after {num_before} of {max_tokens}"
            return self._fail(progress, FailureReason.TOKEN_ORDER, message, now_s)
        if event.token_ids:
            if progress.num_output_tokens == 0 and not progress.prefills_locally:
                self._observe(progress, now_s)
            progress.count_tokens(event.token_ids, now_s)
            self._cluster.decoded(progress)
        if progress.state is not RequestState.DECODING:
            progress.move_to(RequestState.DECODING)
            if not progress.prefill_runs:
                self._cluster.handed_over(progress)
        return [RelayTokens(event.request_id, event.first_index, event.token_ids, event.text)]

    def _observe(self, progress: Progress, now_s: float) -> None:
        for worker in self._cluster.prefilling_workers_of(progress):
            self._policy.observe(worker, now_s)

    def _completed(self, event: DecodeCompleted, now_s: float) -> list[Effect]:
        progress = self._requests.get(event.request_id)
        if progress is None:
            return []
        if progress.prefill_sent_at_s is None:
            message = "the decode ended before it began"
            return self._fail(progress, FailureReason.TOKEN_ORDER, message, now_s)
        progress.decode_runs = False
        progress.completion = event
        if progress.state is not RequestState.DECODING:
            progress.move_to(RequestState.DECODING)
        return self._end(progress, RequestState.SUCCEEDED, None, "", now_s)

    def _attempt_failed(self, event: AttemptFailed, now_s: float) -> list[Effect]:
        progress = self._requests.get(event.request_id)
        if progress is None:
            return []
        if event.role is WorkerRole.PREFILL:
            if not progress.prefill_runs:
                return []
            progress.prefill_runs = False
        else:
            progress.decode_runs = False
        if now_s >= progress.deadline_at_s:
            return self._expire(progress, now_s)
        return self._fail(progress, event.reason, event.message, now_s)

    def _cancelled(self, request_id: str, cause: CancelCause, now_s: float) -> list[Effect]:
        progress = self._requests.get(request_id)
        if progress is None:
            return []
        return self._end(progress, RequestState.CANCELLED, None, cause.value, now_s)

    def _time_passed(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for progress in self._requests.pop_due(now_s):
            effects += self._expire(progress, now_s)
        return [*effects, *self._requests.wake()]

    def _expire(self, progress: Progress, now_s: float) -> list[Effect]:
        message = f"not done within its deadline of {progress.spec.deadline_s:g} s"
        return self._end(progress, RequestState.DEADLINE_EXCEEDED, None, message, now_s)

    def _fail(
        self, progress: Progress, reason: FailureReason, message: str, now_s: float
    ) -> list[Effect]:
        return self._end(progress, RequestState.FAILED, reason, message, now_s)

    def _end(
        self,
        progress: Progress,
        state: RequestState,
        failure: FailureReason | None,
        message: str,
        now_s: float,
    ) -> list[Effect]:
        request_id = progress.spec.request_id
        self._requests.remove(request_id)
        self._observe(progress, now_s)
        self._cluster.drop(progress, now_s)
        self._room_changed = True
        finished = progress.finished(state, failure, message, now_s)
        if progress.prefill_runs or progress.decode_runs:
            return [AbortOnWorkers(request_id), finished]
        return [finished]
