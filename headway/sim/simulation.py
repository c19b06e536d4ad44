"""Runs one workload on one simulated cluster under one policy, in virtual time."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from headway.core.batch_state import ARRIVING, GONE, PREFILL, REQUEST, Flags, Floats, Ints, Records
from headway.core.planner.acceptance import new_acceptances
from headway.core.planner.ageing import raise_pace
from headway.core.planner.arrival import (
    Ageing,
    Answer,
    ArrivalPolicy,
    ClusterView,
    LatePromises,
    RoleChanges,
    Verdict,
)
from headway.core.planner.baselines.codes import SLACK
from headway.core.planner.output_lengths import OutputLengths
from headway.core.residual import new_residuals
from headway.core.slo import Promise
from headway.sim.cluster import ClusterSpec
from headway.sim.kept_kv import NOBODY, find_kept, place_on_kept
from headway.sim.roles import Flip, RoleBook
from headway.sim.truth import uniform
from headway.sim.workload import Workload
from headway.sim.world_kernel import LOG_FULL, TIME_REACHED, advance, begin_step, make_room
from headway.sim.world_state import (
    LEARN,
    LEARN_ACCEPTANCE,
    LOG,
    NUM_FINISHED,
    NUM_STEPS_LOGGED,
    NUM_TOKENS_LOGGED,
    PREFILL_EMITS,
    REFUSED,
    SIM,
    STEP,
    STOP_ON_FINISH,
    TOKEN,
    World,
)

# Steps kept in the compiled loop's buffer before they are taken out; tokens twice as many, so
# that those of one more step always find room.
_LOG_ROWS = 65536

# `RunOptions.may_end` is asked once in so many arrivals, or ends once none are to come.
_ASK_EVERY = 32
# Requests of one tier differ by so much in how often their drafts are accepted.
_ACCEPTANCE_RANGE = 0.2
# Of `truth.uniform`; below the workers' noise, and above all requests' numbers.
_ACCEPTANCE_STREAM = 1 << 39

# Tokens of output planned with while nothing is known.
_FIRST_LENGTH = 256


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How one run is done.

    Attributes:
        seed: of the truth's noise.
        known_lengths: policies see each output's true length; else what `OutputLengths` has
            learned from those that have ended.
        prefill_emits_first_token: the prefill worker sends it, not the decode worker.
        log: keep every step, and the time of every token that counts.
        learn: planners learn from measured step times, which is pointless in an exact world, and
            which drafts are accepted.
        stop_before: end the run just before the decision on this request; None for never.
        progress: called with the virtual time now and then.
        may_end: asked with the virtual time now and then; the run ends when it says so.
    """

    seed: int = 0
    known_lengths: bool = True
    prefill_emits_first_token: bool = False
    log: bool = False
    learn: bool = True
    stop_before: int | None = None
    progress: Callable[[float], None] | None = None
    may_end: Callable[[float], bool] | None = None


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
    _ttft_bound_s: Floats = field(init=False)
    _followers: dict[int, int] = field(init=False)
    _due: list[tuple[float, int]] = field(init=False)
    _late_promises: LatePromises | None = field(init=False)
    _ageing: Ageing | None = field(init=False)
    _holds_at_once: Flags = field(init=False)
    _last_start_s: float = field(init=False)
    _roles: RoleBook | None = field(init=False)
    _deferred: deque[int] = field(default_factory=deque)
    _steps: list[Records] = field(default_factory=list)
    _tokens: list[Records] = field(default_factory=list)
    _lengths: OutputLengths = field(default_factory=lambda: OutputLengths(_FIRST_LENGTH))
    _planning_s: float = 0.0
    _num_decisions: int = 0
    _now_s: float = 0.0
    _num_until_asked: int = _ASK_EVERY
    _has_ended: bool = False

    def __post_init__(self) -> None:
        # Asked once: looking a protocol up takes as long as many a decision.
        self._ageing = self.policy if isinstance(self.policy, Ageing) else None
        self._late_promises = self.policy if isinstance(self.policy, LatePromises) else None
        workload, num_requests = self.workload, len(self.workload)
        self._holds_at_once = np.array(self.formers) == SLACK
        self._arrived_at_s = workload.arrived_at_s.copy()
        self._ttft_bound_s = np.zeros(num_requests)
        self._followers = {
            int(before): index for index, before in enumerate(workload.follows) if before >= 0
        }
        self._due = [
            (float(at_s), index)
            for index, at_s in enumerate(workload.arrived_at_s)
            if not np.isnan(at_s)
        ]
        self._last_start_s = max((at_s for at_s, _ in self._due), default=0.0)
        heapq.heapify(self._due)
        self.world = self._build_world()
        world, cluster = self.world, self.cluster
        policy = self.policy
        self._roles = RoleBook(world, policy) if isinstance(policy, RoleChanges) else None
        self.view = ClusterView(
            requests=world.requests,
            ids=world.ids,
            counts=world.counts,
            grants=world.grants,
            workers=world.workers,
            link_free_at_s=world.workers["link_free_at_s"],
            link_bytes_per_s=cluster.link_bytes_per_s,
            link_latency_s=cluster.link_latency_s,
            kv_bytes_per_token=cluster.hardware.kv_bytes_per_token,
            num_kept_tokens=np.zeros(cluster.num_workers, np.int64),
        )

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
            elif not self._place_deferred():
                if self.world.counts.any() or self._deferred:
                    raise RuntimeError(
                        f"requests are stuck: {self.world.counts.tolist()} on workers, "
                        f"{len(self._deferred)} that wait for a place"
                    )
                break
        return self._result(started_s)

    def _result(self, started_s: float) -> RunResult:
        self._take_logs()
        return RunResult(
            workload=self.workload,
            sim=self.world.sim,
            arrived_at_s=self._arrived_at_s,
            ttft_bound_s=self._ttft_bound_s,
            acceptances=self.world.acceptances,
            flips=self._roles.flips if self._roles else [],
            steps=np.concatenate([np.zeros(0, STEP), *self._steps]),
            token_log=np.concatenate([np.zeros(0, TOKEN), *self._tokens]),
            num_decisions=self._num_decisions,
            planning_s=self._planning_s,
            wall_s=time.perf_counter() - started_s,
        )

    def _advance(self, until_s: float) -> bool:
        """Run the world up to `until_s`; False if something is due before that now."""
        world = self.world
        watched = self.options.may_end is not None and not self._due
        world.options[STOP_ON_FINISH] = int(bool(self._deferred or self._followers or watched))
        while (code := advance(world, until_s)) != TIME_REACHED:
            if code == LOG_FULL:
                self._take_logs()
                continue
            self._take_finished()
            if watched:
                self._ask_to_end()
                if self._has_ended:
                    return False
            if self._deferred:
                self._place_deferred()
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
            self._lengths.ended(
                int(self.workload.tier[index]), int(self.workload.num_output_tokens[index])
            )
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
        self._promise_late()
        self._raise_aged()
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
            self._place(index, answer)
            return
        if answer.verdict is Verdict.REFUSE:
            self.world.sim["outcome"][index] = REFUSED
            self._followers_are_due(index, now_s)
            return
        self.world.sim["deferred"][index] = 1
        self.world.requests[index]["guaranteed"] = 0
        if not self._start_deferred(index):
            # What cannot be on time need not hurry.
            record = self.world.requests[index]
            record["prefill_due_at_s"] = record["next_due_at_s"] = np.inf
            self._deferred.append(index)

    def _place_deferred(self) -> bool:
        """Start deferred requests, first come first served, while the first one fits."""
        placed = False
        while self._deferred and self._start_deferred(self._deferred[0]):
            self._deferred.popleft()
            placed = True
        return placed

    def _start_deferred(self, index: int) -> bool:
        self._find_kept(index)
        started_s = time.perf_counter()
        answer = self.policy.place_deferred(index, self.view, self._now_s)
        self._planning_s += time.perf_counter() - started_s
        if answer.verdict is not Verdict.SERVE:
            return False
        self._place(index, answer)
        return True

    def _promise_late(self) -> None:
        """Promise deferred requests that have met their bounds so far and fit now."""
        if self._late_promises is None:
            return
        started_s = time.perf_counter()
        for worker in range(self.cluster.num_workers):
            while (row := self._late_promises.promise_late(worker, self.view, self._now_s)) >= 0:
                self.world.requests[row]["guaranteed"] = 1
                self.world.sim["deferred"][row % len(self.workload)] = 0
        self._planning_s += time.perf_counter() - started_s

    def _raise_aged(self) -> None:
        """Help best effort that has waited too long. It stays best effort in the score."""
        if self._ageing is None:
            return
        started_s = time.perf_counter()
        for worker in range(self.cluster.num_workers):
            row = self._ageing.raise_aged(worker, self.view, self._now_s)
            if row >= 0:
                raise_pace(self.world.requests[row], self._now_s)
        self._planning_s += time.perf_counter() - started_s

    def _place(self, index: int, answer: Answer) -> None:
        world, num_requests = self.world, len(self.workload)
        record, sim = world.requests[index], world.sim[index]
        sim["prefill_worker"], sim["decode_worker"] = answer.prefill_worker, answer.decode_worker
        self._list(answer.prefill_worker, index)
        if answer.prefill_worker != answer.decode_worker:
            record["leaves_after_prefill"] = 1
            record["prefill_due_at_s"] -= answer.handover_s
            twin = num_requests + index
            world.requests[twin] = record
            world.requests[twin]["phase"] = ARRIVING
            world.requests[twin]["arrives_at_s"] = answer.arrives_at_s
            world.requests[twin]["leaves_after_prefill"] = 0
            self._list(answer.decode_worker, twin)
            if self.formers[answer.decode_worker] == SLACK:
                # Planned with; engines of the baselines look for room when pages come.
                make_room(world, index)
        self._place_on_kept(index, answer.prefill_worker)
        if not world.running[answer.prefill_worker]:
            begin_step(world, answer.prefill_worker, self._now_s)

    def _true_acceptance(self, index: int, now_s: float) -> float:
        """How a request's drafts fare: about as its tier's do by then."""
        name = self.workload.tiers[self.workload.tier[index]].name
        ends = dict(self.cluster.true_acceptance).get(name)
        if ends is None:
            return self.cluster.acceptance
        mean = float(np.interp(now_s, (0.0, self._last_start_s), ends))
        spread = uniform(self.options.seed, _ACCEPTANCE_STREAM, index) - 0.5
        return float(np.clip(mean + _ACCEPTANCE_RANGE * spread, 0.0, 1.0))

    def _find_kept(self, index: int) -> None:
        """Note where KV of this request's session is kept, for the policy."""
        found = self.view.num_kept_tokens
        assert found is not None
        find_kept(self.world, index, int(self.workload.num_prefix_tokens[index]), found)
        # A worker that is full cannot hold blocks for one more.
        found[self._holds_at_once & (self.world.counts >= self.cluster.max_running)] = 0

    def _place_on_kept(self, index: int, worker: int) -> None:
        """Begin with what the worker keeps.

        A promise counts on it, so Headway holds it from the decision on; the engines of the
        baselines look it up when they start a request.
        """
        assert self.view.num_kept_tokens is not None
        num_tokens = int(self.view.num_kept_tokens[worker])
        if num_tokens:
            holds_at_once = bool(self._holds_at_once[worker])
            place_on_kept(self.world, worker, index, num_tokens, holds_at_once)

    def _list(self, worker: int, row: int) -> None:
        position = self.world.counts[worker]
        self.world.ids[worker, position] = row
        # It is not in the step that may be running.
        self.world.grants[worker, position] = 0
        self.world.counts[worker] = position + 1

    def _fill(self, index: int, now_s: float) -> None:
        """What the policy sees of a request that arrives."""
        workload, cluster = self.workload, self.cluster
        slo = workload.tiers[workload.tier[index]].slo
        num_prompt_tokens = int(workload.num_prompt_tokens[index])
        promise = slo.promise(
            cluster.hardware.perf_model.prefill_s(num_prompt_tokens, 0, cluster.max_step_tokens)
        )
        self._ttft_bound_s[index] = promise.ttft_s
        num_thinking = int(workload.num_thinking_tokens[index])
        due_at_s = now_s + promise.ttft_s - cluster.first_token_overhead_s
        record = self.world.requests[index]
        record["order"] = index
        record["tier"] = workload.tier[index]
        record["phase"] = PREFILL
        record["guaranteed"] = 1
        record["arrived_at_s"] = now_s
        record["prefill_due_at_s"] = record["next_due_at_s"] = due_at_s
        record["tpot_s"], record["later_tpot_s"] = _gaps(promise, num_thinking)
        record["num_stage_tokens_left"] = num_thinking if num_thinking > 0 else -1
        record["num_prompt_tokens"] = num_prompt_tokens
        record["num_output_bound"] = (
            workload.num_output_tokens[index]
            if self.options.known_lengths
            else self._lengths.bound(int(workload.tier[index]))
        )
        record["acceptance"] = cluster.acceptance
        sim = self.world.sim[index]
        sim["first_due_at_s"] = due_at_s
        sim["num_own_prompt_tokens"] = num_prompt_tokens
        sim["sent_at_s"] = np.inf
        sim["acceptance"] = self._true_acceptance(index, now_s)
        self._find_kept(index)

    def _build_world(self) -> World:
        workload, cluster, options = self.workload, self.cluster, self.options
        num_requests, num_workers = len(workload), cluster.num_workers
        truths, knots, times = cluster.truth_arrays(options.seed)
        requests = np.zeros(2 * num_requests, REQUEST)
        requests["phase"] = GONE
        sim = np.zeros(num_requests, SIM)
        sim["num_output_tokens"] = workload.num_output_tokens
        sim["session"], num_sessions = _sessions(workload.follows)
        sim["is_followed"][workload.follows[workload.follows >= 0]] = 1
        sim["first_token_at_s"] = sim["last_token_at_s"] = np.nan
        world_options = np.zeros(5, np.int64)
        world_options[LOG] = options.log
        world_options[PREFILL_EMITS] = options.prefill_emits_first_token
        world_options[LEARN_ACCEPTANCE] = options.learn and cluster.max_draft_tokens > 0
        world_options[LEARN] = options.learn and not cluster.exact
        return World(
            requests=requests,
            sim=sim,
            ids=np.zeros((num_workers, num_requests), np.int64),
            counts=np.zeros(num_workers, np.int64),
            grants=np.zeros((num_workers, num_requests), np.int64),
            workers=cluster.worker_records(),
            truths=truths,
            knots=knots,
            times=times,
            formers=np.array(self.formers, np.int64),
            running=np.zeros(num_workers, np.int64),
            wake_at_s=np.full(num_workers, np.inf),
            step_numbers=np.zeros(num_workers, np.int64),
            link_latency_s=np.array([cluster.link_latency_s]),
            finished=np.zeros(num_requests, np.int64),
            step_log=np.zeros(_LOG_ROWS if options.log else 1, STEP),
            token_log=np.zeros(2 * _LOG_ROWS if options.log else 1, TOKEN),
            residuals=new_residuals(num_workers),
            acceptances=new_acceptances(cluster.acceptance, len(workload.tiers)),
            kept=np.zeros((num_workers, num_sessions), np.int64),
            kept_since=np.zeros((num_workers, num_sessions), np.int64),
            kept_for=np.full((num_workers, num_sessions), NOBODY),
            num_kept=np.zeros(num_workers, np.int64),
            kept_clock=np.zeros(1, np.int64),
            counters=np.zeros(3, np.int64),
            options=world_options,
        )


def _sessions(follows: Ints) -> tuple[Ints, int]:
    """The session of each request, -1 where it is the only one of its session; and how many."""
    session = np.full(len(follows), -1, np.int64)
    num_sessions = 0
    for index in np.flatnonzero(follows >= 0).tolist():
        before = follows[index]
        if session[before] < 0:
            session[before] = num_sessions
            num_sessions += 1
        session[index] = session[before]
    return session, num_sessions


def _gaps(promise: Promise, num_thinking_tokens: int) -> tuple[float, float]:
    """Gap between tokens in the first stage and after it."""
    first, last = promise.stages[0].tpot_s, promise.stages[-1].tpot_s
    return (first, last) if num_thinking_tokens > 0 else (last, last)
