"""One request's spans and metrics, as the controller sees it."""

from __future__ import annotations

from headway.core.effects import SendAdmission, SendFinished, SendRefusal
from headway.core.planner.interface import Placement
from headway.core.request import RequestSpec, RequestState
from headway.core.slo import Promise
from headway.ports.telemetry import AttributeValue, RequestOutcome, Span, Telemetry


class RequestTrace:
    """The span of one Generate call and its decision."""

    def __init__(self, telemetry: Telemetry, span: Span, request: RequestSpec, model: str) -> None:
        """Args: span: of the call, open; `finish` and `refuse` say on it what became of it."""
        self._telemetry = telemetry
        self._span = span
        self._request = request
        self._guaranteed = False
        span.set(
            {
                "gen_ai.operation.name": "text_completion",
                "gen_ai.provider.name": "headway",
                "gen_ai.request.model": model,
                "gen_ai.request.max_tokens": request.sampling.max_tokens,
                "gen_ai.usage.input_tokens": request.num_prompt_tokens,
                "headway.request_id": request.request_id,
                "headway.tier": request.tier,
            }
        )
        self._admit_span = telemetry.start_span("slo.admit", parent=span.traceparent)

    @property
    def traceparent(self) -> str:
        return self._span.traceparent

    def admit(self, effect: SendAdmission) -> None:
        self._guaranteed = effect.promise is not None
        decision = "GUARANTEED" if self._guaranteed else "BEST_EFFORT"
        attributes: dict[str, AttributeValue] = {
            "headway.decision": decision,
            "headway.plan_id": effect.plan_id,
        }
        if effect.binding_constraint is not None:
            attributes["headway.binding_constraint"] = effect.binding_constraint.value
        attributes |= _placement_attributes(effect.placement)
        self._admit_span.set(attributes)
        self._admit_span.end()
        self._span.set(_promise_attributes(effect.promise, effect.placement))
        self._telemetry.admission_decided(self._request.tier, decision)

    def refuse(self, effect: SendRefusal) -> None:
        constraint = effect.refusal.binding_constraint.value
        self._admit_span.set(
            {
                "headway.decision": "REFUSED",
                "headway.plan_id": effect.plan_id,
                "headway.binding_constraint": constraint,
            }
        )
        self._admit_span.end()
        self._telemetry.admission_decided(self._request.tier, constraint)

    def finish(self, effect: SendFinished) -> None:
        timings, usage = effect.timings, effect.usage
        attributes: dict[str, AttributeValue] = {
            "gen_ai.usage.output_tokens": usage.num_output_tokens,
            "headway.state": effect.state.value,
        }
        if timings.ttft_s is not None:
            attributes["headway.actual_ttft_s"] = timings.ttft_s
        if timings.tpot_s is not None:
            attributes["headway.actual_tpot_s"] = timings.tpot_s
        attained = effect.state is RequestState.SUCCEEDED and timings.slo_attained is True
        if self._guaranteed:
            attributes["headway.slo.attained"] = attained
        self._span.set(attributes)
        self._telemetry.request_finished(
            RequestOutcome(
                tier=self._request.tier,
                state=effect.state.value,
                guaranteed=self._guaranteed,
                attained=attained,
                num_prompt_tokens=usage.num_prompt_tokens,
                num_output_tokens=usage.num_output_tokens,
                ttft_s=timings.ttft_s,
                tpot_s=timings.tpot_s,
                e2e_latency_s=timings.e2e_latency_s,
            )
        )


def _placement_attributes(placement: Placement | None) -> dict[str, AttributeValue]:
    if placement is None:
        return {}
    return {
        "headway.prefill_worker_id": placement.prefill_worker_id,
        "headway.decode_worker_id": placement.decode_worker_id,
        "headway.predicted_ttft_s": placement.predicted_ttft_s,
        "headway.predicted_tpot_s": placement.predicted_tpot_s,
    }


def _promise_attributes(
    promise: Promise | None, placement: Placement | None
) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {}
    if promise is not None:
        attributes["headway.slo.ttft_s"] = promise.ttft_s
        attributes["headway.slo.tpot_s"] = promise.tightest_tpot_s
    if placement is not None:
        attributes["headway.predicted_ttft_s"] = placement.predicted_ttft_s
        attributes["headway.predicted_tpot_s"] = placement.predicted_tpot_s
    return attributes
