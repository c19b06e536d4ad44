"""Runs one workload on one simulated cluster under one policy, in virtual time."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field

import numpy as np

from headway.core.batch_state import Floats, Records
from headway.core.planner.arrival import ArrivalPolicy, ClusterView, RoleChanges, Verdict
from headway.sim.best_effort import BestEffort
from headway.sim.cluster import ClusterSpec
from headway.sim.incoming import Incoming
from headway.sim.new_world import new_world, view_of
from headway.sim.options import RunOptions
from headway.sim.placing import Placing
from headway.sim.result import RunResult
from headway.sim.roles import RoleBook
from headway.sim.workload import Workload
from headway.sim.world_kernel import LOG_FULL, TIME_REACHED, advance
from headway.sim.world_state import (
    NUM_FINISHED,
    NUM_STEPS_LOGGED,
    NUM_TOKENS_LOGGED,
    REFUSED,
    STEP,
    STOP_ON_FINISH,
    TOKEN,
    World,
)

# `RunOptions.may_end` is asked once in so many arrivals, or ends once none are to come.
_ASK_EVERY = 32


@dataclass(slots=True)
class Simulation:
    """One run. Deterministic: the same arguments give the same result, bit for bit."""

    workload: Workload
    cluster: ClusterSpec
    policy: ArrivalPolicy
    formers: tuple[int, ...]
    options: RunOptions = field(default_factory=RunOptions)
    world: World = field(init=False)
    view: ClusterView = field(init=False)
    _arrived_at_s: Floats = field(init=False)
    _followers: dict[int, int] = field(init=False)
    _due: list[tuple[float, int]] = field(init=False)
    _incoming: Incoming = field(init=False)
    _placing: Placing = field(init=False)
    _best_effort: BestEffort = field(init=False)
    _roles: RoleBook | None = field(init=False)
    _steps: list[Records] = field(default_factory=list)
    _tokens: list[Records] = field(default_factory=list)
    _planning_s: float = 0.0
    _num_decisions: int = 0
    _now_s: float = 0.0
    _num_until_asked: int = _ASK_EVERY
    _has_ended: bool = False

    def __post_init__(self) -> None:
        workload, cluster, policy = self.workload, self.cluster, self.policy
        self._arrived_at_s = workload.arrived_at_s.copy()
        self._followers = {
            int(before): index for index, before in enumerate(workload.follows) if before >= 0
        }
        self._due = [
            (float(at_s), index)
            for index, at_s in enumerate(workload.arrived_at_s)
            if not np.isnan(at_s)
        ]
        heapq.heapify(self._due)
        self.world = world = new_world(workload, cluster, self.formers, self.options)
        self.view = view_of(world, cluster)
        self._incoming = Incoming(workload, cluster, self.options, world)
        self._placing = Placing(workload, cluster, world, self.view)
        self._best_effort = BestEffort(world, self.view, policy, self._placing)
        self._roles = RoleBook(world, policy) if isinstance(policy, RoleChanges) else None

    def run(self) -> RunResult:
        """Run until every request that was taken has ended, or `RunOptions.may_end`.

        Raises:
            RuntimeError: requests are left on a worker that never runs them: a bug of the policy.
        """
        started_s = time.perf_counter()
        while not self._has_ended:
            until_s = self._due[0][0] if self._due else np.inf
            if not self._advance(until_s):
                continue
            if self._due:
                at_s, index = heapq.heappop(self._due)
                if index == self.options.stop_before:
                    self._now_s = at_s
                    self._fill(index, at_s)
                    return self._result(started_s)
                self._arrive(index, at_s)
            elif not self._best_effort.start_waiting(self._now_s):
                if self.world.counts.any() or self._best_effort.waiting:
                    raise RuntimeError(
                        f"requests are stuck: {self.world.counts.tolist()} on workers, "
                        f"{len(self._best_effort.waiting)} that wait for a place"
                    )
                break
        return self._result(started_s)

    def _result(self, started_s: float) -> RunResult:
        self._take_logs()
        return RunResult(
            workload=self.workload,
            sim=self.world.sim,
            arrived_at_s=self._arrived_at_s,
            ttft_bound_s=self._incoming.ttft_bound_s,
            acceptances=self.world.acceptances,
            flips=self._roles.flips if self._roles else [],
            steps=np.concatenate([np.zeros(0, STEP), *self._steps]),
            token_log=np.concatenate([np.zeros(0, TOKEN), *self._tokens]),
            num_decisions=self._num_decisions,
            planning_s=self._planning_s + self._best_effort.planning_s,
            wall_s=time.perf_counter() - started_s,
        )

    def _advance(self, until_s: float) -> bool:
        """Run the world up to `until_s`; False if something is due before that now."""
        world = self.world
        watched = self.options.may_end is not None and not self._due
        waiting = self._best_effort.waiting
        world.options[STOP_ON_FINISH] = int(bool(waiting or self._followers or watched))
        while (code := advance(world, until_s)) != TIME_REACHED:
            if code == LOG_FULL:
                self._take_logs()
                continue
            self._take_finished()
            if watched:
                self._ask_to_end()
                if self._has_ended:
                    return False
            if waiting:
                self._best_effort.start_waiting(self._now_s)
            if self._due and self._due[0][0] < until_s:
                return False
        self._take_finished()
        if np.isfinite(until_s):
            self._now_s = until_s
        return not (self._due and self._due[0][0] < until_s)

    def _take_finished(self) -> None:
        world = self.world
        for index in world.finished[: world.counters[NUM_FINISHED]].tolist():
            self._now_s = float(world.sim["last_token_at_s"][index])
            self._incoming.ended(index)
            self._followers_are_due(index, self._now_s)
        if self._roles is not None:
            self._roles.settle(self._now_s)
        world.counters[NUM_FINISHED] = 0

    def _ask_to_end(self) -> None:
        if self.options.may_end is None:
            return
        self._num_until_asked -= 1
        if self._num_until_asked == 0:
            self._num_until_asked = _ASK_EVERY
            self._has_ended = self.options.may_end(self._now_s)

    def _followers_are_due(self, index: int, at_s: float) -> None:
        follower = self._followers.pop(index, None)
        if follower is not None:
            heapq.heappush(self._due, (at_s + float(self.workload.gap_s[follower]), follower))

    def _take_logs(self) -> None:
        counters = self.world.counters
        self._steps.append(self.world.step_log[: counters[NUM_STEPS_LOGGED]].copy())
        self._tokens.append(self.world.token_log[: counters[NUM_TOKENS_LOGGED]].copy())
        counters[NUM_STEPS_LOGGED] = counters[NUM_TOKENS_LOGGED] = 0

    def _arrive(self, index: int, now_s: float) -> None:
        self._now_s = now_s
        self._arrived_at_s[index] = now_s
        if self._roles is not None:
            self._roles.settle(now_s)
        self._fill(index, now_s)
        self._best_effort.promise_late(now_s)
        self._best_effort.raise_aged(now_s)
        started_s = time.perf_counter()
        if self._roles is not None:
            self._roles.ask(self.view, now_s)
        answer = self.policy.decide(index, self.view, now_s)
        self._planning_s += time.perf_counter() - started_s
        self._num_decisions += 1
        if self.options.progress is not None and self._num_decisions % 256 == 0:
            self.options.progress(now_s)
        self._ask_to_end()
        if answer.verdict is Verdict.SERVE:
            self._placing.place(index, answer, now_s)
        elif answer.verdict is Verdict.DEFER:
            self._best_effort.defer(index, now_s)
        else:
            self.world.sim["outcome"][index] = REFUSED
            self._followers_are_due(index, now_s)

    def _fill(self, index: int, now_s: float) -> None:
        """What the policy sees of a request that arrives."""
        self._incoming.fill(index, now_s)
        self._placing.find_kept(index)
