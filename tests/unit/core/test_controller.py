from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.cluster import WorkerLoad, WorkerRole
from headway.core.controller import Controller
from headway.core.effects import (
    AbortOnWorkers,
    Effect,
    RelayTokens,
    SendAdmission,
    SendFinished,
    SendRefusal,
    SetRole,
    StartDecode,
    StartPrefill,
    WakeAt,
)
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
from headway.core.planner.interface import Constraint, PlannerParams
from headway.core.planner.policies import build_policies
from headway.core.request import FinishReason, RequestSpec, RequestState
from tests.core_objects import request, slo, worker_spec

PREFILL = worker_spec(WorkerRole.PREFILL)
DECODE = worker_spec(WorkerRole.DECODE)
BOTH = worker_spec(WorkerRole.DECODE, prefills_locally=True)
NEW_DECODE = worker_spec(WorkerRole.DECODE, incarnation="second")

RESERVED = DecodeReserved("r", b"target")
COMPUTED = PrefillComputed("r", queued_s=0.1, computed_s=0.2, num_cached_tokens=3)
COMPLETED = DecodeCompleted("r", FinishReason.LENGTH, 1, None)
PREFILL_FAILED = AttemptFailed("r", WorkerRole.PREFILL, FailureReason.ENGINE_FAILED, "broken")
DECODE_FAILED = AttemptFailed("r", WorkerRole.DECODE, FailureReason.KV_TRANSFER_FAILED, "broken")
CANCEL = CancelRequested("r", CancelCause.ASKED)
PREFILL_LOST = WorkerLost("prefill-0", "first")
DECODE_LOST = WorkerLost("decode-0", "first")

SPEC = request("r", max_tokens=4, slo=slo())


def tokens(first_index: int, num_tokens: int = 1, request_id: str = "r") -> TokensProduced:
    return TokensProduced(request_id, first_index, (7,) * num_tokens, "x" * num_tokens)


def arrived(spec: RequestSpec, at_s: float = 0.0) -> RequestArrived:
    return RequestArrived(spec, at_s)


def controller(*, max_requests: int = 100, max_queued: int = 100, join: bool = True) -> Controller:
    policy = build_policies(PlannerParams(1.0, max_queued, {})).admission
    made = Controller(policy, max_requests=max_requests)
    if join:
        made.handle(WorkerJoined(PREFILL), 0.0)
        made.handle(WorkerJoined(DECODE), 0.0)
    return made


def run(
    made: Controller, events: Sequence[Event], *, start_s: float = 0.0, step_s: float = 0.1
) -> list[Effect]:
    """Effects of these events, `step_s` apart."""
    effects: list[Effect] = []
    for index, event in enumerate(events):
        effects += made.handle(event, start_s + index * step_s)
    return effects


def finished(effects: Sequence[Effect]) -> list[SendFinished]:
    return [effect for effect in effects if isinstance(effect, SendFinished)]


def assert_empty(made: Controller) -> None:
    """Nothing is left of any request."""
    assert made.num_requests_running == made.num_best_effort_queued == 0
    for worker in made.workers:
        assert len(worker.requests) == 0


def test_the_step_cap_goes_where_the_prompt_is_computed() -> None:
    made = controller(join=False)
    for role in WorkerRole:
        made.handle(WorkerJoined(worker_spec(role, forms_steps_by_deadline=True)), 0.0)
    effects = run(made, [arrived(SPEC), RESERVED])
    (decode,) = [effect for effect in effects if isinstance(effect, StartDecode)]
    (prefill,) = [effect for effect in effects if isinstance(effect, StartPrefill)]
    assert prefill.step_cap_s is not None
    assert decode.step_cap_s is None
    caps = {worker.spec.role: worker.step_cap_s for worker in made.workers}
    assert caps == {WorkerRole.PREFILL: prefill.step_cap_s, WorkerRole.DECODE: math.inf}


