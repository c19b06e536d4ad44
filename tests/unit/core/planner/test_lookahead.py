"""What the look-ahead says of a worker's future, and what then happens."""

from __future__ import annotations

import numpy as np
import pytest

from headway.core.batch_state import ARRIVING, DECODE, PREFILL, Records
from headway.core.planner.lookahead import ALL_ON_TIME, NO_ROOM, TOO_LONG, look_ahead
from headway.sim.simulation import Simulation
from headway.sim.world_kernel import advance
from headway.sim.world_state import STOP_ON_FINISH
from tests import former_loop
from tests.former_loop import make_requests
from tests.simulated import CAPACITY, cluster, simulate, workload


def make_worker(**values: float) -> Records:
    return former_loop.make_worker(**{"step_guard_ratio": 1.0, "step_cap_s": np.inf, **values})


def ask(
    requests: Records, workers: Records, now_s: float = 0.0, row: int = -1
) -> tuple[int, float, float]:
    n = len(requests)
    return look_ahead(now_s, requests, n, workers, np.zeros(n, np.int64), row)


def asked_of(simulation: Simulation, w: int, now_s: float, row: int) -> tuple[int, float, float]:
    view = simulation.view
    n = int(view.counts[w])
    requests = view.requests[view.ids[w, :n]]
    workers = view.workers[w : w + 1].copy()
    position = view.ids[w, :n].tolist().index(row)
    return look_ahead(now_s, requests, n, workers, view.grants[w, :n].copy(), position)


@pytest.mark.parametrize("num_kv_tokens", [None, 40_000])
@pytest.mark.parametrize("scenario", CAPACITY)
def test_an_exact_world_does_what_was_predicted(scenario: str, num_kv_tokens: int | None) -> None:
    machines = cluster("colocated-1", num_kv_tokens=num_kv_tokens, exact=True)
    asked = workload(scenario, 150, load=1.2, num_workers=1, seed=3)
    num_compared = 0
    for stop_before in range(20, 150, 9):
        if asked.follows[stop_before] >= 0:
            continue
        simulation = simulate(asked, machines, stop_before=stop_before).simulation
        world, now_s = simulation.world, float(asked.arrived_at_s[stop_before])
        rows = [
            row
            for row in world.ids[0, : world.counts[0]].tolist()
            if world.requests["guaranteed"][row] == 1
            and world.requests["phase"][row] == PREFILL
            and world.requests["num_output_tokens"][row] == 0
        ]
        predicted_s = []
        for row in rows:
            late, _, computed_at_s = asked_of(simulation, 0, now_s, row)
            assert late == ALL_ON_TIME
            predicted_s.append(computed_at_s)
        world.options[STOP_ON_FINISH] = 0
        advance(world, np.inf)
        assert world.sim["first_token_at_s"][rows] == pytest.approx(predicted_s, abs=1e-9)
        num_compared += len(rows)
    assert num_compared > 0


def test_a_prompt_alone_is_late_exactly_when_it_cannot_be_on_time() -> None:
    # 1000 tokens at 0.1 ms.
    row = {"num_prompt_tokens": 1000}
    for due_at_s, expected in ((0.1000001, ALL_ON_TIME), (0.0999, 0)):
        requests = make_requests({**row, "prefill_due_at_s": due_at_s, "next_due_at_s": due_at_s})
        late, at_s, computed_at_s = ask(requests, make_worker(), row=0)
        assert late == expected
        if late == ALL_ON_TIME:
            assert at_s == pytest.approx(0.1)
            assert computed_at_s == pytest.approx(0.1)
        else:
            # Known before any step.
            assert at_s == 0.0


def test_the_running_step_ends_first() -> None:
    requests = make_requests({"num_prompt_tokens": 1000})
    workers = make_worker(busy_until_s=0.25)
    assert ask(requests, workers, row=0)[2] == pytest.approx(0.35)
    requests = make_requests({"num_prompt_tokens": 1000})
    workers = make_worker(busy_until_s=-5.0)
    assert ask(requests, workers, now_s=1.0, row=0)[2] == pytest.approx(1.1)


def test_the_guard_stretches_every_step() -> None:
    requests = make_requests({"num_prompt_tokens": 1000})
    assert ask(requests, make_worker(guard_ratio=1.2), row=0)[2] == pytest.approx(0.12)


def test_the_promise_that_breaks_is_named() -> None:
    rows = [
        {"num_prompt_tokens": 1000, "prefill_due_at_s": 0.5, "next_due_at_s": 0.5},
        {"num_prompt_tokens": 1000, "prefill_due_at_s": 0.15, "next_due_at_s": 0.15},
        {"num_prompt_tokens": 1000, "prefill_due_at_s": 0.18, "next_due_at_s": 0.18},
    ]
    # Steps of 100 ms; in the order of their deadlines, the second ends at 200.
    assert ask(make_requests(*rows), make_worker(step_cap_s=0.1000001))[0] == 2


