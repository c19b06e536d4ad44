"""A hundred thousand requests in a world that is as the planner believes: promises are kept."""

from __future__ import annotations

import pytest

from tests.simulated import CAPACITY, ROLES, cluster, simulate, workload

pytestmark = pytest.mark.slow

ARRIVALS = ("poisson", "azure-code")
LOADS = (0.6, 1.3)
# About so many per run; arrivals are random.
NUM_REQUESTS = 800


@pytest.mark.parametrize("roles", ROLES)
@pytest.mark.parametrize("scenario", CAPACITY)
def test_promises_are_kept(scenario: str, roles: str) -> None:
    machines = cluster(roles, exact=True)
    num_asked = num_promised = num_broken = 0
    for seed, arrivals in enumerate(ARRIVALS):
        for load in LOADS:
            asked = workload(
                scenario,
                NUM_REQUESTS,
                load=load,
                num_workers=machines.num_workers,
                arrivals=arrivals,
                seed=seed,
            )
            finished = simulate(asked, machines)
            broken = (finished.score.promised & ~finished.score.strict).nonzero()[0]
            num_broken += len(broken)
            num_asked += len(asked)
            num_promised += int(finished.score.promised.sum())
    # 36 of these make 100,000.
    assert num_asked > 2800
    assert num_promised > 0.1 * num_asked
    # Where decode workers compute prompts too, pages that arrive at another time than planned
    # still break a promise now and then (decision 007); nowhere else may one break.
    assert num_broken <= (0.002 * num_promised if roles.startswith("hybrid") else 0)