def test_a_request_is_reserved_then_prefilled_then_relayed_then_finished() -> None:
    made = controller()
    effects = run(made, [arrived(SPEC), RESERVED, COMPUTED, tokens(0), tokens(1, 3), COMPLETED])
    admission, wake, decode, prefill, first, others, end = effects
    assert isinstance(admission, SendAdmission)
    assert admission.promise is not None
    assert wake == WakeAt(60.0)
    assert decode == StartDecode(SPEC, "decode-0", admission.promise, None, 60.0)
    assert isinstance(prefill, StartPrefill)
    # The first token is due 1 s after the arrival, 0.1 s ago; two steps of 11 ms come before it.
    assert prefill.due_s == pytest.approx(1.0 - 0.1 - 0.022)
    assert prefill == StartPrefill(SPEC, "prefill-0", prefill.due_s, None, b"target", 59.9)
    assert first == RelayTokens("r", 0, (7,), "x")
    assert others == RelayTokens("r", 1, (7, 7, 7), "xxx")
    assert isinstance(end, SendFinished)
    assert end.state is RequestState.SUCCEEDED
    assert end.finish_reason is FinishReason.LENGTH
    assert_empty(made)


def test_timings_are_those_of_the_stages() -> None:
    effects = run(
        controller(),
        [arrived(SPEC), RESERVED, COMPUTED, tokens(0), tokens(1, 3), COMPLETED],
        step_s=0.25,
    )
    timings = finished(effects)[0].timings
    assert timings.queued_s == 0.0
    assert timings.prefill_queued_s == 0.1
    assert timings.prefill_s == 0.2
    # Sent at 0.25, computed 0.3 later, first token at 0.75.
    assert timings.handover_s == pytest.approx(0.2)
    assert timings.ttft_s == pytest.approx(0.75)
    assert timings.tpot_s == pytest.approx(0.25 / 3)
    assert timings.e2e_latency_s == pytest.approx(1.0)
    assert timings.slo_attained is True


def test_a_late_first_token_is_a_missed_promise() -> None:
    effects = run(
        controller(), [arrived(SPEC), RESERVED, COMPUTED, tokens(0), COMPLETED], step_s=0.4
    )
    assert finished(effects)[0].timings.slo_attained is False


def test_only_what_succeeds_attains_its_promise() -> None:
    made = controller()
    run(made, [arrived(SPEC), RESERVED, COMPUTED, tokens(0)])
    assert finished(made.handle(CANCEL, 0.5))[0].timings.slo_attained is False


def test_time_spent_before_admission_counts_from_the_arrival() -> None:
    made = controller()
    late = made.handle(arrived(request("late", slo=slo(1.0))), 0.95)[0]
    assert isinstance(late, SendAdmission)
    assert late.binding_constraint is Constraint.PREFILL_TIME
    made = controller()
    effects = made.handle(arrived(replace(SPEC, deadline_s=5.0)), 0.5)
    admission = effects[0]
    assert isinstance(admission, SendAdmission)
    assert admission.placement is not None
    # 100 prompt tokens at 1 ms, two steps of 11 ms, and what has passed.
    assert admission.placement.predicted_ttft_s == pytest.approx(0.5 + 0.1 + 0.022, rel=0.1)
    assert WakeAt(5.0) in effects
    effects = run(made, [RESERVED, COMPUTED, tokens(0), COMPLETED], start_s=0.5, step_s=0.3)
    assert finished(effects)[0].timings.ttft_s == pytest.approx(1.1)
    assert finished(effects)[0].timings.slo_attained is False


def test_tokens_may_overtake_the_prefill_workers_answer() -> None:
    made = controller()
    effects = run(made, [arrived(SPEC), RESERVED, tokens(0), COMPUTED, tokens(1), COMPLETED])
    assert finished(effects)[0].state is RequestState.SUCCEEDED
    assert finished(effects)[0].usage.num_cached_tokens == 3
    assert_empty(made)


