"""Where Headway's policy puts a request, and when it declines to promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headway.core.planner.arrival import Limit, Verdict
from headway.core.planner.promising import PromisePolicy
from headway.sim.options import RunOptions
from headway.sim.simulation import Simulation
from headway.sim.workload import Workload
from tests.simulated import cluster, simulate, workload


def stopped(
    asked: Workload, roles: str, at: int, policy: PromisePolicy | None = None, **fields: Any
) -> tuple[PromisePolicy, Simulation, float]:
    """A simulation just before the decision on request `at`."""
    policy = policy or PromisePolicy()
    machines = cluster(roles, exact=True, **fields)
    formers = (policy.former,) * machines.num_workers
    simulation = Simulation(asked, machines, policy, formers, RunOptions(stop_before=at))
    simulation.run()
    return policy, simulation, float(asked.arrived_at_s[at])


def burst(num: int, num_prompt_tokens: int = 1000, gap_s: float = 1e-4) -> Workload:
    """Chat requests nearly at once."""
    asked = workload("chat", 60, load=1.0, num_workers=1, seed=1)
    assert num <= len(asked)
    arrays = {
        name: value[:num]
        for name in asked.__dataclass_fields__
        if isinstance(value := getattr(asked, name), np.ndarray)
    }
    arrays["arrived_at_s"] = gap_s * np.arange(num)
    arrays["num_prompt_tokens"] = np.full(num, num_prompt_tokens)
    arrays["num_output_tokens"] = np.full(num, 50)
    return Workload(asked.name, asked.tiers, **arrays)


def test_an_idle_worker_promises() -> None:
    policy, simulation, now_s = stopped(burst(1), "colocated-1", 0)
    answer = policy.decide(0, simulation.view, now_s)
    assert (answer.verdict, answer.prefill_worker, answer.decode_worker) == (Verdict.SERVE, 0, 0)
    explanation = policy.explain(0, simulation.view, now_s)
    assert explanation.limit is Limit.NONE


def test_as_many_of_a_burst_are_promised_as_fit_their_ttft() -> None:
    # Five times the idle prefill time each, and they share steps: about five prompts fit.
    finished = simulate(burst(12), cluster("colocated-1", exact=True))
    assert finished.score.promised[:4].all()
    assert not finished.score.promised[7:].any()
    assert finished.num_broken == 0


def test_deciding_changes_nothing_but_the_step_length_of_the_chosen_worker() -> None:
    asked = workload("mixed", 120, load=0.8, num_workers=4, seed=3)
    at = int(np.flatnonzero(asked.follows[60:] < 0)[0]) + 60
    policy, simulation, now_s = stopped(asked, "colocated-4", at)
    view = simulation.view
    before = [array.copy() for array in (view.requests, view.ids, view.counts, view.grants)]
    workers = view.workers.copy()
    answer = policy.decide(at, view, now_s)
    after = [view.requests, view.ids, view.counts, view.grants]
    assert [array.tobytes() for array in after] == [array.tobytes() for array in before]
    others = np.arange(4) != answer.prefill_worker
    assert view.workers[others].tobytes() == workers[others].tobytes()
    view.workers["step_cap_s"] = workers["step_cap_s"]
    assert view.workers.tobytes() == workers.tobytes()
    policy.explain(at, view, now_s)
    assert view.requests.tobytes() == before[0].tobytes()
    assert view.workers.tobytes() == workers.tobytes()


def test_the_most_loaded_worker_that_can_comes_first() -> None:
    asked = burst(3, gap_s=0.001)
    most, least = (
        simulate_with(PromisePolicy(most_loaded_first=first), asked) for first in (True, False)
    )
    assert len(set(most)) == 1
    assert len(set(least)) == 3


def simulate_with(policy: PromisePolicy, asked: Workload) -> list[int]:
    machines = cluster("colocated-4", exact=True)
    result = Simulation(asked, machines, policy, (policy.former,) * 4).run()
    workers: list[int] = result.sim["decode_worker"].tolist()
    return workers


def test_the_bound_that_would_fit_does() -> None:
    asked = workload("coder", 150, load=1.5, num_workers=1, arrivals="azure-code", seed=1)
    finished = simulate(asked, cluster("colocated-1", exact=True))
    num_fitting = 0
    for at in np.flatnonzero(~finished.score.promised)[:12].tolist():
        policy, simulation, now_s = stopped(asked, "colocated-1", at, PromisePolicy(sheds=False))
        explanation = policy.explain(at, simulation.view, now_s)
        record = simulation.view.requests[at]
        asked_s = float(record["next_due_at_s"] - record["arrived_at_s"])
        fitting_s = explanation.ttft_that_fits_s
        if explanation.limit is not Limit.PREFILL_TIME or fitting_s is None:
            continue
        num_fitting += 1
        assert fitting_s > asked_s
        due_at_s = float(record["arrived_at_s"]) + fitting_s
        record["prefill_due_at_s"] = record["next_due_at_s"] = due_at_s
        assert policy.decide(at, simulation.view, now_s).verdict is Verdict.SERVE
    assert num_fitting > 0


def test_a_patient_request_fits_behind_prompts_that_are_due_soon() -> None:
    policy, simulation, now_s = stopped(burst(12), "colocated-1", 8)
    assert policy.explain(8, simulation.view, now_s).limit is Limit.PREFILL_TIME
    record = simulation.view.requests[8]
    record["prefill_due_at_s"] = record["next_due_at_s"] = now_s + 5.0
    assert policy.decide(8, simulation.view, now_s).verdict is Verdict.SERVE


def test_memory_is_what_stands_against_outputs_that_do_not_fit() -> None:
    asked = burst(12, num_prompt_tokens=100, gap_s=0.2)
    asked = replace(asked, num_output_tokens=np.full(12, 4000))
    machines = cluster("colocated-1", exact=True, num_kv_tokens=20_000)
    finished = simulate(asked, machines)
    # 4100 tokens each, all at once when they are nearly done.
    assert 4 <= finished.score.promised.sum() <= 5
    assert finished.num_broken == 0
    policy, simulation, now_s = stopped(asked, "colocated-1", 11, num_kv_tokens=20_000)
    assert policy.explain(11, simulation.view, now_s).limit is Limit.KV_BLOCKS


@pytest.mark.parametrize("roles", ["disaggregated-1:1", "disaggregated-2:2"])
def test_separate_workers_get_separate_roles(roles: str) -> None:
    asked = workload("chat", 100, load=0.5, num_workers=2, seed=5)
    machines = cluster(roles, exact=True)
    sim = simulate(asked, machines).result.sim
    assert (sim["prefill_worker"] < machines.num_prefill).all()
    assert (sim["decode_worker"] >= machines.num_prefill).all()


def test_shedding_serves_more_under_overload() -> None:
    asked = workload("reasoning", 800, load=3.0, num_workers=1, seed=6)
    machines = cluster("colocated-1", exact=True)
    num_kept = []
    for sheds in (True, False):
        policy = PromisePolicy(sheds=sheds)
        result = Simulation(asked, machines, policy, (policy.former,)).run()
        num_kept.append(int((result.sim["deferred"] == 0).sum()))
    assert num_kept[0] >= num_kept[1]
