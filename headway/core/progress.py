"""How far one admitted request has come."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from headway.core.effects import SendFinished, Timings, Usage
from headway.core.events import DecodeCompleted, FailureReason, PrefillComputed
from headway.core.planner.interface import Placement
from headway.core.request import TRANSITIONS, RequestSpec, RequestState
from headway.core.slo import DemandLine, Promise


@dataclass(slots=True)
class Progress:
    """One request from admission to its end.

    Attributes:
        promise: None when best effort.
        placement: None while it waits in the best-effort queue.
        number: in the order of arrival.
        prefill_due_at_s: the prompt must be computed by then for the promise to hold; infinite
            when best effort, or not placed yet.
        kv_arrives_at_s: when all KV pages are predicted to be on the decode worker.
        prefill_sent_at_s: when the prompt went to the worker that computes it.
        prefill_runs, decode_runs: whether a worker was asked and has not answered for good.
    """

    spec: RequestSpec
    arrived_at_s: float
    promise: Promise | None
    number: int
    state: RequestState = RequestState.QUEUED
    placement: Placement | None = None
    prefill_due_at_s: float = math.inf
    kv_arrives_at_s: float = math.inf
    placed_at_s: float | None = None
    prefill_sent_at_s: float | None = None
    prefill_runs: bool = False
    decode_runs: bool = False
    prefill_result: PrefillComputed | None = None
    num_output_tokens: int = 0
    first_token_at_s: float | None = None
    last_token_at_s: float | None = None
    completion: DecodeCompleted | None = None
    demand_line: DemandLine | None = field(init=False)

    def __post_init__(self) -> None:
        self.demand_line = (
            DemandLine(self.promise, self.arrived_at_s) if self.promise is not None else None
        )

    @property
    def guaranteed(self) -> bool:
        return self.promise is not None

    @property
    def prefills_locally(self) -> bool:
        """Whether the decode worker computes the prompt itself."""
        return self.placement is not None and self.placement.is_local

    def prefill_due_s(self, now_s: float) -> float | None:
        """How long from now until the prompt must be computed; None when best effort."""
        return self.prefill_due_at_s - now_s if self.guaranteed else None

    def promise_from(self, now_s: float) -> Promise | None:
        """The promise as if the request arrived now; its TTFT is negative once it is late."""
        if self.promise is None:
            return None
        return replace(self.promise, ttft_s=self.arrived_at_s + self.promise.ttft_s - now_s)

    @property
    def deadline_at_s(self) -> float:
        return self.arrived_at_s + self.spec.deadline_s

    @property
    def computed_at_s(self) -> float | None:
        """When the prompt's last step ended, from the worker's own durations."""
        if self.prefill_result is None or self.prefill_sent_at_s is None:
            return None
        result = self.prefill_result
        return self.prefill_sent_at_s + result.queued_s + result.computed_s

    def beside_engine_s(self, decode_step_s: float) -> float | None:
        """What the way to the first token took beside its prefill and one decode step.

        The step that ends a prompt on a decode worker yields the first token: no other one comes
        then. None before the first token, or before the prompt's worker answered.
        """
        result = self.prefill_result
        if self.first_token_at_s is None or self.placed_at_s is None or result is None:
            return None
        elapsed_s = self.first_token_at_s - self.placed_at_s
        own_step_s = 0.0 if self.prefills_locally else decode_step_s
        return max(0.0, elapsed_s - result.queued_s - result.computed_s - own_step_s)

    def move_to(self, state: RequestState) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} cannot become {state}"
        self.state = state

    def place(self, placement: Placement, now_s: float) -> None:
        """Note where the request runs from now on."""
        self.placement = placement
        self.placed_at_s = now_s
        self.prefill_runs = self.decode_runs = True
        self.move_to(RequestState.PREFILLING)
        self.kv_arrives_at_s = self.arrived_at_s + placement.predicted_kv_arrival_s
        if self.promise is not None:
            due_at_s = self.arrived_at_s + self.promise.ttft_s
            self.prefill_due_at_s = due_at_s - placement.handover_allowance_s

    def count_tokens(self, token_ids: tuple[int, ...], now_s: float) -> None:
        """Note tokens that leave for the client now."""
        if not token_ids:
            return
        if self.first_token_at_s is None:
            self.first_token_at_s = now_s
        self.last_token_at_s = now_s
        self.num_output_tokens += len(token_ids)
        if self.demand_line is not None:
            for token_id in token_ids:
                self.demand_line.token(token_id, now_s)

    def finished(
        self, state: RequestState, failure: FailureReason | None, message: str, now_s: float
    ) -> SendFinished:
        """Close the books of this request."""
        self.move_to(state)
        result, completion = self.prefill_result, self.completion
        return SendFinished(
            request_id=self.spec.request_id,
            state=state,
            finish_reason=completion.finish_reason if completion else None,
            failure_reason=failure,
            message=message,
            usage=Usage(
                num_prompt_tokens=self.spec.num_prompt_tokens,
                num_output_tokens=self.num_output_tokens,
                num_cached_tokens=result.num_cached_tokens if result else 0,
                num_prompt_tokens_recomputed=(
                    completion.num_prompt_tokens_recomputed if completion else 0
                ),
            ),
            timings=self._timings(now_s),
            kv_usage=completion.kv_usage if completion else None,
        )

    def _timings(self, now_s: float) -> Timings:
        first_at_s, last_at_s = self.first_token_at_s, self.last_token_at_s
        handover_s = ttft_s = tpot_s = None
        if first_at_s is not None and last_at_s is not None:
            ttft_s = first_at_s - self.arrived_at_s
            if self.computed_at_s is not None:
                handover_s = max(0.0, first_at_s - self.computed_at_s)
            if self.num_output_tokens > 1:
                tpot_s = (last_at_s - first_at_s) / (self.num_output_tokens - 1)
        return Timings(
            queued_s=(self.placed_at_s if self.placed_at_s is not None else now_s)
            - self.arrived_at_s,
            prefill_queued_s=self.prefill_result.queued_s if self.prefill_result else None,
            prefill_s=self.prefill_result.computed_s if self.prefill_result else None,
            handover_s=handover_s,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            e2e_latency_s=(last_at_s if last_at_s is not None else now_s) - self.arrived_at_s,
            slo_attained=(
                self.state is RequestState.SUCCEEDED and self.demand_line.attained
                if self.demand_line
                else None
            ),
        )