@pytest.mark.parametrize(
    ("before", "last", "state", "reason"),
    [
        ([], CANCEL, RequestState.CANCELLED, None),
        ([RESERVED], CANCEL, RequestState.CANCELLED, None),
        ([RESERVED, COMPUTED], CANCEL, RequestState.CANCELLED, None),
        ([RESERVED, COMPUTED, tokens(0)], CANCEL, RequestState.CANCELLED, None),
        ([], DECODE_FAILED, RequestState.FAILED, FailureReason.KV_TRANSFER_FAILED),
        ([RESERVED], DECODE_FAILED, RequestState.FAILED, FailureReason.KV_TRANSFER_FAILED),
        ([RESERVED], PREFILL_FAILED, RequestState.FAILED, FailureReason.ENGINE_FAILED),
        ([RESERVED], PREFILL_LOST, RequestState.FAILED, FailureReason.WORKER_LOST),
        ([RESERVED, COMPUTED], PREFILL_LOST, RequestState.FAILED, FailureReason.WORKER_LOST),
        ([RESERVED, COMPUTED], DECODE_LOST, RequestState.FAILED, FailureReason.WORKER_LOST),
        (
            [RESERVED],
            WorkerJoined(NEW_DECODE),
            RequestState.FAILED,
            FailureReason.WORKER_LOST,
        ),
        ([], tokens(0), RequestState.FAILED, FailureReason.TOKEN_ORDER),
        ([], COMPLETED, RequestState.FAILED, FailureReason.TOKEN_ORDER),
        ([RESERVED], tokens(1), RequestState.FAILED, FailureReason.TOKEN_ORDER),
        ([RESERVED], tokens(0, 5), RequestState.FAILED, FailureReason.TOKEN_ORDER),
        (
            [RESERVED, COMPUTED, tokens(0, 2)],
            tokens(1, 2),
            RequestState.FAILED,
            FailureReason.TOKEN_ORDER,
        ),
    ],
)
def test_whatever_ends_a_request_first_ends_it_on_both_workers(
    before: list[Event], last: Event, state: RequestState, reason: FailureReason | None
) -> None:
    made = controller()
    run(made, [arrived(SPEC), *before])
    effects = made.handle(last, 0.9)
    assert AbortOnWorkers("r") in effects
    assert [(end.state, end.failure_reason) for end in finished(effects)] == [(state, reason)]
    assert_empty(made)
    # And what comes late means nothing.
    late: list[Event] = [
        RESERVED,
        COMPUTED,
        tokens(0),
        COMPLETED,
        PREFILL_FAILED,
        DECODE_FAILED,
        CANCEL,
    ]
    assert run(made, late, start_s=1.0) == []


@pytest.mark.parametrize("before", [[], [RESERVED], [RESERVED, COMPUTED], [RESERVED, tokens(0)]])
def test_the_deadline_ends_a_request_wherever_it_is(before: list[Event]) -> None:
    made = controller()
    effects = run(made, [arrived(request("r", deadline_s=5.0)), *before])
    assert WakeAt(5.0) in effects
    assert finished(made.handle(TimePassed(), 4.9)) == []
    effects = made.handle(TimePassed(), 5.0)
    assert finished(effects)[0].state is RequestState.DEADLINE_EXCEEDED
    assert AbortOnWorkers("r") in effects
    assert_empty(made)


def test_wakes_follow_the_soonest_deadline() -> None:
    made = controller()
    effects = run(
        made,
        [
            arrived(request("a", deadline_s=50.0)),
            arrived(request("b", deadline_s=10.0)),
            arrived(request("c", deadline_s=20.0)),
        ],
        step_s=0.0,
    )
    assert [e.at_s for e in effects if isinstance(e, WakeAt)] == [50.0, 10.0]
    assert WakeAt(20.0) in made.handle(TimePassed(), 10.0)


def test_a_failed_prefill_call_does_not_matter_once_tokens_flow_from_its_pages() -> None:
    made = controller()
    run(made, [arrived(SPEC), RESERVED, COMPUTED, tokens(0)])
    assert made.handle(PREFILL_FAILED, 1.0) == []
    assert made.handle(PREFILL_LOST, 1.0) == []
    assert finished(made.handle(COMPLETED, 1.1))[0].state is RequestState.SUCCEEDED


def test_duplicate_tokens_are_dropped() -> None:
    made = controller()
    run(made, [arrived(SPEC), RESERVED, COMPUTED, tokens(0, 2)])
    assert made.handle(tokens(0, 2), 1.0) == []
    assert made.handle(tokens(1), 1.0) == []
    assert made.handle(tokens(2), 1.0) == [RelayTokens("r", 2, (7,), "x")]


def best_effort(request_id: str, num_prompt_tokens: int = 100) -> RequestSpec:
    return request(request_id, num_prompt_tokens=num_prompt_tokens)


def crowded_controller() -> Controller:
    """With room for two requests on its decode worker."""
    made = controller(join=False)
    made.handle(WorkerJoined(PREFILL), 0.0)
    made.handle(WorkerJoined(worker_spec(WorkerRole.DECODE, max_num_running=2)), 0.0)
    return made


