from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headway.core.cluster import ClusterSnapshot, WorkerLoad, WorkerRole, WorkerSnapshot
from headway.core.planner.interface import (
    AdmissionPolicy,
    Constraint,
    Guarantee,
    PlannerParams,
    Refuse,
    ServeBestEffort,
)
from headway.core.planner.policies import build_policies
from headway.core.slo import Slo, StageSlo
from tests.core_objects import (
    DECODE_SPEC,
    PREFILL_SPEC,
    cluster,
    decode_worker,
    given_decode,
    given_prompt,
    prefill_worker,
    records,
    request,
    slo,
    worker_spec,
)


def policy(guard_ratio: float = 1.0, tiers: dict[str, Slo] | None = None) -> AdmissionPolicy:
    params = PlannerParams(guard_ratio, max_best_effort_queued=10, tiers=tiers or {})
    return build_policies(params).admission


IDLE = cluster(prefill_worker(), decode_worker())


def test_an_idle_cluster_promises_what_the_perf_model_says() -> None:
    decision = policy().decide(request(slo=slo()), IDLE)
    assert isinstance(decision, Guarantee)
    # Which steps the prompt is cut into is the batch former's affair, hence a tenth.
    # 100 prompt tokens at 1 ms; a step of one token, 10 ms, and one sequence, 1 ms; two steps.
    assert decision.placement.predicted_tpot_s == pytest.approx(0.011)
    assert decision.placement.predicted_ttft_s == pytest.approx(0.100 + 2 * 0.011, rel=0.1)
    assert decision.promise.ttft_s == 1.0


def test_a_slow_down_is_resolved_against_the_idle_prefill_time() -> None:
    decision = policy().decide(request(slo=Slo((StageSlo(0.1),), None, 3.0)), IDLE)
    assert isinstance(decision, Guarantee)
    assert decision.promise.ttft_s == pytest.approx(0.3)


BUSY_PREFILL = prefill_worker(given_prompt(950))
FULL_PREFILL = prefill_worker(spec=worker_spec(WorkerRole.PREFILL, num_kv_blocks=15))
SENDING_PREFILL = replace(FULL_PREFILL, requests=records(given_prompt(60, computed=True)))
FULL_DECODE = decode_worker(given_decode(), spec=worker_spec(WorkerRole.DECODE, num_kv_blocks=39))
CROWDED_DECODE = decode_worker(
    given_decode(), spec=worker_spec(WorkerRole.DECODE, max_num_running=1)
)
STRICT_DECODE = decode_worker(given_decode(tpot_s=0.0115))


@pytest.mark.parametrize(
    ("prefill", "decode", "binding"),
    [
        (BUSY_PREFILL, decode_worker(), Constraint.PREFILL_TIME),
        (SENDING_PREFILL, decode_worker(), Constraint.KV_BLOCKS),
        (prefill_worker(), FULL_DECODE, Constraint.KV_BLOCKS),
        (prefill_worker(), CROWDED_DECODE, Constraint.DECODE_RATE),
        (prefill_worker(), STRICT_DECODE, Constraint.DECODE_RATE),
        (
            prefill_worker(),
            decode_worker(load=WorkerLoad(step_time_ratio=10.0)),
            Constraint.DECODE_RATE,
        ),
        (
            prefill_worker(load=WorkerLoad(step_time_ratio=10.0)),
            decode_worker(),
            Constraint.PREFILL_TIME,
        ),
        (prefill_worker(), replace(decode_worker(), overhead_s=0.9), Constraint.PREFILL_TIME),
    ],
)
def test_each_constraint_stands_against_a_promise(
    prefill: WorkerSnapshot, decode: WorkerSnapshot, binding: Constraint
) -> None:
    busy = cluster(prefill, decode)
    assert policy().decide(request(slo=slo()), busy) == ServeBestEffort(binding)
    refusal = policy().decide(request(slo=slo(), refuse_if_not_promised=True), busy)
    assert isinstance(refusal, Refuse)
    assert refusal.binding_constraint is binding
    assert refusal.retry_after_s > 0


