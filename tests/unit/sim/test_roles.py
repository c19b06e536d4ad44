"""Workers that change their roles in the simulator, and what a workload asks of each role."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from headway.core.planner.arrival import Answer, ClusterView, RoleChange
from headway.core.planner.promising import PromisePolicy
from headway.sim.cluster import ClusterSpec
from headway.sim.roles import advised_split, load_of_workload
from headway.sim.scenarios import build
from headway.sim.workload import Workload
from headway.sim.world_state import SERVED
from tests.simulated import Watched, cluster, simulate, watch, workload


def machines(num_prefill: int, num_decode: int) -> ClusterSpec:
    return cluster("colocated-1").with_roles(0, num_prefill, num_decode)


@dataclass
class Once:
    """Headway's policy, with one change of role at a given instant."""

    change: RoleChange
    at_s: float
    policy: PromisePolicy = field(default_factory=PromisePolicy)
    former: int = 0

    def decide(self, new: int, view: ClusterView, now_s: float) -> Answer:
        return self.policy.decide(new, view, now_s)

    def place_deferred(self, waiting: int, view: ClusterView, now_s: float) -> Answer:
        return self.policy.place_deferred(waiting, view, now_s)

    def change_role(self, view: ClusterView, now_s: float) -> RoleChange | None:
        del view
        if now_s < self.at_s:
            return None
        self.at_s = np.inf
        return self.change


@pytest.mark.parametrize(
    ("change", "places"),
    [
        (RoleChange(3, prefills=True, decodes=False), ("decode_worker", "prefill_worker")),
        (RoleChange(0, prefills=False, decodes=True), ("prefill_worker", "decode_worker")),
    ],
    ids=["decode to prefill", "prefill to decode"],
)
def test_a_worker_ends_what_it_has_and_then_takes_the_other_role(
    change: RoleChange, places: tuple[str, str]
) -> None:
    asked = workload("coder", 800, load=0.4, num_workers=4, seed=2)
    policy = Once(change, at_s=3.0)
    policy.former = policy.policy.former
    watched = Watched(asked, machines(2, 2), policy, (policy.former,) * 4)
    result = watched.run()
    (flip,) = result.flips
    assert flip.worker == change.worker
    assert 3.0 <= flip.decided_at_s <= flip.taken_at_s
    sim, arrived_at_s = result.sim, result.arrived_at_s
    assert (sim["outcome"] == SERVED).all()
    before, after = places
    used_before = arrived_at_s[sim[before] == change.worker]
    # Best effort may wait for its place.
    used_after = arrived_at_s[(sim[after] == change.worker) & (sim["deferred"] == 0)]
    assert len(used_before) > 3
    assert len(used_after) > 3
    assert used_before.max() < flip.decided_at_s
    assert used_after.min() >= flip.taken_at_s
    # Nobody was thrown out.
    assert sim["num_preemptions"].sum() == 0
    assert (watched.world.workers["num_free_blocks"] == watched.world.workers["num_blocks"]).all()


def summaries() -> Workload:
    return build("summarizer", arrivals="poisson", rate=18.0, duration_s=40.0, seed=1)


def test_a_wrong_split_is_put_right() -> None:
    asked = summaries()
    fixed = simulate(asked, machines(1, 3))
    flipping = simulate(asked, machines(1, 3), "headway-roles")
    assert [flip.prefills for flip in flipping.result.flips] == [True]
    assert flipping.score.strict.mean() > fixed.score.strict.mean() + 0.05


def test_a_right_split_is_left_alone() -> None:
    _, finished = watch(summaries(), machines(2, 2), "headway-roles")
    assert finished.result.flips == []


def test_a_workloads_load_is_that_of_its_requests() -> None:
    asked = build("summarizer", arrivals="poisson", rate=10.0, duration_s=30.0, seed=1)
    machine = cluster("colocated-1")
    load = load_of_workload(asked, machine)
    token_s = machine.hardware.perf_model.token_s
    duration_s = asked.arrived_at_s.max()
    assert load.prefill_s > token_s * asked.num_prompt_tokens.sum() / duration_s
    assert load.prefill_s < 1.5 * token_s * asked.num_prompt_tokens.sum() / duration_s
    assert load.tightest_tpot_s == pytest.approx(0.1)


def test_what_is_advised_serves_more_than_its_opposite() -> None:
    asked = build("coder", arrivals="poisson", rate=20.0, duration_s=20.0, seed=1)
    advised = advised_split(asked, machines(2, 2))
    assert advised is not None
    assert (advised.num_prefill, advised.num_decode) == (3, 1)
    shares = [
        simulate(asked, machines(*split), "distserve").score.strict.mean()
        for split in ((3, 1), (1, 3))
    ]
    assert shares[0] > shares[1] + 0.3


def test_a_single_worker_gets_no_advice() -> None:
    assert advised_split(summaries(), cluster("colocated-1")) is None