def test_best_effort_waits_its_turn_and_starts_when_there_is_room() -> None:
    made = crowded_controller()
    effects = run(made, [arrived(best_effort(name)) for name in "abcd"], step_s=0.0)
    started = [e.request.request_id for e in effects if isinstance(e, StartDecode)]
    assert started == ["a", "b"]
    assert made.num_best_effort_queued == 2
    placements = [e.placement for e in effects if isinstance(e, SendAdmission)]
    assert [placement is None for placement in placements] == [False, False, True, True]
    made.handle(DecodeReserved("a", b""), 1.0)
    made.handle(PrefillComputed("a", 0.0, 0.1, 0), 1.2)
    made.handle(tokens(0, 100, "a"), 1.4)
    effects = made.handle(DecodeCompleted("a", FinishReason.LENGTH, 1, None), 1.5)
    assert [e.request.request_id for e in effects if isinstance(e, StartDecode)] == ["c"]
    ends = [made.handle(CancelRequested(name, CancelCause.ASKED), 2.0) for name in "cbd"]
    assert finished(ends[0])[0].timings.queued_s == 1.5
    assert_empty(made)


def test_a_short_request_does_not_overtake_those_that_wait() -> None:
    made = crowded_controller()
    run(made, [arrived(best_effort(name)) for name in "abc"], step_s=0.0)
    effects = made.handle(arrived(best_effort("d", num_prompt_tokens=1)), 0.0)
    assert not any(isinstance(effect, StartDecode) for effect in effects)


def test_a_queued_request_starts_when_a_worker_joins() -> None:
    made = crowded_controller()
    made.handle(WorkerReported("decode-0", "first", WorkerLoad(draining=True)), 0.0)
    refusal = made.handle(arrived(best_effort("a")), 0.0)[0]
    assert isinstance(refusal, SendRefusal)
    assert refusal.refusal.binding_constraint is Constraint.NO_WORKER
    made.handle(WorkerReported("decode-0", "first", WorkerLoad()), 0.0)
    run(made, [arrived(best_effort(name)) for name in "abc"], step_s=0.0)
    effects = made.handle(WorkerJoined(worker_spec(WorkerRole.DECODE, 1)), 0.0)
    assert [e.request.request_id for e in effects if isinstance(e, StartDecode)] == ["c"]


def test_what_fits_no_worker_that_is_left_does_not_block_the_queue() -> None:
    made = controller(join=False)
    made.handle(WorkerJoined(PREFILL), 0.0)
    small = worker_spec(WorkerRole.DECODE, num_kv_blocks=50, max_num_running=1)
    big = worker_spec(WorkerRole.DECODE, 1, num_kv_blocks=1000, max_num_running=1)
    made.handle(WorkerJoined(small), 0.0)
    made.handle(WorkerJoined(big), 0.0)
    large = request("large", max_tokens=1000)
    run(made, [arrived(best_effort("a")), arrived(best_effort("b")), arrived(large)], step_s=0.0)
    made.handle(arrived(best_effort("c")), 0.0)
    assert made.num_best_effort_queued == 2
    effects = made.handle(WorkerLost("decode-1", "first"), 1.0)
    ends = {end.request_id: end.failure_reason for end in finished(effects)}
    assert ends["large"] is FailureReason.WORKER_LOST
    assert "c" not in ends
    effects += [e for n in "ab" for e in made.handle(CancelRequested(n, CancelCause.ASKED), 2.0)]
    assert "c" in [e.request.request_id for e in effects if isinstance(e, StartDecode)]


def test_the_queue_waits_for_a_role_that_is_gone() -> None:
    made = crowded_controller()
    run(made, [arrived(best_effort(name)) for name in "abc"], step_s=0.0)
    assert "c" not in [end.request_id for end in finished(made.handle(DECODE_LOST, 1.0))]
    effects = made.handle(WorkerJoined(NEW_DECODE), 2.0)
    assert [e.request.request_id for e in effects if isinstance(e, StartDecode)] == ["c"]


def test_too_many_requests_are_refused() -> None:
    made = controller(max_requests=1)
    made.handle(arrived(best_effort("a")), 0.0)
    effects = made.handle(arrived(best_effort("b")), 0.0)
    assert len(effects) == 1
    assert isinstance(effects[0], SendRefusal)
    assert effects[0].refusal.binding_constraint is Constraint.QUEUE_FULL


def test_reports_and_losses_of_an_earlier_start_mean_nothing() -> None:
    made = controller()
    made.handle(WorkerJoined(NEW_DECODE), 0.0)
    made.handle(WorkerReported("decode-0", "first", WorkerLoad(draining=True)), 0.0)
    made.handle(WorkerLost("decode-0", "first"), 0.0)
    assert [w.spec.incarnation for w in made.workers] == ["second", "first"]
    assert not any(worker.load.draining for worker in made.workers)


