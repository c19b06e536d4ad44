"""A hundred thousand requests in a world that is as the planner believes: promises are kept."""

from __future__ import annotations

import pytest

from tests.simulated import CAPACITY, ROLES, cluster, simulate, workload

pytestmark = pytest.mark.slow

ARRIVALS = ("poisson", "azure-code")
LOADS = (0.6, 1.3)
# About so many per run; arrivals are random.
NUM_REQUESTS = 800


@pytest.mark.parametrize("scenario", CAPACITY)
@pytest.mark.parametrize("roles", ROLES)
def test_promises_are_kept(scenario: str, roles: str) -> None:
    machines = cluster(roles, exact=True)
    num_asked = num_promised = 0
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
            assert not len(broken), f"{arrivals} at {load}: {broken.tolist()}"
            num_asked += len(asked)
            num_promised += int(finished.score.promised.sum())
    # 36 of these make 100,000.
    assert num_asked > 2800
    assert num_promised > 0.2 * num_asked
