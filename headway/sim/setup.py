"""Simulated hardware and policies by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from headway.core.batch_state import ARRIVING, Ints
from headway.core.planner.arrival import ArrivalPolicy, ClusterView
from headway.core.planner.baselines import BASELINES, BaselineSpec
from headway.core.planner.baselines.routing import WithAdmission
from headway.core.planner.changing_roles import ChangingRoles
from headway.core.planner.fluid_policy import FluidPolicy
from headway.core.planner.probe import FITS, load_of, probe
from headway.core.planner.promising import PromisePolicy
from headway.profiles import Profile
from headway.sim.cluster import ClusterSpec, DraftModel, Hardware
from headway.sim.options import RunOptions
from headway.sim.simulation import Simulation
from headway.sim.workload import Workload

# Of a step, outside the GPU: 0.5 to 1 ms explain the latencies of vLLM 0.15.1 on an H100.
HOST_S = 0.0007

HEADWAY = "headway"
HEADWAY_DP = "headway-dp"
HEADWAY_ROLES = "headway-roles"

_OWN: dict[str, Callable[[], ArrivalPolicy]] = {
    HEADWAY: PromisePolicy,
    HEADWAY_DP: FluidPolicy,
    HEADWAY_ROLES: ChangingRoles,
}

# Their routers know no worker that only prefills or only decodes.
_COLOCATED_ONLY = frozenset({"scorpio", "polyserve"})


def hardware(profile: Profile, host_s: float = HOST_S) -> Hardware:
    """One worker with this profile whose engine adds `host_s` to every step.

    Raises:
        ValueError: the profile does not say how much KV fits.
    """
    if profile.memory is None:
        raise ValueError("a simulated worker needs a profile with a [memory] section")
    model, draft = profile.perf_model, profile.draft
    return Hardware(
        name=profile.measured_on,
        perf_model=replace(model, floor_s=model.floor_s + host_s, fixed_s=model.fixed_s + host_s),
        curve=profile.truth,
        host_s=host_s,
        draft=DraftModel(draft.floor_s, draft.sequence_s) if draft else DraftModel(0.0, 0.0),
        num_kv_tokens=profile.memory.num_kv_tokens,
        kv_bytes_per_token=profile.memory.kv_bytes_per_token,
        num_gpus=profile.memory.num_gpus,
    )


class FutureTest:
    """Headway's admission test on one worker: its batch former, run ahead, keeps all promises."""

    def fits(self, new: int, worker_index: int, view: ClusterView, now_s: float) -> bool:
        """See `AdmissionTest.fits`. KV pages are taken to arrive when the prompt is due."""
        worker = view.workers[worker_index]
        ids, n = view.ids[worker_index], view.counts[worker_index]
        record = view.record_on(new, worker_index)
        if not worker["prefills"]:
            record["phase"] = ARRIVING
            record["arrives_at_s"] = record["prefill_due_at_s"]
        record["leaves_after_prefill"] = int(not worker["decodes"])
        _, tightest_s, _ = load_of(now_s, view.requests, ids, n, worker)
        found, _ = probe(
            now_s,
            view.requests,
            ids,
            n,
            view.grants[worker_index],
            worker,
            record,
            min(tightest_s, float(record["tpot_s"])),
            float(worker["busy_until_s"]),
        )
        return bool(found == FITS)


def policy_names() -> dict[str, str]:
    """What can be simulated, and what it does."""
    baselines = {name: spec.description for name, spec in BASELINES.items()}
    return {
        HEADWAY: "promises what the future of a worker has room for, and serves the rest after",
        HEADWAY_ROLES: "headway, and workers change between prefill and decode as the load asks",
        HEADWAY_DP: "headway, but a dynamic program over deadlines and loads admits",
        **baselines,
        **{f"{name}+": f"{name} behind Headway's admission test" for name in baselines},
    }


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """A policy, and how its workers are set up.

    Attributes:
        build: makes a policy that knows nothing yet.
        baseline: None for Headway's own.
        token_budget: of the workers that prefill; 0 where the policy has none.
    """

    name: str
    build: Callable[[], ArrivalPolicy]
    baseline: BaselineSpec | None = field(repr=False)
    token_budget: int

    def formers(self, cluster: ClusterSpec) -> tuple[int, ...]:
        """The batch former of each worker."""
        if self.baseline is None:
            return (self.build().former,) * cluster.num_workers
        num_prefilling = cluster.num_colocated + cluster.num_prefill
        return (
            *((self.baseline.prefill_former,) * num_prefilling),
            *((self.baseline.decode_former,) * cluster.num_decode),
        )

    def token_budgets(self, cluster: ClusterSpec) -> Ints:
        """WORKER.token_budget of each worker; those that only decode have no other limit."""
        budgets = np.full(cluster.num_workers, cluster.max_step_tokens, np.int64)
        if self.token_budget:
            budgets[: cluster.num_colocated + cluster.num_prefill] = self.token_budget
        return budgets

    def simulation(
        self,
        workload: Workload,
        cluster: ClusterSpec,
        options: RunOptions,
        policy: ArrivalPolicy | None = None,
    ) -> Simulation:
        """One run, ready to start.

        Args:
            workload: what is asked.
            cluster: where it runs.
            options: where the first token comes from is not taken from here but from the policy.
            policy: instead of a new one from `build`, for example the same one but watched.

        Raises:
            ValueError: the cluster has not the roles that the policy needs.
        """
        if self.name.removesuffix("+") in _COLOCATED_ONLY and not cluster.num_colocated:
            raise ValueError(f"{self.name} needs colocated workers")
        if self.name == HEADWAY_ROLES and cluster.num_colocated:
            raise ValueError(f"{self.name} needs prefill and decode workers, as in 1:1")
        separate = self.baseline is not None and self.baseline.separate_pools
        if separate and cluster.num_colocated:
            raise ValueError(f"{self.name} needs prefill and decode workers, as in 1:1")
        if self.baseline is not None and self.baseline.prefill_emits_first_token:
            options = replace(options, prefill_emits_first_token=True)
        simulation = Simulation(
            workload, cluster, policy or self.build(), self.formers(cluster), options
        )
        simulation.world.workers["token_budget"] = self.token_budgets(cluster)
        return simulation


def policy_by_name(name: str, token_budget: int | None = None) -> NamedPolicy:
    """One of `policy_names`.

    Args:
        name: with a "+" at its end, a baseline behind Headway's admission test.
        token_budget: of a baseline; its largest one unless given.

    Raises:
        ValueError: no such policy, or a token budget for one that has none.
    """
    if name not in policy_names():
        raise ValueError(f"policies are {', '.join(policy_names())}; there is no {name!r}")
    if name in _OWN:
        if token_budget is not None:
            raise ValueError(f"{name} sizes its own steps and takes no token budget")
        return NamedPolicy(name, _OWN[name], None, 0)
    spec = BASELINES[name.removesuffix("+")]

    def build() -> ArrivalPolicy:
        router = spec.router(spec.prefill_former)
        return WithAdmission(router, FutureTest()) if name.endswith("+") else router

    budget = max(spec.token_budgets) if token_budget is None else token_budget
    return NamedPolicy(name, build, spec, budget)
