"""What becomes of requests that are served without a promise: they wait, are promised late, age."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from headway.core.planner.ageing import raise_pace
from headway.core.planner.arrival import Ageing, ArrivalPolicy, ClusterView, LatePromises, Verdict
from headway.sim.placing import Placing
from headway.sim.world_state import World


@dataclass(slots=True)
class BestEffort:
    """Asks a policy about best effort, and does as it says.

    Attributes:
        waiting: deferred requests that have no place yet, first come first.
        planning_s: wall-clock seconds in the policy.
    """

    world: World
    view: ClusterView
    policy: ArrivalPolicy
    placing: Placing
    waiting: deque[int] = field(default_factory=deque)
    planning_s: float = 0.0
    _late_promises: LatePromises | None = field(init=False)
    _ageing: Ageing | None = field(init=False)

    def __post_init__(self) -> None:
        # Asked once: looking a protocol up takes as long as many a decision.
        self._ageing = self.policy if isinstance(self.policy, Ageing) else None
        self._late_promises = self.policy if isinstance(self.policy, LatePromises) else None

    def defer(self, index: int, now_s: float) -> None:
        """Start a request that was not promised, or let it wait until it fits."""
        self.world.sim["deferred"][index] = 1
        self.world.requests[index]["guaranteed"] = 0
        if not self._start(index, now_s):
            # What cannot be on time need not hurry.
            record = self.world.requests[index]
            record["prefill_due_at_s"] = record["next_due_at_s"] = np.inf
            self.waiting.append(index)

    def start_waiting(self, now_s: float) -> bool:
        """Start deferred requests while the first one fits; whether any did."""
        started = False
        while self.waiting and self._start(self.waiting[0], now_s):
            self.waiting.popleft()
            started = True
        return started

    def promise_late(self, now_s: float) -> None:
        """Promise deferred requests that have met their bounds so far and fit now."""
        if self._late_promises is None:
            return
        started_s = time.perf_counter()
        for worker in range(len(self.world.workers)):
            while (row := self._late_promises.promise_late(worker, self.view, now_s)) >= 0:
                self.world.requests[row]["guaranteed"] = 1
                self.world.sim["deferred"][row % len(self.world.sim)] = 0
        self.planning_s += time.perf_counter() - started_s

    def raise_aged(self, now_s: float) -> None:
        """Help best effort that has waited too long. It stays best effort in the score."""
        if self._ageing is None:
            return
        started_s = time.perf_counter()
        for worker in range(len(self.world.workers)):
            row = self._ageing.raise_aged(worker, self.view, now_s)
            if row >= 0:
                raise_pace(self.world.requests[row], now_s)
        self.planning_s += time.perf_counter() - started_s

    def _start(self, index: int, now_s: float) -> bool:
        self.placing.find_kept(index)
        started_s = time.perf_counter()
        answer = self.policy.place_deferred(index, self.view, now_s)
        self.planning_s += time.perf_counter() - started_s
        if answer.verdict is not Verdict.SERVE:
            return False
        self.placing.place(index, answer, now_s)
        return True
