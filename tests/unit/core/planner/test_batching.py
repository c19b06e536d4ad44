"""The batch former of Headway: its limits in any state, and whom it serves first."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.batch_state import ARRIVING, DECODE, LEAVING, PREEMPT, PREFILL, Records
from headway.core.batching import form_slack
from headway.core.batching.bounds import BEST_EFFORT_STEP
from headway.core.batching.decodes import PACED_SHARE
from headway.core.planner.step_time import step_s
from tests import former_loop
from tests.former_loop import Loop, make_requests

INFINITE = np.inf


def make_worker(**values: float) -> Records:
    return former_loop.make_worker(**{"step_guard_ratio": 1.0, "step_cap_s": np.inf, **values})


def grants_of(requests: Records, workers: Records, now_s: float = 0.0) -> list[int]:
    n = len(requests)
    grants = np.full(n, 12345)
    form_slack(now_s, requests, np.arange(n), n, workers[0], grants)
    return [int(grant) for grant in grants]


def seconds_of(requests: Records, workers: Records, grants: list[int]) -> float:
    """What this step takes."""
    decodes = [r for r, g in zip(requests, grants, strict=True) if g > 0 and r["phase"] == DECODE]
    chunks = [
        (g, int(r["num_computed_tokens"]))
        for r, g in zip(requests, grants, strict=True)
        if g > 0 and r["phase"] == PREFILL
    ]
    return float(
        step_s(
            workers[0],
            sum(g for g in grants if g > 0),
            len(decodes),
            sum(int(r["num_computed_tokens"]) for r in decodes),
            sum(p * (before + 0.5 * p) for p, before in chunks),
            len(chunks),
            0,
            0,
        )
    )


@st.composite
def states(draw: st.DrawFn) -> tuple[Records, Records]:
    """A worker of 60 blocks with up to ten requests in any phase."""
    rows: list[dict[str, float]] = []
    num_held = 0
    for order in draw(st.permutations(range(draw(st.integers(1, 10))))):
        phase = draw(st.sampled_from([PREFILL, PREFILL, DECODE, DECODE, DECODE, ARRIVING, LEAVING]))
        guaranteed = draw(st.sampled_from([0, 1, 1]))
        prompt = draw(st.integers(1, 300))
        computed = prompt
        if phase == PREFILL:
            computed = draw(st.one_of(st.just(0), st.integers(0, prompt - 1)))
        if phase == DECODE:
            computed = prompt + draw(st.integers(0, 40))
        num_blocks = -(-computed // 16)
        if phase != PREFILL and num_held + num_blocks > 60:
            continue
        if num_held + num_blocks > 60:
            computed = num_blocks = 0
        num_held += num_blocks
        due_at_s = draw(st.floats(-0.1, 0.5))
        rows.append(
            {
                "order": order,
                "phase": phase,
                "guaranteed": guaranteed,
                "prefill_due_at_s": due_at_s,
                "next_due_at_s": due_at_s,
                "num_prompt_tokens": prompt,
                "num_computed_tokens": computed,
                "num_output_tokens": max(1, computed - prompt) if phase == DECODE else 0,
                "num_blocks": num_blocks,
            }
        )
    requests = make_requests(*rows)
    is_best_effort = requests["guaranteed"] == 0
    if draw(st.booleans()):
        requests["prefill_due_at_s"][is_best_effort] = np.inf
        requests["next_due_at_s"][is_best_effort] = np.inf
    workers = make_worker(
        num_blocks=60,
        num_free_blocks=60 - num_held,
        max_step_tokens=draw(st.sampled_from([32, 256, 8192])),
        max_running=draw(st.integers(max(1, int((requests["num_blocks"] > 0).sum())), 12)),
        step_cap_s=draw(st.sampled_from([0.015, 0.03, 0.1, np.inf])),
        sequence_s=draw(st.sampled_from([0.0, 1e-4])),
        chunk_s=draw(st.sampled_from([0.0, 1e-3])),
        prefill_attention_s=draw(st.sampled_from([0.0, 1e-7])),
        context_token_s=draw(st.sampled_from([0.0, 1e-6])),
    )
    return requests, workers


@settings(max_examples=600, deadline=None, derandomize=True)
@given(states())
def test_limits_hold_in_any_state(state: tuple[Records, Records]) -> None:
    requests, workers = state
    worker, before = workers[0], requests.copy()
    grants = grants_of(requests, workers)
    assert requests.tobytes() == before.tobytes()
    num_free = int(worker["num_free_blocks"])
    num_holding = 0
    for r, grant in zip(requests, grants, strict=True):
        held = int(r["num_blocks"])
        if r["phase"] in (ARRIVING, LEAVING):
            assert grant == 0
        if grant == PREEMPT:
            assert held > 0
            num_free += held
            continue
        assert grant >= 0
        if r["phase"] == PREFILL:
            assert grant <= r["num_prompt_tokens"] - r["num_computed_tokens"]
        else:
            assert grant <= 1
        needed = max(0, -(-int(r["num_computed_tokens"] + grant) // 16) - held) if grant else 0
        num_free -= needed
        num_holding += int(held + needed > 0)
    assert num_free >= 0
    assert num_holding <= worker["max_running"]
    assert sum(g for g in grants if g > 0) <= worker["max_step_tokens"]


@settings(max_examples=600, deadline=None, derandomize=True)
@given(states())
def test_a_step_is_never_empty_while_there_is_work_that_fits(
    state: tuple[Records, Records],
) -> None:
    requests, workers = state
    grants = grants_of(requests, workers)
    if any(g > 0 for g in grants):
        return
    # Only what nobody here may take away can stand in the way.
    is_ours = np.isin(requests["phase"], (PREFILL, DECODE))
    num_theirs = int(requests["num_blocks"][~is_ours].sum())
    first = np.flatnonzero(is_ours)
    if not len(first):
        return
    row = requests[first[np.argmin(requests["order"][first])]]
    tokens = row["num_prompt_tokens"] if row["phase"] == PREFILL else row["num_computed_tokens"] + 1
    no_room = num_theirs + -(-int(tokens) // 16) > 60
    all_running = (requests["num_blocks"] > 0).sum() >= workers["max_running"][0]
    assert no_room or all_running


@settings(max_examples=600, deadline=None, derandomize=True)
@given(states())
def test_prompts_lengthen_a_step_up_to_its_bounds_only(state: tuple[Records, Records]) -> None:
    requests, workers = state
    grants = grants_of(requests, workers)
    chunks = [r for r, g in zip(requests, grants, strict=True) if g > 0 and r["phase"] == PREFILL]
    if not chunks or not any(r["guaranteed"] for r in chunks):
        return
    alone_s = float(step_s(workers[0], 1, 1, 0, 0.0, 0, 0, 0))
    is_decode = (requests["phase"] == DECODE) & (requests["guaranteed"] == 1)
    slack_s = requests["next_due_at_s"][is_decode]
    bound_s = min(workers["step_cap_s"][0], slack_s[slack_s >= alone_s].min(initial=np.inf))
    assert seconds_of(requests, workers, grants) <= bound_s + 1e-9


@settings(max_examples=400, deadline=None, derandomize=True)
@given(states(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_means_nothing(state: tuple[Records, Records], rng: Any) -> None:
    requests, workers = state
    grants = grants_of(requests, workers)
    order = list(range(len(requests)))
    rng.shuffle(order)
    assert grants_of(requests[order], workers) == [grants[k] for k in order]


def test_prompts_go_by_deadline_in_the_largest_chunks_that_fit() -> None:
    # 10 ms at least, 0.1 ms per token: 500 tokens in a step of 50 ms.
    workers = make_worker(step_cap_s=0.0500001)
    rows: list[Mapping[str, float]] = [
        {"num_prompt_tokens": 300, "prefill_due_at_s": 3.0},
        {"num_prompt_tokens": 300, "prefill_due_at_s": 1.0},
        {"num_prompt_tokens": 300, "prefill_due_at_s": 2.0},
    ]
    assert grants_of(make_requests(*rows), workers) == [0, 300, 200]


def test_a_prompt_that_is_late_already_comes_after_those_that_are_not() -> None:
    workers = make_worker(step_cap_s=0.0500001)
    rows: list[Mapping[str, float]] = [
        {"num_prompt_tokens": 400, "prefill_due_at_s": -0.1},
        {"num_prompt_tokens": 400, "prefill_due_at_s": 9.0},
    ]
    assert grants_of(make_requests(*rows), workers) == [100, 400]


def test_the_earliest_token_bounds_the_step() -> None:
    decode = {"phase": DECODE, "num_prompt_tokens": 100}
    workers = make_worker(step_cap_s=0.1)
    requests = make_requests({**decode, "next_due_at_s": 0.0300001}, {"num_prompt_tokens": 5000})
    # It goes into the step, which ends before it is due.
    assert grants_of(requests, workers) == [1, 299]
    # A token that no step can bring in time bounds nothing.
    requests["next_due_at_s"][0] = 0.005
    assert grants_of(requests, workers) == [1, 999]


def test_decodes_that_can_wait_leave_the_step_to_prompts() -> None:
    decode = {"phase": DECODE, "num_prompt_tokens": 100}
    requests = make_requests({**decode, "next_due_at_s": 0.5}, {"num_prompt_tokens": 5000})
    assert grants_of(requests, make_worker(step_cap_s=0.1000001)) == [0, 1000]
    # Where the prompt leaves room, they run ahead.
    requests["num_prompt_tokens"][1] = 200
    assert grants_of(requests, make_worker(step_cap_s=0.1000001)) == [1, 200]


def test_steps_are_short_while_nothing_waits_and_nothing_is_due() -> None:
    # A prompt may come during the step. 0.5 ms per decode.
    decode = {"phase": DECODE, "num_prompt_tokens": 100, "next_due_at_s": 9.0}
    requests = make_requests(*({**decode, "order": order} for order in range(40)))
    workers = make_worker(step_cap_s=0.0150001, sequence_s=5e-4)
    grants = grants_of(requests, workers)
    assert sum(grants) == 10
    assert seconds_of(requests, workers, grants) <= 0.0150001
    # What is due cannot be left for the step after the next one.
    requests["next_due_at_s"] = 0.04
    assert sum(grants_of(requests, workers)) == 40


def test_an_early_first_token_is_followed_at_its_pace_beside_prompts() -> None:
    decode = {"phase": DECODE, "num_prompt_tokens": 100, "next_due_at_s": 0.5, "lead_s": 0.45}
    requests = make_requests(decode, {"num_prompt_tokens": 5000})
    workers = make_worker(step_cap_s=0.1000001)
    assert grants_of(requests, workers) == [1, 999]
    # One that keeps its pace until the next step is out waits, lead or not.
    requests["lead_s"][0] = 0.2
    assert grants_of(requests, workers) == [0, 1000]


def test_the_pace_of_early_first_tokens_leaves_most_of_the_step_to_prompts() -> None:
    decode = {"phase": DECODE, "num_prompt_tokens": 100, "next_due_at_s": 0.5, "lead_s": 0.45}
    requests = make_requests(
        *({**decode, "order": order} for order in range(200)), {"num_prompt_tokens": 5000}
    )
    workers = make_worker(step_cap_s=0.0500001, sequence_s=5e-4)
    grants = grants_of(requests, workers)
    # 40 ms beyond an empty step, 0.5 ms per decode.
    assert sum(grants[:200]) == round(PACED_SHARE * 0.04 / 5e-4)
    assert grants[200] > 0


def test_best_effort_comes_last_and_in_short_steps() -> None:
    workers = make_worker(step_cap_s=0.1)
    requests = make_requests(
        {"num_prompt_tokens": 5000, "guaranteed": 0, "prefill_due_at_s": INFINITE}
    )
    # Alone, it does not make the worker deaf for longer than a short step.
    (chunk,) = grants_of(requests, workers)
    empty_s = float(step_s(workers[0], 1, 1, 0, 0.0, 0, 0, 0))
    assert chunk > 0
    assert seconds_of(requests, workers, [chunk]) <= BEST_EFFORT_STEP * empty_s + 1e-9
    # A promised prompt that fills its step leaves none of it.
    both = make_requests(
        {"num_prompt_tokens": 5000, "guaranteed": 0, "prefill_due_at_s": INFINITE},
        {"num_prompt_tokens": 5000},
    )
    assert grants_of(both, workers)[0] == 0


def test_best_effort_prompts_are_taken_as_they_came() -> None:
    row = {"num_prompt_tokens": 100, "guaranteed": 0, "prefill_due_at_s": INFINITE}
    requests = make_requests(*({**row, "order": order} for order in (3, 0, 2, 1)))
    grants = grants_of(requests, make_worker())
    # 15 ms: 150 tokens.
    assert grants[1] == 100
    assert grants[0] == grants[2] == 0


def test_the_latest_best_effort_loses_its_blocks_first() -> None:
    decode = {"phase": DECODE, "num_prompt_tokens": 32, "next_due_at_s": 0.011}
    spare = {**decode, "guaranteed": 0, "next_due_at_s": INFINITE}
    requests = make_requests(
        {**decode, "order": 0},
        {**spare, "order": 1},
        {**spare, "order": 3},
        {**spare, "order": 2},
        {**decode, "order": 4, "next_due_at_s": 5.0},
    )
    workers = make_worker(num_blocks=10, num_free_blocks=0)
    grants = grants_of(requests, workers)
    assert grants[0] == 1
    assert grants[2] == PREEMPT
    assert grants[4] != PREEMPT


def test_of_promised_requests_the_one_due_last_loses_its_blocks() -> None:
    decode = {"phase": DECODE, "num_prompt_tokens": 32}
    dues = (0.011, 2.0, 5.0, 3.0)
    requests = make_requests(*({**decode, "next_due_at_s": due} for due in dues))
    grants = grants_of(requests, make_worker(num_blocks=8, num_free_blocks=0))
    assert grants[0] == 1
    assert [k for k, g in enumerate(grants) if g == PREEMPT] == [2]


def test_while_memory_is_scarce_a_decode_that_needs_no_block_goes_on() -> None:
    # 100 of 1000 blocks are free. One is urgent; the others are ahead, half at a block's end.
    decode = {"phase": DECODE, "num_prompt_tokens": 100}
    rows = [{**decode, "next_due_at_s": 0.011}]
    rows += [{**decode, "num_prompt_tokens": 90, "next_due_at_s": 9.0} for _ in range(5)]
    rows += [{**decode, "num_prompt_tokens": 96, "next_due_at_s": 9.0} for _ in range(5)]
    workers = make_worker(num_blocks=1000, num_free_blocks=10)
    assert grants_of(make_requests(*rows), workers)[:6] == [1] * 6


def test_memory_full_of_half_computed_prompts_does_not_stop_the_worker() -> None:
    half = {"num_prompt_tokens": 160, "num_computed_tokens": 80}
    requests = make_requests(half, half)
    workers = make_worker(num_blocks=10, num_free_blocks=0)
    grants = grants_of(requests, workers)
    assert max(grants) > 0


class Timed(Loop):
    """Notes how many tokens left after they were due."""

    num_late: int = 0

    def _advance(self, request: Records, grant: int, num_outputs: int) -> None:
        done = request["num_computed_tokens"] + grant >= request["num_prompt_tokens"]
        self.num_late += int(done and self.now_s > request["next_due_at_s"] + 1e-12)
        super()._advance(request, grant, num_outputs)


NUM_OUTPUTS = 4
WORKER = {"sequence_s": 2e-3, "context_token_s": 1e-5}


def can_all_be_on_time(dues: tuple[float, float], gaps: tuple[float, float]) -> bool:
    """Two decodes with NUM_OUTPUTS - 1 tokens to go: any order, alone or together."""
    workers = make_worker(**WORKER)

    @cache
    def seconds(first: int, second: int) -> float:
        contexts = [100 + num for num in (first, second) if num >= 0]
        return float(step_s(workers[0], len(contexts), len(contexts), sum(contexts), 0.0, 0, 0, 0))

    def search(now_s: float, first: int, second: int) -> bool:
        total = NUM_OUTPUTS - 1
        if first == second == total:
            return True
        for takes_first, takes_second in ((1, 1), (1, 0), (0, 1)):
            if (takes_first and first == total) or (takes_second and second == total):
                continue
            end_s = now_s + seconds(first if takes_first else -1, second if takes_second else -1)
            if takes_first and end_s > dues[0] + first * gaps[0]:
                continue
            if takes_second and end_s > dues[1] + second * gaps[1]:
                continue
            if search(end_s, first + takes_first, second + takes_second):
                return True
        return False

    return search(0.0, 0, 0)


def num_late(dues: tuple[float, float], gaps: tuple[float, float]) -> int:
    requests = make_requests(
        *(
            {"phase": DECODE, "num_prompt_tokens": 100, "next_due_at_s": due, "tpot_s": gap}
            for due, gap in zip(dues, gaps, strict=True)
        )
    )
    outputs = np.full(2, NUM_OUTPUTS)
    loop = Timed(form_slack, requests, outputs, make_worker(**WORKER), seed=1)
    loop.run()
    return loop.num_late


def test_two_decodes_are_on_time_whenever_they_can_be() -> None:
    # Steps of one take 13 ms, of two 16 ms.
    dues = (0.0135, 0.015, 0.0165, 0.02, 0.028, 0.04)
    gaps = (0.0145, 0.0175, 0.03, 0.05)
    num_possible = 0
    for first_due, second_due, first_gap, second_gap in product(dues, dues, gaps, gaps):
        setting = ((first_due, second_due), (first_gap, second_gap))
        if can_all_be_on_time(*setting):
            num_possible += 1
            assert num_late(*setting) == 0, setting
    assert num_possible > 100


@pytest.mark.parametrize("prompt_due_s", [0.06, 0.1, 0.3])
def test_a_prompt_beside_a_decode_makes_neither_late(prompt_due_s: float) -> None:
    # The decode needs 10 ms of every 30, so two thirds of the tokens a second are the prompt's.
    num_tokens = int(prompt_due_s * 0.6 * 10_000)
    requests = make_requests(
        {"phase": DECODE, "num_prompt_tokens": 100, "next_due_at_s": 0.03, "tpot_s": 0.03},
        {
            "num_prompt_tokens": num_tokens,
            "prefill_due_at_s": prompt_due_s,
            "next_due_at_s": prompt_due_s,
        },
    )
    workers = make_worker(step_cap_s=0.03, num_blocks=10_000)
    loop = Timed(form_slack, requests, np.array([30, 5]), workers, seed=1)
    loop.run()
    assert loop.num_late == 0