def test_measured_overhead_becomes_part_of_the_prediction() -> None:
    made = controller()
    predictions = []
    for name in ("a", "b"):
        effects = made.handle(arrived(request(name, max_tokens=4, slo=slo(10.0))), 0.0)
        assert isinstance(effects[0], SendAdmission)
        assert effects[0].placement is not None
        predictions.append(effects[0].placement.predicted_ttft_s)
        made.handle(DecodeReserved(name, b""), 0.0)
        made.handle(PrefillComputed(name, 0.0, 0.1, 0), 0.1)
        made.handle(tokens(0, request_id=name), 0.5)
        made.handle(DecodeCompleted(name, FinishReason.STOP, 1, None), 0.6)
    # 0.5 s to the first token, of which engines explain 0.1 and 0.011.
    assert predictions[1] - predictions[0] > 0.389


def test_deadlines_of_ended_requests_do_not_pile_up() -> None:
    made = controller()
    for index in range(1000):
        name = f"r{index}"
        made.handle(arrived(best_effort(name)), 0.0)
        made.handle(CancelRequested(name, CancelCause.ASKED), 0.0)
    assert len(made._requests._deadlines._heap) < 100


REQUEST_IDS = ("a", "b", "c")


def any_event() -> st.SearchStrategy[Event]:
    """Anything a client or a worker might say, sensible or not."""
    ids = st.sampled_from(REQUEST_IDS)
    roles = st.sampled_from(list(WorkerRole))
    return st.one_of(
        st.builds(DecodeReserved, ids, st.just(b"target")),
        st.builds(PrefillComputed, ids, st.just(0.1), st.just(0.1), st.just(0)),
        st.builds(tokens, st.integers(0, 4), st.integers(0, 3), ids),
        st.builds(DecodeCompleted, ids, st.just(FinishReason.STOP), st.just(1), st.none()),
        st.builds(AttemptFailed, ids, roles, st.sampled_from(list(FailureReason)), st.just("")),
        st.builds(CancelRequested, ids, st.sampled_from(list(CancelCause))),
        st.just(TimePassed()),
        st.sampled_from([PREFILL_LOST, DECODE_LOST]),
        st.sampled_from([WorkerJoined(PREFILL), WorkerJoined(DECODE), WorkerJoined(BOTH)]),
        st.builds(RoleAsked, st.just("decode-0"), st.booleans()),
        st.builds(RoleTaken, st.just("decode-0"), st.just("first"), st.booleans()),
        st.just(WorkerReported("prefill-0", "first", WorkerLoad())),
        st.sampled_from(
            [arrived(request(n, max_tokens=4, slo=slo(), deadline_s=2.0)) for n in "ab"]
            + [arrived(request("c", max_tokens=4, deadline_s=2.0))]
        ),
    )


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(any_event(), st.floats(0, 0.5)), max_size=40))
def test_any_interleaving_gives_each_request_one_end_and_leaves_nothing(
    history: list[tuple[Event, float]],
) -> None:
    made = controller()
    now_s, log, seen = 0.0, [], set[str]()
    for event, gap_s in history:
        now_s += gap_s
        if isinstance(event, RequestArrived):
            if event.request.request_id in seen:
                continue  # ids are minted, so none comes twice
            seen.add(event.request.request_id)
            event = arrived(event.request, now_s)  # noqa: PLW2901 - it arrives now
        log += made.handle(event, now_s)
    log += made.handle(TimePassed(), now_s + 100.0)
    for request_id in seen:
        of_request = [e for e in log if _request_id(e) == request_id]
        answers = [e for e in of_request if isinstance(e, (SendAdmission, SendRefusal))]
        assert of_request[:1] == answers
        admitted = isinstance(answers[0], SendAdmission)
        ends = finished(of_request)
        assert len(ends) == (1 if admitted else 0)
        if admitted:
            assert of_request[-1] is ends[0]
            relayed = [e for e in of_request if isinstance(e, RelayTokens)]
            next_index = 0
            for relay in relayed:
                assert relay.first_index == next_index
                next_index += len(relay.token_ids)
            assert next_index == ends[0].usage.num_output_tokens
    assert_empty(made)


def _request_id(effect: Effect) -> str | None:
    match effect:
        case SendAdmission(request=spec) | StartDecode(request=spec) | StartPrefill(request=spec):
            return spec.request_id
        case WakeAt() | SetRole():
            return None
        case _:
            return effect.request_id