def test_the_guard_is_part_of_what_is_tested() -> None:
    asked = request(slo=slo(ttft_s=0.13))
    assert isinstance(policy(1.0).decide(asked, IDLE), Guarantee)
    assert policy(1.15).decide(asked, IDLE) == ServeBestEffort(Constraint.PREFILL_TIME)


def test_what_has_passed_since_the_arrival_is_not_there_to_spend() -> None:
    # 122 ms are needed, by the test of the idle cluster.
    asked = request(slo=slo(ttft_s=1.0))
    assert isinstance(policy().decide(asked, IDLE, 0.87), Guarantee)
    assert policy().decide(asked, IDLE, 0.89) == ServeBestEffort(Constraint.PREFILL_TIME)


def test_a_fast_moment_promises_nothing_more() -> None:
    fast = WorkerLoad(step_time_ratio=0.1)
    quick = cluster(prefill_worker(load=fast), decode_worker(load=fast))
    assert policy().decide(request(slo=slo()), quick) == policy().decide(request(slo=slo()), IDLE)


def test_work_that_is_done_no_longer_counts() -> None:
    started = prefill_worker(given_prompt(950, sent_at_s=0.0))
    now = cluster(started, decode_worker(), now_s=0.5)
    assert isinstance(policy().decide(request(slo=slo()), now), Guarantee)


def test_an_overrun_prompt_is_taken_to_need_one_more_step() -> None:
    stuck = prefill_worker(given_prompt(950, sent_at_s=0.0))
    decision = policy().decide(request(slo=slo()), cluster(stuck, decode_worker(), now_s=100.0))
    assert isinstance(decision, Guarantee)
    # The step that runs is one of 10 ms, with the one token that the worker is taken to lack.
    assert 0.122 <= decision.placement.predicted_ttft_s <= 0.122 + 0.022


def test_a_pair_that_fits_is_found_among_those_that_do_not() -> None:
    loaded = cluster(
        prefill_worker(given_prompt(50, due_at_s=1.0)),
        prefill_worker(spec=worker_spec(WorkerRole.PREFILL, 1)),
        prefill_worker(given_prompt(50, due_at_s=1.0), spec=worker_spec(WorkerRole.PREFILL, 2)),
        decode_worker(given_decode(tpot_s=0.1)),
        decode_worker(spec=worker_spec(WorkerRole.DECODE, 1)),
        decode_worker(given_decode(tpot_s=0.1), spec=worker_spec(WorkerRole.DECODE, 2)),
    )
    # 50 ms of another prompt are too many, and so is a second sequence.
    decision = policy().decide(request(slo=slo(ttft_s=0.15, tpot_s=0.0115)), loaded)
    assert isinstance(decision, Guarantee)
    assert decision.placement.prefill_worker_id == "prefill-1"
    assert decision.placement.decode_worker_id == "decode-1"


def test_measured_overhead_bars_only_the_worker_it_was_measured_on() -> None:
    slow = replace(decode_worker(spec=worker_spec(WorkerRole.DECODE, 1)), overhead_s=0.3)
    snapshot = cluster(prefill_worker(), decode_worker(), slow)
    decision = policy().decide(request(slo=slo(ttft_s=0.2)), snapshot)
    assert isinstance(decision, Guarantee)
    assert decision.placement.decode_worker_id == "decode-0"
    # It is still used where there is time for it.
    only_slow = cluster(prefill_worker(), slow)
    decision = policy().decide(request(slo=slo(ttft_s=1.0)), only_slow)
    assert isinstance(decision, Guarantee)
    assert decision.placement.predicted_ttft_s == pytest.approx(0.1 + 0.3 + 0.022, rel=0.1)


