"""Workers that change between prefill and decode, and what a workload would ask of each role."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headway.core.planner.advice import Load, Split, best_split, load_of_request
from headway.core.planner.arrival import ClusterView, RoleChanges
from headway.sim.cluster import ClusterSpec
from headway.sim.workload import Workload
from headway.sim.world_state import World


@dataclass(slots=True)
class Flip:
    """One worker's change of role.

    Attributes:
        decided_at_s: since when it takes nothing new.
        taken_at_s: when it was seen empty and took its new role; NaN if the run ended before.
    """

    worker: int
    decided_at_s: float
    prefills: bool
    decodes: bool
    taken_at_s: float = np.nan


@dataclass(slots=True)
class RoleBook:
    """Asks a policy for changes of roles, and carries them out."""

    world: World
    policy: RoleChanges
    flips: list[Flip] = field(default_factory=list)
    _draining: list[Flip] = field(default_factory=list)

    def settle(self, now_s: float) -> None:
        """Give drained workers their new roles."""
        workers = self.world.workers
        for flip in [flip for flip in self._draining if not self.world.counts[flip.worker]]:
            workers["prefills"][flip.worker] = flip.prefills
            workers["decodes"][flip.worker] = flip.decodes
            flip.taken_at_s = now_s
            self._draining.remove(flip)

    def ask(self, view: ClusterView, now_s: float) -> None:
        """Begin to drain a worker if the policy wants so."""
        change = self.policy.change_role(view, now_s)
        if change is None:
            return
        flip = Flip(change.worker, now_s, change.prefills, change.decodes)
        for name in ("prefills", "decodes"):
            self.world.workers[name][change.worker] = 0
        self.flips.append(flip)
        self._draining.append(flip)
        self.settle(now_s)


def load_of_workload(workload: Workload, cluster: ClusterSpec) -> Load:
    """Mean load of a workload, over the time in which its sessions start."""
    total = Load()
    starts_s = workload.arrived_at_s[workload.follows < 0]
    model = cluster.hardware.perf_model
    tightest_s = [min(stage.tpot_s for stage in tier.slo.stages) for tier in workload.tiers]
    for index in range(len(workload)):
        request = load_of_request(
            model,
            int(workload.num_prompt_tokens[index]),
            int(workload.num_prefix_tokens[index]),
            int(workload.num_output_tokens[index]),
            tightest_s[workload.tier[index]],
        )
        total = total.plus(request)
    return Load().plus(total, 1.0 / max(float(starts_s.max(initial=0.0)), 1e-9))


def advised_split(workload: Workload, cluster: ClusterSpec) -> Split | None:
    """How many of the workers should prefill and decode; None for fewer than two workers."""
    if cluster.num_workers < 2:
        return None
    machine = cluster.hardware
    load = load_of_workload(workload, cluster)
    return best_split(load, machine.perf_model, machine.num_kv_tokens, cluster.num_workers)
