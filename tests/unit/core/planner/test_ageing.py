"""Best effort under steady promised load: it gets a bounded share, and breaks no promise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from headway.core.batch_state import DECODE, Records
from headway.core.planner.ageing import RAISED_AFTER_S, RAISED_WITHIN_S, aged, raise_pace
from headway.core.planner.arrival import Answer, ArrivalPolicy, ClusterView
from headway.core.planner.baselines.codes import SLACK
from headway.core.planner.promising import PromisePolicy
from headway.sim.scoring import score
from headway.sim.simulation import Simulation
from tests.former_loop import make_requests, make_worker
from tests.simulated import cluster, workload

NOW_S = 100.0
PROMISED = {"phase": DECODE, "next_due_at_s": NOW_S + 1.0, "arrived_at_s": NOW_S - 1.0}
WAITING = {"guaranteed": 0, "next_due_at_s": np.inf, "prefill_due_at_s": np.inf}


def raised(requests: Records, workers: Records | None = None) -> int:
    n = len(requests)
    none = np.zeros(n, np.int64)
    own = make_worker(step_cap_s=np.inf) if workers is None else workers
    return aged(NOW_S, requests, np.arange(n), n, none, own[0])


def waiting(waited_s: float, **values: float) -> dict[str, float]:
    return {**WAITING, "arrived_at_s": NOW_S - waited_s, **values}


def test_who_waited_longest_is_raised_and_only_after_a_while() -> None:
    old, older = waiting(RAISED_AFTER_S + 1), waiting(RAISED_AFTER_S + 2)
    assert raised(make_requests(PROMISED, waiting(RAISED_AFTER_S - 0.1))) == -1
    # The order of arrival counts, not the place in the list.
    requests = make_requests({**PROMISED, "order": 9}, {**old, "order": 5}, {**older, "order": 4})
    assert raised(requests) == 2


def test_one_at_a_time_beside_few_promised_and_more_beside_many() -> None:
    rows = [waiting(50.0), waiting(40.0)]
    for num_promised, expected in ((3, -1), (30, 1)):
        requests = make_requests(*rows, *([PROMISED] * num_promised))
        raise_pace(requests[0], NOW_S)
        assert raised(requests) == expected


def test_it_is_raised_only_if_promises_are_kept() -> None:
    # 10 ms per step and a token due every 50 ms: there is time. With a token due every step there
    # is none for a prompt of 100 tokens, which makes a step longer.
    rows = [waiting(50.0), PROMISED]
    assert raised(make_requests(*rows)) == 0
    tight = {**PROMISED, "tpot_s": 0.0101, "next_due_at_s": NOW_S + 0.0101}
    workers = make_worker(step_cap_s=np.inf, floor_s=0.0105)
    assert raised(make_requests(rows[0], tight), workers) == -1


def test_what_is_raised_is_due_later_at_its_own_pace() -> None:
    requests = make_requests(waiting(50.0, tpot_s=0.07))
    raise_pace(requests[0], NOW_S)
    (record,) = requests
    assert record["guaranteed"] == record["is_raised"] == 1
    assert record["next_due_at_s"] == record["prefill_due_at_s"] == NOW_S + RAISED_WITHIN_S
    assert record["tpot_s"] == 0.07


@dataclass
class NobodyAges:
    """Headway's policy without ageing."""

    policy: PromisePolicy = field(default_factory=PromisePolicy)
    former: int = SLACK

    def decide(self, new: int, view: ClusterView, now_s: float) -> Answer:
        return self.policy.decide(new, view, now_s)

    def place_deferred(self, waiting: int, view: ClusterView, now_s: float) -> Answer:
        return self.policy.place_deferred(waiting, view, now_s)

    def promise_late(self, w: int, view: ClusterView, now_s: float) -> int:
        return self.policy.promise_late(w, view, now_s)


@pytest.mark.parametrize("scenario", ["chat", "coder"])
def test_under_steady_overload_some_best_effort_ends_and_no_promise_breaks(scenario: str) -> None:
    asked = workload(scenario, 2400, load=1.8, num_workers=1, seed=1)
    machines = cluster("colocated-1", exact=True)
    ended, attained = [], []
    policies: tuple[ArrivalPolicy, ...] = (PromisePolicy(), NobodyAges())
    for policy in policies:
        result = Simulation(asked, machines, policy, (policy.former,)).run()
        scored = score(result)
        assert not (scored.promised & ~scored.strict).any()
        in_time = result.sim["last_token_at_s"] < asked.arrived_at_s[-1]
        ended.append(int((in_time & (result.sim["deferred"] == 1)).sum()))
        attained.append(float(scored.strict.mean()))
    assert ended[0] >= ended[1] + 3
    assert attained[0] > attained[1] - 0.03
