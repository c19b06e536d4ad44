"""What came of one run of the simulator."""

from __future__ import annotations

from dataclasses import dataclass

from headway.core.batch_state import Floats, Records
from headway.sim.roles import Flip
from headway.sim.workload import Workload


@dataclass(slots=True)
class RunResult:
    """What came of a run; all arrays in the workload's order.

    Attributes:
        sim: SIM records.
        arrived_at_s, ttft_bound_s: per request, rounds of a session resolved.
        acceptances: ACCEPTANCE records of the tiers, as learned by the end.
        flips: workers that changed their roles, in order.
        steps, token_log: STEP and TOKEN records; empty unless asked for.
        planning_s: wall-clock seconds in the policy, and `wall_s` in all.
    """

    workload: Workload
    sim: Records
    arrived_at_s: Floats
    ttft_bound_s: Floats
    acceptances: Records
    flips: list[Flip]
    steps: Records
    token_log: Records
    num_decisions: int
    planning_s: float
    wall_s: float