@pytest.mark.parametrize("harmless", [{"guaranteed": 0}, {"next_due_at_s": -0.1}])
def test_best_effort_and_what_is_late_already_break_nothing(harmless: dict[str, float]) -> None:
    late = {"num_prompt_tokens": 1000, "next_due_at_s": 0.01, "prefill_due_at_s": 0.01}
    assert ask(make_requests({**late, **harmless}), make_worker())[0] == ALL_ON_TIME
    assert ask(make_requests(late), make_worker())[0] == 0


def test_pages_that_arrive_must_yield_a_first_token_in_time() -> None:
    row = {
        "phase": ARRIVING,
        "num_prompt_tokens": 100,
        "num_computed_tokens": 0,
        "arrives_at_s": 0.04,
        "tpot_s": 0.1,
    }
    # There at 40 ms, and a step takes 10.
    for due_at_s, expected in ((0.0501, ALL_ON_TIME), (0.0499, 0)):
        requests = make_requests({**row, "next_due_at_s": due_at_s})
        assert ask(requests, make_worker())[0] == expected
    # The worker is busy when they come.
    for due_at_s, expected in ((0.0701, ALL_ON_TIME), (0.0699, 0)):
        requests = make_requests({**row, "next_due_at_s": due_at_s})
        assert ask(requests, make_worker(busy_until_s=0.06))[0] == expected


def test_a_prompt_that_leaves_is_due_before_its_first_token() -> None:
    row = {"num_prompt_tokens": 1000, "leaves_after_prefill": 1, "next_due_at_s": 0.2}
    for due_at_s, expected in ((0.1000001, ALL_ON_TIME), (0.0999, 0)):
        requests = make_requests({**row, "prefill_due_at_s": due_at_s})
        assert ask(requests, make_worker())[0] == expected


def test_a_prompt_that_leaves_must_be_sent_in_time_too() -> None:
    row = {"num_prompt_tokens": 1000, "leaves_after_prefill": 1, "next_due_at_s": 0.5}
    # Computed at 100 ms; its pages take ten more, after what the link has to send already.
    for link_free_at_s, sent_at_s in ((0.0, 0.11), (0.15, 0.16)):
        for due_at_s, expected in ((sent_at_s + 1e-4, ALL_ON_TIME), (sent_at_s - 1e-4, 0)):
            requests = make_requests({**row, "prefill_due_at_s": due_at_s})
            worker = make_worker(send_token_s=1e-5, link_free_at_s=link_free_at_s)
            assert ask(requests, worker)[0] == expected


def test_pages_on_their_way_hold_their_blocks() -> None:
    row = {"phase": ARRIVING, "num_prompt_tokens": 1600, "arrives_at_s": 0.04}
    for num_free_blocks, expected in ((100, ALL_ON_TIME), (99, NO_ROOM)):
        requests = make_requests({**row, "next_due_at_s": 9.0})
        workers = make_worker(num_blocks=120, num_free_blocks=num_free_blocks)
        assert ask(requests, workers, row=0)[0] == expected


def test_best_effort_pages_are_not_planned_with() -> None:
    row = {"phase": ARRIVING, "num_prompt_tokens": 100, "tpot_s": 0.1}
    requests = make_requests(
        {**row, "arrives_at_s": 0.0, "guaranteed": 0, "next_due_at_s": np.inf},
        {**row, "arrives_at_s": 0.004, "next_due_at_s": 0.0145},
    )
    assert ask(requests, make_worker())[0] == ALL_ON_TIME
    assert requests["phase"].tolist() == [ARRIVING, DECODE]


def test_what_was_preempted_before_is_not_counted_twice() -> None:
    # 100 tokens of prompt; preempted after 10 of output, and about to be again, after 20.
    requests = make_requests(
        {
            "phase": DECODE,
            "num_prompt_tokens": 110,
            "num_computed_tokens": 119,
            "num_output_tokens": 20,
            "next_due_at_s": 9.0,
        },
        {
            "num_prompt_tokens": 160,
            "num_computed_tokens": 128,
            "num_output_bound": 1,
            "prefill_due_at_s": 0.5,
            "next_due_at_s": 0.5,
        },
    )
    workers = make_worker(num_blocks=16, num_free_blocks=0)
    assert ask(requests, workers)[0] == ALL_ON_TIME
    # The prompt, and the output until it was preempted.
    assert 120 <= requests["num_prompt_tokens"][0] <= 100 + requests["num_output_tokens"][0]


def test_a_future_without_end_is_not_promised() -> None:
    requests = make_requests({"num_prompt_tokens": 10_000_000, "next_due_at_s": 1e9})
    requests["prefill_due_at_s"] = 1e9
    workers = make_worker(num_blocks=1_000_000, step_cap_s=0.011)
    assert ask(requests, workers)[0] == TOO_LONG