def test_a_refusal_names_a_tier_that_fits_and_when_to_come_back() -> None:
    tiers = {"tight": slo(ttft_s=0.01), "loose": slo(ttft_s=2.0)}
    asked = request(slo=slo(ttft_s=1.0), tier="asked", refuse_if_not_promised=True)
    refusal = policy(tiers=tiers).decide(asked, cluster(BUSY_PREFILL, decode_worker()))
    assert isinstance(refusal, Refuse)
    assert refusal.tier_that_fits == "loose"
    # 950 ms of backlog, 100 ms of prompt and 22 ms of hand-over, against 1 s.
    assert refusal.retry_after_s == pytest.approx(0.1)


def test_decode_room_is_predicted_from_the_request_that_ends_first() -> None:
    decode = decode_worker(
        given_decode(max_tokens=300, done=100),
        spec=worker_spec(WorkerRole.DECODE, num_kv_blocks=59),
    )
    asked = request(slo=slo(), refuse_if_not_promised=True)
    refusal = policy().decide(asked, cluster(prefill_worker(), decode))
    assert isinstance(refusal, Refuse)
    assert refusal.retry_after_s == pytest.approx(200 * 0.011)


@pytest.mark.parametrize("missing", [cluster(prefill_worker()), cluster(decode_worker())])
def test_without_one_role_nothing_is_served(missing: ClusterSnapshot) -> None:
    refusal = policy().decide(request(), missing)
    assert isinstance(refusal, Refuse)
    assert refusal.binding_constraint is Constraint.NO_WORKER


def test_what_fits_no_memory_is_never_served() -> None:
    refusal = policy().decide(request(max_tokens=20_000), IDLE)
    assert isinstance(refusal, Refuse)
    assert refusal.binding_constraint is Constraint.TOO_LARGE


def test_best_effort_is_queued_up_to_its_bound() -> None:
    nine = cluster(prefill_worker(), decode_worker(), num_best_effort_queued=9)
    ten = cluster(prefill_worker(), decode_worker(), num_best_effort_queued=10)
    assert policy().decide(request(), nine) == ServeBestEffort(Constraint.NOT_ASKED)
    refusal = policy().decide(request(), ten)
    assert isinstance(refusal, Refuse)
    assert refusal.binding_constraint is Constraint.QUEUE_FULL


@pytest.mark.parametrize(
    ("prefill", "decode", "fits"),
    [
        (prefill_worker(), decode_worker(), True),
        # It would delay a guaranteed prompt beyond its promise, or not.
        (prefill_worker(given_prompt(100, due_at_s=0.15)), decode_worker(), False),
        (prefill_worker(given_prompt(100, due_at_s=0.25)), decode_worker(), True),
        # One that seems late may not be, one whose time has passed is not saved by waiting.
        (prefill_worker(given_prompt(100, due_at_s=0.05)), decode_worker(), False),
        (prefill_worker(given_prompt(100, due_at_s=-0.05)), decode_worker(), True),
        # As many as the worker can hold wait already.
        (
            prefill_worker(*[given_prompt(1, guaranteed=False) for _ in range(100)]),
            decode_worker(),
            False,
        ),
        # It would slow a guaranteed request down, or not.
        (prefill_worker(), decode_worker(given_decode(tpot_s=0.0115)), False),
        (prefill_worker(), decode_worker(given_decode(tpot_s=0.0125)), True),
        (prefill_worker(), FULL_DECODE, False),
        (prefill_worker(), CROWDED_DECODE, False),
        (SENDING_PREFILL, decode_worker(), False),
    ],
)
def test_best_effort_runs_only_where_it_endangers_no_promise(
    prefill: WorkerSnapshot, decode: WorkerSnapshot, *, fits: bool
) -> None:
    placed = policy().place_best_effort(request(), cluster(prefill, decode))
    assert (placed is not None) is fits


