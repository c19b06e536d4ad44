"""Admission by the dynamic program, on small views and through whole simulated runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from headway.core.planner.arrival import Answer, ClusterView, Verdict
from headway.core.planner.fluid_policy import FluidPolicy
from headway.core.slo import Slo, StageSlo
from headway.sim.options import RunOptions
from headway.sim.simulation import Simulation
from headway.sim.workload import Tier, Workload
from tests.simulated import cluster, simulate, workload

# Of two prompts of 2500 tokens or one of 6000, either fits a TTFT of 0.2 s; not all three.
SHORT, LONG = 2500, 6000


def asked(
    *prompts: tuple[int, float],
    gap_s: float = 0.0,
    num_output_tokens: int = 20,
    first_tpot_s: float = 0.1,
) -> Workload:
    """Prompts, each with its TTFT bound in seconds, one after the other; others decode slowly."""
    num = len(prompts)
    tpots_s = [first_tpot_s, *[0.1] * (num - 1)]
    tiers = tuple(
        Tier(str(n), Slo((StageSlo(tpots_s[n]),), ttft_s=prompts[n][1])) for n in range(num)
    )
    return Workload(
        name="by hand",
        tiers=tiers,
        arrived_at_s=gap_s * np.arange(num, dtype=np.float64),
        num_prompt_tokens=np.array([num_tokens for num_tokens, _ in prompts]),
        num_output_tokens=np.full(num, num_output_tokens),
        tier=np.arange(num),
        num_thinking_tokens=np.zeros(num, np.int64),
        follows=np.full(num, -1),
        gap_s=np.zeros(num),
        num_prefix_tokens=np.zeros(num, np.int64),
    )


@dataclass(slots=True)
class Noting(FluidPolicy):
    """Remembers what it deferred at first."""

    deferred: list[int] = field(default_factory=list)

    def decide(self, new: int, view: ClusterView, now_s: float) -> Answer:
        answer = FluidPolicy.decide(self, new, view, now_s)
        if answer.verdict is Verdict.DEFER:
            self.deferred.append(new)
        return answer


def simulation_of(requests: Workload, roles: str, stop_before: int | None = None) -> Simulation:
    machines = cluster(roles, exact=True)
    policy = Noting()
    formers = (policy.former,) * machines.num_workers
    return Simulation(requests, machines, policy, formers, RunOptions(stop_before=stop_before))


def arrived_together(requests: Workload, roles: str) -> ClusterView:
    """All requests have arrived, and none has been decided on."""
    simulation = simulation_of(requests, roles, stop_before=0)
    simulation.run()
    for index in range(len(requests)):
        simulation._fill(index, 0.0)
    return simulation.view


def verdicts(answers: list[Answer]) -> list[Verdict]:
    return [answer.verdict for answer in answers]


def test_an_idle_worker_promises() -> None:
    view = arrived_together(asked((LONG, 0.2)), "colocated-1")
    answer = FluidPolicy().decide(0, view, 0.0)
    assert answer == Answer(Verdict.SERVE, 0, 0)


def test_the_answer_changes_only_the_step_length() -> None:
    view = arrived_together(asked((LONG, 0.2)), "colocated-1")
    requests, workers = view.requests.copy(), view.workers.copy()
    FluidPolicy().decide(0, view, 0.0)
    assert view.requests.tobytes() == requests.tobytes()
    floor_s = float(workers["floor_s"][0])
    assert view.workers["step_cap_s"][0] == pytest.approx(2.5 * floor_s)
    workers["step_cap_s"] = view.workers["step_cap_s"]
    assert view.workers.tobytes() == workers.tobytes()


@pytest.mark.parametrize(("second", "num_promised"), [((SHORT, 0.1), 1), ((200, 0.1), 2)])
def test_declines_what_would_break_a_promise(second: tuple[int, float], num_promised: int) -> None:
    # Either fits alone, and the second would go first.
    machines = cluster("colocated-1", exact=True)
    assert simulate(asked(second), machines, "headway-dp").score.strict.all()
    both = asked((LONG, 0.2), second, gap_s=0.001)
    score = simulate(both, machines, "headway-dp").score
    assert score.promised.sum() == num_promised
    assert score.strict[0]


def test_a_batch_is_served_as_many_as_fit() -> None:
    view = arrived_together(asked((LONG, 0.2), (SHORT, 0.2), (SHORT, 0.2)), "colocated-1")
    assert verdicts(FluidPolicy().decide_many((0,), view, 0.0)) == [Verdict.SERVE]
    answers = FluidPolicy().decide_many((0, 1, 2), view, 0.0)
    assert verdicts(answers) == [Verdict.DEFER, Verdict.SERVE, Verdict.SERVE]


def test_what_one_worker_has_no_room_for_another_one_takes() -> None:
    view = arrived_together(asked((LONG, 0.2), (SHORT, 0.2), (SHORT, 0.2)), "colocated-4")
    answers = FluidPolicy().decide_many((0, 1, 2), view, 0.0)
    assert verdicts(answers) == [Verdict.SERVE] * 3
    workers = [answer.prefill_worker for answer in answers]
    assert workers[1] == workers[2] != workers[0]


def test_separate_pools_are_planned_jointly() -> None:
    view = arrived_together(asked((LONG, 0.2), (SHORT, 0.2), (SHORT, 0.2)), "disaggregated-1:1")
    answers = FluidPolicy().decide_many((0, 1, 2), view, 0.0)
    assert verdicts(answers) == [Verdict.DEFER, Verdict.SERVE, Verdict.SERVE]
    served = answers[1]
    assert (served.prefill_worker, served.decode_worker) == (0, 1)
    assert 0.0 < served.computed_at_s < served.arrives_at_s < 0.2
    assert served.computed_at_s + served.handover_s == pytest.approx(0.2 - 0.001)


def test_each_worker_of_a_pool_is_filled_once() -> None:
    requests = asked((LONG, 0.2), (SHORT, 0.2), (SHORT, 0.2), (LONG, 0.2))
    answers = FluidPolicy().decide_many(
        (0, 1, 2, 3), arrived_together(requests, "disaggregated-2:2"), 0.0
    )
    assert sorted(verdicts(answers)) == [Verdict.SERVE] * 3 + [Verdict.DEFER]
    served = [answer for answer in answers if answer.verdict is Verdict.SERVE]
    assert {answer.prefill_worker for answer in served} == {0, 1}
    assert {answer.decode_worker for answer in served} == {2, 3}


def test_the_way_to_the_decode_worker_takes_its_time() -> None:
    # It takes about 20 ms, and the prompt fits its 0.2 s with less to spare.
    found = [
        FluidPolicy().decide(0, arrived_together(asked((6400, 0.2)), roles), 0.0).verdict
        for roles in ("colocated-1", "disaggregated-1:1")
    ]
    assert found == [Verdict.SERVE, Verdict.DEFER]


def test_a_fast_decode_slows_prompts_where_it_shares_their_worker() -> None:
    requests = asked((100, 0.05), (5500, 0.2), first_tpot_s=0.0085)
    num_served = [
        verdicts(FluidPolicy().decide_many((0, 1), arrived_together(requests, roles), 0.0)).count(
            Verdict.SERVE
        )
        for roles in ("colocated-1", "disaggregated-1:1")
    ]
    assert num_served == [1, 2]


def test_a_prompt_that_leaves_for_another_decode_worker_holds_no_blocks_on_this_one() -> None:
    # Each takes most of one decode worker's memory; the first prompt still waits.
    machines = cluster("disaggregated-1:1", exact=True, num_kv_tokens=4000).with_roles(0, 1, 2)
    requests = asked((SHORT, 0.4), (SHORT, 0.4), gap_s=0.001)
    finished = simulate(requests, machines, "headway-dp")
    assert finished.score.strict.all()
    assert sorted(finished.result.sim["decode_worker"]) == [1, 2]


def test_blocks_are_counted_as_at_the_end() -> None:
    # 4100 tokens each in the end, and room for 20 000.
    requests = asked(*((100, 1.0),) * 12, gap_s=0.2, num_output_tokens=4000)
    machines = cluster("colocated-1", exact=True, num_kv_tokens=20_000)
    finished = simulate(requests, machines, "headway-dp")
    assert finished.score.promised.sum() == 4
    assert finished.num_broken == 0


@pytest.mark.parametrize(
    ("scenario", "roles", "num_workers"),
    [
        ("chat", "colocated-1", 1),
        ("coder", "colocated-1", 1),
        ("coder", "colocated-4", 4),
        ("chat", "disaggregated-1:1", 1),
        ("mixed", "disaggregated-2:2", 2),
    ],
)
def test_keeps_most_promises(scenario: str, roles: str, num_workers: int) -> None:
    requests = workload(scenario, 200, load=1.6, num_workers=num_workers, seed=7)
    score = simulate(requests, cluster(roles, exact=True), "headway-dp").score
    assert score.strict.sum() >= 0.9 * score.promised.sum()
    assert score.promised.mean() > 0.5
    assert not score.promised.all()


def test_chooses_again_from_what_it_deferred() -> None:
    requests = workload("coder", 400, load=1.4, num_workers=1, seed=2)
    simulation = simulation_of(requests, "colocated-1")
    result = simulation.run()
    policy = simulation.policy
    assert isinstance(policy, Noting)
    late = [row for row in policy.deferred if result.sim["deferred"][row] == 0]
    assert late
    assert len(late) < len(policy.deferred)
