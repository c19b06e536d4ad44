"""Every policy in the simulator; promises in a world that is as the planner believes."""

from __future__ import annotations

import numpy as np
import pytest

from headway.core.planner.baselines import BASELINES
from headway.sim import new_world
from headway.sim.settings import ClusterSettings
from headway.sim.world_state import PENDING, REFUSED, SERVED
from tests.simulated import CAPACITY, ROLES, Finished, cluster, simulate, watch, workload

POLICIES = ("headway", *BASELINES)


def roles_of(policy: str) -> str:
    separate = policy in BASELINES and BASELINES[policy].separate_pools
    return "disaggregated-1:1" if separate else "colocated-4"


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_the_limits_and_ends_what_it_takes(policy: str) -> None:
    machines = cluster(roles_of(policy), num_kv_tokens=60_000, max_running=40)
    asked = workload(
        "mixed", 160, load=1.3, num_workers=machines.num_workers, arrivals="azure-chat", seed=1
    )
    # Blocks are checked at every event.
    watched, finished = watch(asked, machines, policy, log=True, seed=1)
    sim = finished.result.sim
    assert not (sim["outcome"] == PENDING).any()
    assert (sim["outcome"] == SERVED).mean() > 0.5
    assert np.isnan(sim["last_token_at_s"][sim["outcome"] == REFUSED]).all()
    steps = finished.result.steps
    assert (steps["num_tokens"] <= machines.max_step_tokens).all()
    assert (steps["num_decodes"] + steps["num_chunks"] <= machines.max_running).all()
    budgets = watched.world.workers["token_budget"][steps["worker"]]
    if policy in {"sarathi", "edf"}:
        assert (steps["num_tokens"] <= budgets).all()


def arrays_of(finished: Finished) -> list[bytes]:
    result = finished.result
    return [array.tobytes() for array in (result.sim, result.steps, result.token_log)]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_repeats_bit_for_bit_and_another_seed_differs(policy: str) -> None:
    machines = cluster(roles_of(policy))
    asked = workload("mixed", 120, load=1.2, num_workers=machines.num_workers, seed=2)
    first, again, other = (
        arrays_of(simulate(asked, machines, policy, log=True, seed=seed)) for seed in (7, 7, 8)
    )
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_the_log_changes_nothing_however_often_it_is_emptied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So lightly loaded that most steps begin with an arrival.
    asked = workload("tools", 200, load=0.1, num_workers=4, seed=3)
    whole = simulate(asked, cluster("colocated-4"), log=True)
    monkeypatch.setattr(new_world, "_LOG_ROWS", 600)
    in_parts = simulate(asked, cluster("colocated-4"), log=True)
    without = simulate(asked, cluster("colocated-4"))
    assert arrays_of(in_parts) == arrays_of(whole)
    assert without.result.sim.tobytes() == whole.result.sim.tobytes()
    assert not len(without.result.steps)


def test_a_run_can_stop_before_a_decision() -> None:
    asked = workload("chat", 80, load=0.8, num_workers=1, seed=4)
    machines = cluster("colocated-1", exact=True)
    whole = simulate(asked, machines).result
    stopped = simulate(asked, machines, stop_before=50)
    assert stopped.result.num_decisions == 50
    ended = stopped.result.sim["outcome"] == SERVED
    assert 0 < ended.sum() <= 50
    assert (stopped.result.sim[ended] == whole.sim[ended]).all()
    assert stopped.simulation.world.requests["arrived_at_s"][50] == asked.arrived_at_s[50]


def test_a_run_ends_when_it_may() -> None:
    asked = workload("chat", 80, load=0.8, num_workers=1, seed=4)
    machines = cluster("colocated-1", exact=True)
    whole = simulate(asked, machines).result
    asked_at_s: list[float] = []

    def never(now_s: float) -> bool:
        asked_at_s.append(now_s)
        return False

    assert simulate(asked, machines, may_end=never).result.sim.tobytes() == whole.sim.tobytes()
    assert asked_at_s == sorted(asked_at_s)
    # Also while the last ones are served.
    assert asked_at_s[-1] > asked.arrived_at_s[-1]
    middle_s = asked_at_s[len(asked_at_s) // 2]
    ended = simulate(asked, machines, may_end=lambda now_s: now_s >= middle_s).result
    is_done = ended.sim["outcome"] == SERVED
    assert 0 < is_done.sum() < len(asked)
    assert (ended.sim[is_done] == whole.sim[is_done]).all()


@pytest.mark.parametrize(
    ("roles", "numbers"), [("colocated", (4, 0, 0)), ("1:3", (0, 1, 3)), ("2+1:1", (2, 1, 1))]
)
def test_roles_are_colocated_prefill_and_decode(roles: str, numbers: tuple[int, ...]) -> None:
    spec = ClusterSettings(gpus=4, roles=roles).spec()
    assert (spec.num_colocated, spec.num_prefill, spec.num_decode) == numbers


def test_rounds_of_a_session_follow_each_other() -> None:
    asked = workload("tools", 150, load=1.0, num_workers=1, seed=5)
    result = simulate(asked, cluster("colocated-1")).result
    rows = np.flatnonzero(asked.follows >= 0)
    assert len(rows) > 30
    before = asked.follows[rows]
    expected_s = result.sim["last_token_at_s"][before] + asked.gap_s[rows]
    assert result.arrived_at_s[rows] == pytest.approx(expected_s, abs=1e-12)


@pytest.mark.parametrize("roles", ROLES)
@pytest.mark.parametrize("scenario", CAPACITY)
def test_no_promise_is_broken_in_an_exact_world(scenario: str, roles: str) -> None:
    machines = cluster(roles, exact=True)
    num_promised = 0
    for load, arrivals in ((0.6, "azure-code"), (1.3, "poisson")):
        asked = workload(
            scenario, 75, load=load, num_workers=machines.num_workers, arrivals=arrivals, seed=6
        )
        finished = simulate(asked, machines)
        assert finished.num_broken == 0
        num_promised += int(finished.score.promised.sum())
    assert num_promised > 20


@pytest.mark.parametrize("error", [0.9, 1.1])
def test_most_promises_are_kept_when_the_model_is_off_and_steps_vary(error: float) -> None:
    for scenario in ("chat", "mixed"):
        asked = workload(scenario, 400, load=0.9, num_workers=1, seed=7)
        finished = simulate(asked, cluster("colocated-1", model_error_ratio=error), seed=7)
        num_promised = int(finished.score.promised.sum())
        assert num_promised > 200
        assert finished.num_broken <= 0.05 * num_promised


def test_what_starts_early_goes_on_at_its_pace() -> None:
    """Prompts that need the steps put decodes off, but not until the first token's own bound."""
    finished = simulate(
        workload("coder", 500, load=1.0, num_workers=1, seed=8), cluster("colocated-1")
    )
    tally = finished.score.all()
    assert tally.num_attained > 350
    assert tally.num_attained_mean > 0.9 * tally.num_attained
