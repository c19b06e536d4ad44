"""The controller, where one worker does both phases of a request."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from headway.core.cluster import WorkerRole
from headway.core.controller import Controller
from headway.core.effects import (
    AbortOnWorkers,
    Effect,
    RelayTokens,
    SendAdmission,
    SendFinished,
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
)
from headway.core.planner.interface import PlannerParams
from headway.core.planner.policies import build_policies
from headway.core.request import FinishReason, RequestSpec, RequestState
from tests.core_objects import request, slo, worker_spec

BOTH = worker_spec(WorkerRole.DECODE, prefills_locally=True)
# Steps full of prompt are longer than the usual pace.
SPEC = request("r", max_tokens=4, slo=slo(tpot_s=0.2))
RESERVED = DecodeReserved("r", b"")
COMPUTED = PrefillComputed("r", queued_s=0.05, computed_s=0.2, num_cached_tokens=3)
COMPLETED = DecodeCompleted("r", FinishReason.LENGTH, 0, None)


def tokens(first_index: int, num_tokens: int = 1, request_id: str = "r") -> TokensProduced:
    return TokensProduced(request_id, first_index, (7,) * num_tokens, "x" * num_tokens)


def controller() -> Controller:
    policy = build_policies(PlannerParams(1.0, 100, {})).admission
    made = Controller(policy, max_requests=100)
    made.handle(WorkerJoined(BOTH), 0.0)
    return made


def run(made: Controller, spec: RequestSpec, events: Sequence[Event]) -> list[Effect]:
    """Effects of its arrival at 0 and of these events, 0.1 s apart."""
    effects = made.handle(RequestArrived(spec, 0.0), 0.0)
    for index, event in enumerate(events):
        effects += made.handle(event, 0.1 * (index + 1))
    return effects


def assert_empty(made: Controller) -> None:
    assert made.num_requests_running == made.num_best_effort_queued == 0
    assert all(len(worker.requests) == 0 for worker in made.workers)


def test_a_request_is_given_to_one_worker_once_and_nothing_is_moved() -> None:
    made = controller()
    effects = run(made, SPEC, [RESERVED, COMPUTED, tokens(0), tokens(1, 3), COMPLETED])
    admission, wake, decode, first, others, end = effects
    assert isinstance(admission, SendAdmission)
    assert admission.placement is not None
    assert admission.placement.is_local
    # 100 prompt tokens at 1 ms, of which the last yields the first output token.
    assert admission.placement.predicted_ttft_s == pytest.approx(0.1, rel=0.1)
    assert wake == WakeAt(60.0)
    assert decode == StartDecode(
        SPEC, "decode-0", admission.promise, None, 60.0, local_prefill=True, prefill_due_s=1.0
    )
    assert first == RelayTokens("r", 0, (7,), "x")
    assert others == RelayTokens("r", 1, (7, 7, 7), "xxx")
    assert isinstance(end, SendFinished)
    assert end.state is RequestState.SUCCEEDED
    assert end.usage.num_cached_tokens == 3
    assert end.usage.num_prompt_tokens_recomputed == 0
    assert end.kv_usage is None
    assert_empty(made)


def test_timings_are_those_of_the_stages() -> None:
    effects = run(controller(), SPEC, [RESERVED, COMPUTED, tokens(0), tokens(1, 3), COMPLETED])
    timings = effects[-1].timings  # type: ignore[union-attr]
    assert (timings.prefill_queued_s, timings.prefill_s) == (0.05, 0.2)
    assert timings.ttft_s == pytest.approx(0.3)
    # Sent at 0.1, computed 0.25 later; messages may come earlier than durations say.
    assert timings.handover_s == 0.0
    assert timings.slo_attained is True


def test_best_effort_is_placed_on_one_worker_too() -> None:
    effects = run(controller(), request("r"), [RESERVED])
    (decode,) = [effect for effect in effects if isinstance(effect, StartDecode)]
    assert decode.local_prefill
    assert (decode.promise, decode.prefill_due_s) == (None, None)


@pytest.mark.parametrize(
    "before",
    [[], [RESERVED], [RESERVED, COMPUTED], [RESERVED, COMPUTED, tokens(0)], [RESERVED, tokens(0)]],
)
@pytest.mark.parametrize(
    ("last", "state", "reason"),
    [
        (CancelRequested("r", CancelCause.ASKED), RequestState.CANCELLED, None),
        (
            AttemptFailed("r", WorkerRole.DECODE, FailureReason.ENGINE_FAILED, "broken"),
            RequestState.FAILED,
            FailureReason.ENGINE_FAILED,
        ),
        (WorkerLost("decode-0", "first"), RequestState.FAILED, FailureReason.WORKER_LOST),
        (tokens(3), RequestState.FAILED, FailureReason.TOKEN_ORDER),
        (TimePassed(), RequestState.DEADLINE_EXCEEDED, None),
    ],
)
def test_whatever_ends_a_request_first_ends_it(
    before: list[Event], last: Event, state: RequestState, reason: FailureReason | None
) -> None:
    made = controller()
    run(made, SPEC, before)
    effects = made.handle(last, 60.0 if isinstance(last, TimePassed) else 5.0)
    ends = [effect for effect in effects if isinstance(effect, SendFinished)]
    assert [(end.state, end.failure_reason) for end in ends] == [(state, reason)]
    # A call that failed has ended by itself.
    assert isinstance(last, AttemptFailed) or AbortOnWorkers("r") in effects
    assert_empty(made)
    assert [
        e for event in (RESERVED, COMPUTED, tokens(0), COMPLETED) for e in made.handle(event, 61.0)
    ] == []


def test_what_messages_take_becomes_part_of_the_prediction() -> None:
    made = controller()
    predictions = []
    for name in ("a", "b"):
        effects = made.handle(
            RequestArrived(request(name, max_tokens=4, slo=slo(10.0, 0.2)), 0.0), 0.0
        )
        assert isinstance(effects[0], SendAdmission)
        assert effects[0].placement is not None
        predictions.append(effects[0].placement)
        made.handle(DecodeReserved(name, b""), 0.0)
        made.handle(PrefillComputed(name, 0.0, 0.1, 0), 0.5)
        made.handle(tokens(0, request_id=name), 0.5)
        made.handle(DecodeCompleted(name, FinishReason.STOP, 0, None), 0.6)
    # 0.5 s to the first token, of which the engine explains 0.1.
    assert predictions[1].predicted_ttft_s - predictions[0].predicted_ttft_s > 0.39
    # The worker is told to be done so much earlier.
    assert predictions[1].handover_allowance_s - predictions[0].handover_allowance_s > 0.39


def test_a_prompt_is_in_the_books_until_its_first_token_and_a_decode_after() -> None:
    made = controller()
    run(made, SPEC, [RESERVED])
    (worker,) = made.workers
    assert worker.requests["arrives_at_s"][0] == 0.1
    assert worker.requests["next_due_at_s"][0] == worker.requests["prefill_due_at_s"][0] == 1.0
    assert (worker.requests["phase"][0], worker.requests["num_blocks"][0]) == (0, 0)
    made.handle(COMPUTED, 0.2)
    made.handle(tokens(0), 0.2)
    (worker,) = made.workers
    assert (worker.requests["phase"][0], worker.requests["num_blocks"][0]) == (2, 10)
    assert worker.requests["next_due_at_s"][0] == pytest.approx(1.2)
    assert worker.last_prefill_ended_at_s == 0.2


def test_with_a_prefill_worker_beside_it_only_what_moves_is_sent_there() -> None:
    made = controller()
    made.handle(WorkerJoined(worker_spec(WorkerRole.PREFILL)), 0.0)
    effects = run(made, SPEC, [RESERVED])
    assert not any(isinstance(effect, StartPrefill) for effect in effects)
    assert len(made.workers[1].requests) == 0


# Roles that change while requests are served.


def separate_controller() -> Controller:
    made = Controller(build_policies(PlannerParams(1.0, 100, {})).admission, max_requests=100)
    made.handle(WorkerJoined(worker_spec(WorkerRole.PREFILL)), 0.0)
    made.handle(WorkerJoined(worker_spec(WorkerRole.DECODE)), 0.0)
    return made


def is_placed_locally(made: Controller, name: str, at_s: float) -> bool:
    asked = request(name, max_tokens=4, slo=slo(tpot_s=0.2))
    effects = made.handle(RequestArrived(asked, at_s), at_s)
    (decode,) = [effect for effect in effects if isinstance(effect, StartDecode)]
    return decode.local_prefill


def test_a_worker_gets_prompts_once_it_says_that_it_takes_them() -> None:
    made = separate_controller()
    assert made.handle(RoleAsked("decode-0", True), 0.0) == [SetRole("decode-0", True)]
    assert not is_placed_locally(made, "a", 0.1)
    assert made.handle(RoleTaken("decode-0", "an earlier start", True), 0.2) == []
    assert not is_placed_locally(made, "b", 0.2)
    made.handle(RoleTaken("decode-0", "first", True), 0.3)
    assert is_placed_locally(made, "c", 0.3)


def test_a_worker_that_is_to_end_is_told_when_its_prompts_are_computed() -> None:
    made = controller()
    made.handle(WorkerJoined(worker_spec(WorkerRole.PREFILL)), 0.0)
    assert is_placed_locally(made, "r", 0.0)
    assert made.handle(RoleAsked("decode-0", False), 0.1) == []
    assert not is_placed_locally(made, "moves", 0.1)
    assert made.handle(RESERVED, 0.2) == made.handle(COMPUTED, 0.3) == []
    assert made.handle(tokens(0), 0.3)[-1] == SetRole("decode-0", False)
    made.handle(RoleTaken("decode-0", "first", False), 0.4)
    assert not is_placed_locally(made, "later", 0.5)
    assert made.handle(COMPLETED, 0.6)[-1].state is RequestState.SUCCEEDED  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "end", [CancelRequested("r", CancelCause.ASKED), TimePassed()], ids=["cancelled", "too late"]
)
def test_a_prompt_that_is_given_up_holds_nobody_up(end: Event) -> None:
    made = controller()
    assert is_placed_locally(made, "r", 0.0)
    made.handle(RoleAsked("decode-0", False), 0.1)
    assert made.handle(end, 60.0)[-1] == SetRole("decode-0", False)


def test_the_last_word_on_a_role_counts() -> None:
    made = separate_controller()
    made.handle(RoleAsked("decode-0", True), 0.0)
    assert made.handle(RoleAsked("decode-0", False), 0.0) == [SetRole("decode-0", False)]
    # It takes one role after the other, and the first is no longer wanted.
    made.handle(RoleTaken("decode-0", "first", True), 0.1)
    assert not is_placed_locally(made, "a", 0.1)
    made.handle(RoleTaken("decode-0", "first", False), 0.2)
    assert not is_placed_locally(made, "b", 0.2)


def test_a_worker_that_comes_back_says_itself_what_it_does() -> None:
    made = separate_controller()
    made.handle(RoleAsked("decode-0", False), 0.0)
    made.handle(WorkerJoined(BOTH), 0.1)
    assert is_placed_locally(made, "a", 0.2)
    assert made.handle(RoleAsked("nobody", True), 0.3) == []
