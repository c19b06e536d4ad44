"""Simulated runs, and a simulation that is looked at after every event."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from headway.core.batch_state import GONE, LEAVING, Floats, Records
from headway.profiles import load_full_profile
from headway.sim.cluster import ClusterSpec, Hardware
from headway.sim.options import RunOptions
from headway.sim.result import RunResult
from headway.sim.scenarios import build
from headway.sim.scoring import Score, score
from headway.sim.setup import hardware, policy_by_name
from headway.sim.simulation import Simulation
from headway.sim.workload import Workload

_PROFILE = Path(__file__).parent.parent / "profiles" / "h100-llama-3.1-8b-bf16.toml"

# Requests per second and worker at which Headway, alone on one worker, starts to turn many away.
CAPACITY = {
    "chat": 22.0,
    "coder": 14.0,
    "summarizer": 8.0,
    "tools": 80.0,
    "reasoning": 5.0,
    "mixed": 13.0,
}

# Colocated, prefill and decode workers. With both colocated and prefill workers, those that
# decode may prefill as well.
ROLES = {
    "colocated-1": (1, 0, 0),
    "colocated-4": (4, 0, 0),
    "disaggregated-1:1": (0, 1, 1),
    "disaggregated-2:2": (0, 2, 2),
    "hybrid-1:1": (1, 1, 0),
    "hybrid-2:2": (2, 2, 0),
}


@cache
def h100() -> Hardware:
    return hardware(load_full_profile(_PROFILE))


def cluster(roles: str, *, num_kv_tokens: int | None = None, **fields: Any) -> ClusterSpec:
    """Workers of one of `ROLES`, with less memory if asked for; `fields` are of `ClusterSpec`."""
    machine = h100()
    if num_kv_tokens is not None:
        machine = replace(machine, num_kv_tokens=num_kv_tokens)
    return ClusterSpec(machine, **fields).with_roles(*ROLES[roles])


def workload(
    scenario: str,
    num_requests: int,
    *,
    load: float,
    num_workers: int,
    arrivals: str = "poisson",
    seed: int = 0,
) -> Workload:
    """About so many requests at `load` times the capacity of so many workers."""
    rate = load * num_workers * CAPACITY[scenario]
    duration_s = num_requests / rate
    return build(scenario, arrivals=arrivals, rate=rate, duration_s=duration_s, seed=seed)


@dataclass(frozen=True, slots=True)
class Finished:
    simulation: Simulation
    result: RunResult
    score: Score

    @property
    def num_broken(self) -> int:
        """Promised requests that were not attained."""
        return int((self.score.promised & ~self.score.strict).sum())


def simulate(
    asked: Workload, machines: ClusterSpec, policy: str = "headway", **options: Any
) -> Finished:
    """Run to the end; `options` are of `RunOptions`."""
    simulation = policy_by_name(policy).simulation(asked, machines, RunOptions(**options))
    result = simulation.run()
    return Finished(simulation, result, score(result))


class Watched(Simulation):
    """Stops after every event of the world, and checks and notes what is hidden in between.

    Attributes:
        num_lost_tokens: KV tokens that preemptions threw away.
        least_free: fewest free blocks of any worker.
        prompt_ended_at_s: when the prompt's computation ended on its prefill worker.
    """

    num_lost_tokens: int
    least_free: int
    prompt_ended_at_s: Floats

    def run(self) -> RunResult:
        num_requests = len(self.workload)
        self.num_lost_tokens, self.least_free = 0, 1 << 60
        self.prompt_ended_at_s = np.full(num_requests, np.nan)
        self._computed = np.zeros(2 * num_requests, np.int64)
        self._granted = np.zeros(2 * num_requests, np.int64)
        self._num_preemptions = np.zeros(num_requests, np.int64)
        return super().run()

    def _advance(self, until_s: float) -> bool:
        wake_at_s = self.world.wake_at_s
        self._look(self._now_s)
        while (at_s := float(wake_at_s.min())) < until_s:
            super()._advance(float(np.nextafter(at_s, np.inf)))
            self._look(at_s)
            if self._due and self._due[0][0] < until_s:
                return False
        return super()._advance(until_s)

    def _look(self, at_s: float) -> None:
        world, num_requests = self.world, len(self.workload)
        requests = world.requests
        for w, worker in enumerate(world.workers):
            rows = world.ids[w, : world.counts[w]]
            assert len(set(rows.tolist())) == len(rows)
            held = requests["num_blocks"][rows]
            assert (held >= 0).all()
            assert worker["num_free_blocks"] >= 0
            assert worker["num_free_blocks"] + held.sum() == worker["num_blocks"]
            assert 0 <= world.num_kept[w] <= worker["num_free_blocks"]
            assert (world.kept[w] >= 0).all()
            assert world.kept[w].sum() == world.num_kept[w]
            room = held * worker["block_size"]
            decoding = requests["phase"][rows] != LEAVING
            assert (requests["num_computed_tokens"][rows] <= room)[decoding & (held > 0)].all()
            self.least_free = min(self.least_free, int(worker["num_free_blocks"]))
        self._note_preemptions(requests, num_requests)
        is_over = np.isin(requests["phase"][:num_requests], (LEAVING, GONE))
        is_new = is_over & (requests["leaves_after_prefill"][:num_requests] == 1)
        is_new &= np.isnan(self.prompt_ended_at_s)
        self.prompt_ended_at_s[is_new] = at_s

    def _note_preemptions(self, requests: Records, num_requests: int) -> None:
        world = self.world
        is_new = world.sim["num_preemptions"] > self._num_preemptions
        for index in np.flatnonzero(is_new):
            # On the decode worker, if it got there.
            row = index + num_requests if self._computed[index + num_requests] else index
            # What it had, with what the step that just ended added to it; or, if it had arrived
            # at this instant, what came.
            num_lost = int(self._computed[row] + self._granted[row])
            emitted = int(self.options.prefill_emits_first_token)
            arrived = int(world.sim["num_own_prompt_tokens"][index]) - 1 + emitted
            self.num_lost_tokens += num_lost or arrived
        self._num_preemptions = world.sim["num_preemptions"].copy()
        self._computed = np.where(requests["phase"] == GONE, 0, requests["num_computed_tokens"])
        self._computed[:num_requests][requests["leaves_after_prefill"][:num_requests] == 1] *= (
            requests["phase"][:num_requests] == 0
        )[requests["leaves_after_prefill"][:num_requests] == 1]
        self._granted[:] = 0
        for w in range(len(world.workers)):
            rows = world.ids[w, : world.counts[w]]
            self._granted[rows] = np.maximum(world.grants[w, : world.counts[w]], 0)


def watch(
    asked: Workload, machines: ClusterSpec, policy: str = "headway", **options: Any
) -> tuple[Watched, Finished]:
    """As `simulate`, looked at after every event."""
    plain = policy_by_name(policy).simulation(asked, machines, RunOptions(**options))
    watched = Watched(plain.workload, plain.cluster, plain.policy, plain.formers, plain.options)
    watched.world.workers["token_budget"] = plain.world.workers["token_budget"]
    result = watched.run()
    return watched, Finished(watched, result, score(result))