arrivals = st.lists(
    st.tuples(st.floats(0, 0.3), st.integers(1, 400), st.floats(0.05, 3.0)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@example([(0.0, 331, 1.0), (0.0078125, 155, 0.5), (0.046875, 170, 0.46875)])
@given(arrivals)
def test_no_promised_prompt_is_late_in_an_engine_that_packs_prompts_into_full_steps(
    gaps_prompts_ttfts: list[tuple[float, int, float]],
) -> None:
    """An engine that packs prompts into full steps, against what was promised of it."""
    engine = PackingEngine()
    asked_of = policy()
    now_s = 0.0
    for index, (gap_s, num_tokens, ttft_s) in enumerate(gaps_prompts_ttfts):
        now_s += gap_s
        engine.run_until(now_s)
        worker = replace(
            prefill_worker(*engine.unfinished.values()),
            last_prefill_ended_at_s=engine.last_done_at_s,
        )
        asked = request(str(index), num_prompt_tokens=num_tokens, slo=slo(ttft_s, 1.0))
        decision = asked_of.decide(asked, cluster(worker, decode_worker(), now_s=now_s))
        if isinstance(decision, Guarantee):
            due_at_s = now_s + ttft_s - decision.placement.handover_allowance_s
            engine.take(index, num_tokens, now_s, due_at_s)
    engine.run_until(math.inf)
    assert engine.late == []


class PackingEngine:
    """As vLLM with our priorities: steps go on with prompts under way, then take the next due."""

    def __init__(self) -> None:
        self.unfinished: dict[int, dict[str, float]] = {}
        self.late: list[int] = []
        self.last_done_at_s = -math.inf
        self._left: dict[int, int] = {}
        self._started: list[int] = []
        self._step: dict[int, int] = {}
        self._step_ends_at_s = math.inf

    def take(self, number: int, num_tokens: int, now_s: float, due_at_s: float) -> None:
        given = given_prompt(num_tokens, due_at_s=due_at_s, sent_at_s=now_s)
        self.unfinished[number] = {**given, "order": number}
        self._left[number] = num_tokens
        if self._step_ends_at_s == math.inf:
            self._begin_step(now_s)

    def run_until(self, at_s: float) -> None:
        while self._step_ends_at_s <= at_s and self._left:
            self._end_step()

    def _begin_step(self, now_s: float) -> None:
        budget = PREFILL_SPEC.max_step_tokens
        self._step = {}
        waiting = [number for number in self._left if number not in self._started]
        waiting.sort(key=lambda number: self.unfinished[number]["prefill_due_at_s"])
        for number in [*self._started, *waiting]:
            if budget == 0:
                break
            self._step[number] = min(self._left[number], budget)
            budget -= self._step[number]
        self._started = list(self._step)
        num_tokens = sum(self._step.values())
        model = PREFILL_SPEC.perf_model
        step_s = max(model.floor_s, model.token_s * num_tokens + model.fixed_s)
        self._step_ends_at_s = now_s + step_s if self._step else math.inf

    def _end_step(self) -> None:
        now_s = self._step_ends_at_s
        for number, num_tokens in self._step.items():
            self._left[number] -= num_tokens
            if self._left[number] == 0:
                del self._left[number]
                self._started.remove(number)
                # A millionth for rounding of sums in another order.
                if now_s > self.unfinished.pop(number)["prefill_due_at_s"] + 1e-6:
                    self.late.append(number)
                self.last_done_at_s = now_s
        self._begin_step(now_s)


def test_decode_pace_holds_for_everybody_until_the_end() -> None:
    """Fill a decode worker with promises, then add up its longest possible step."""
    running: list[dict[str, float]] = []
    asked_of = policy()
    for index in range(100):
        asked = request(str(index), slo=slo(10.0, tpot_s=0.05))
        now = cluster(prefill_worker(), decode_worker(*running))
        if not isinstance(asked_of.decide(asked, now), Guarantee):
            break
        running.append(given_decode(tpot_s=0.05))
    longest_s = DECODE_SPEC.perf_model.decode_step_s([200] * len(running))
    assert 20 < len(running) < 100
    assert longest_s <= 0.05


# Decode workers that prefill.

BOTH_SPEC = worker_spec(WorkerRole.DECODE, prefills_locally=True)


def both_worker(*requests: dict[str, float]) -> WorkerSnapshot:
    return decode_worker(*requests, spec=BOTH_SPEC)


def given_local(num_tokens: int, due_at_s: float = math.inf) -> dict[str, float]:
    """Fields of a prompt on a decode worker that computes it."""
    fields = given_prompt(num_tokens, guaranteed=math.isfinite(due_at_s), due_at_s=due_at_s)
    pace = {"tpot_s": 1.0, "later_tpot_s": 1.0, "num_stage_tokens_left": -1}
    return {**fields, **pace, "leaves_after_prefill": 0, "num_output_bound": 10}


def test_a_decode_worker_that_prefills_needs_no_other() -> None:
    decision = policy().decide(request(slo=slo(tpot_s=0.2)), cluster(both_worker()))
    assert isinstance(decision, Guarantee)
    assert decision.placement.is_local
    # No step comes after the prompt's last one.
    assert decision.placement.predicted_ttft_s == pytest.approx(0.1, rel=0.15)
    assert decision.placement.handover_allowance_s == 0.0
    placed = policy().place_best_effort(request(), cluster(both_worker()))
    assert placed is not None
    assert placed.is_local


def test_what_no_worker_holds_whole_may_still_be_held_in_parts_elsewhere() -> None:
    small = replace(both_worker(), spec=replace(BOTH_SPEC, num_kv_blocks=19))
    refusal = policy().decide(request(), cluster(small))
    assert isinstance(refusal, Refuse)
    assert refusal.binding_constraint is Constraint.TOO_LARGE
    assert policy().decide(
        request(),
        cluster(small, prefill_worker(), decode_worker(spec=worker_spec(WorkerRole.DECODE, 1))),
    ) == ServeBestEffort(Constraint.NOT_ASKED)


@pytest.mark.parametrize(
    ("worker", "asked", "binding"),
    [
        # Each step is full of prompt: 100 tokens, and those that decode.
        (both_worker(), slo(tpot_s=0.1), Constraint.DECODE_RATE),
        (both_worker(given_decode(tpot_s=0.1)), slo(tpot_s=0.2), Constraint.DECODE_RATE),
        (both_worker(given_local(100, due_at_s=0.25)), slo(tpot_s=0.2), Constraint.PREFILL_TIME),
        (both_worker(given_local(950)), slo(tpot_s=0.2), Constraint.PREFILL_TIME),
        (replace(both_worker(), local_overhead_s=0.95), slo(tpot_s=0.2), Constraint.PREFILL_TIME),
    ],
)
def test_each_constraint_stands_against_doing_both_phases(
    worker: WorkerSnapshot, asked: Slo, binding: Constraint
) -> None:
    assert policy().decide(request(slo=asked), cluster(worker)) == ServeBestEffort(binding)


def test_a_prompt_moves_when_the_decode_worker_has_too_many() -> None:
    busy = both_worker(given_local(850))
    decision = policy().decide(request(slo=slo(tpot_s=0.5)), cluster(prefill_worker(), busy))
    assert isinstance(decision, Guarantee)
    assert decision.placement.prefill_worker_id == "prefill-0"


def test_pages_do_not_go_where_one_more_decode_makes_a_prompt_late() -> None:
    tight = both_worker(given_local(100, due_at_s=0.12))
    asked = request(slo=slo(ttft_s=10.0, tpot_s=0.5))
    assert policy().decide(asked, cluster(prefill_worker(), tight)) == ServeBestEffort(
        Constraint.PREFILL_TIME
    )


def test_a_worker_for_both_phases_that_forms_its_steps_may_promise_a_tight_pace() -> None:
    spec = replace(BOTH_SPEC, forms_steps_by_deadline=True)
    decision = policy().decide(request(slo=slo(tpot_s=0.05)), cluster(decode_worker(spec=spec)))
    assert isinstance(decision, Guarantee)
    assert decision.placement.is_local
    assert decision.placement.step_cap_s is not None
    assert decision.placement.step_cap_s <= 0.05
