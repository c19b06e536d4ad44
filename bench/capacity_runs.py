"""What bench.capacity simulates: cases, the settings of each policy, one run, and the bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from bench.capacity_search import LOWEST_ATTAINMENT, Attained, rate_at
from headway.core.batch_state import Floats, Records
from headway.core.planner.arrival import ArrivalPolicy
from headway.core.planner.baselines import BASELINES
from headway.core.planner.promising import PromisePolicy
from headway.sim.bounds.demand import NO_DRAFTING, Drafting, Gpu, roofs_of_curve
from headway.sim.bounds.fluid_bound import fluid_bound
from headway.sim.cluster import ClusterSpec
from headway.sim.scoring import score
from headway.sim.settings import ClusterSettings, Settings
from headway.sim.setup import HEADWAY
from headway.sim.simulation import Simulation
from headway.sim.workload import Workload
from headway.sim.world_state import REFUSED

# Of the requests in their order, those before and after these shares load the system only. The
# first ones meet an empty one and the last ones leave it empty: in a run that is short beside its
# longest requests, both would pass at rates that no system can sustain.
_SCORED_FROM, _SCORED_TO = 0.2, 0.8


@dataclass(frozen=True, slots=True)
class Machine:
    """A model on a device, and how many GPUs one worker takes."""

    model: str
    gpu: str
    profile: str
    num_gpus: int = 1
    max_total_tokens: int | None = None


H100_8B = Machine("Llama-3.1-8B bf16", "H100", "profiles/h100-llama-3.1-8b-bf16.toml")
A100_8B = Machine("Llama-3.1-8B bf16", "A100", "profiles/a100-llama-3.1-8b-bf16.toml")
H100_32B = Machine("Qwen3-32B bf16", "H100", "profiles/h100x2-qwen3-32b-bf16.toml", num_gpus=2)
# OPT has positions for no more.
A100_OPT = Machine("OPT-13B fp16", "A100", "profiles/a100-opt-13b-fp16.toml", max_total_tokens=2048)


@dataclass(frozen=True, slots=True)
class Case:
    """What policies are compared on.

    Attributes:
        num_requests: per run, about; the same ones at every rate. The middle ones are scored.
        draws_curves: whether attainment is also measured far from the capacity.
    """

    scenario: str
    arrivals: str
    machine: Machine
    num_workers: int
    num_requests: int
    seeds: tuple[int, ...]
    lengths: str = "known"
    draws_curves: bool = False

    @property
    def num_gpus(self) -> int:
        return self.num_workers * self.machine.num_gpus

    def __str__(self) -> str:
        return (
            f"{self.scenario}, {self.arrivals}, {self.machine.model}, "
            f"{self.num_gpus}x{self.machine.gpu}, lengths {self.lengths}"
        )


# Headway with one decision less, or one feature more; those of one worker, and of several.
ABLATIONS: dict[str, dict[str, Any]] = {
    "headway, steps as long as the tightest TPOT": {"adapts_length": False},
    "headway, no shedding": {"sheds": False},
    "headway, no late promises": {"promises_late": False},
    "headway, most loaded worker first": {"most_loaded_first": True},
}
PACKING = "headway, most loaded worker first"
SPECULATION = "headway, speculation"
DISAGGREGATED = "headway, roles separate"
_MAX_DRAFT_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Setting:
    """What one policy can be run with. `roles` as in `ClusterSettings`."""

    token_budget: int | None = None
    roles: str = "colocated"
    max_draft_tokens: int = 0

    def report(self) -> dict[str, int | str]:
        """For JSON, without what is not set."""
        shown: dict[str, int | str] = {"roles": self.roles}
        if self.token_budget is not None:
            shown["token_budget"] = self.token_budget
        if self.max_draft_tokens:
            shown["max_draft_tokens"] = self.max_draft_tokens
        return shown


def settings_of(policy: str, case: Case) -> list[Setting]:
    """All that are tried; the best one counts."""
    splits = [f"{n}:{case.num_workers - n}" for n in range(1, case.num_workers)]
    if policy == SPECULATION:
        return [Setting(max_draft_tokens=_MAX_DRAFT_TOKENS)]
    if policy == DISAGGREGATED:
        return [Setting(roles=roles) for roles in splits]
    spec = BASELINES.get(policy.removesuffix("+"))
    if spec is None:
        return [Setting()]
    roles = splits if spec.separate_pools else ["colocated"]
    return [Setting(budget, split) for budget in spec.token_budgets for split in roles]


class _HopelessError(Exception):
    """The lowest target is out of reach, whatever the rest of the run brings."""


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs one policy in one case."""

    case: Case
    policy: str

    def settings(self, setting: Setting, seed: int, rate: float) -> Settings:
        """Everything about a run but what an ablation changes."""
        case = self.case
        is_headway = self.policy == HEADWAY or self.policy.startswith(f"{HEADWAY}, ")
        return Settings.model_validate(
            {
                "scenario": case.scenario,
                "policy": HEADWAY if is_headway else self.policy,
                "token_budget": setting.token_budget,
                "rates": (rate,),
                "duration_s": case.num_requests / rate,
                "seed": seed,
                "arrivals": case.arrivals,
                "lengths": case.lengths,
                "max_total_tokens": case.machine.max_total_tokens,
                "cluster": {
                    "profile": case.machine.profile,
                    "gpus": case.num_gpus,
                    "roles": setting.roles,
                    "max_draft_tokens": setting.max_draft_tokens,
                },
            }
        )

    def attained(self, setting: Setting, seed: int, index: int) -> Attained:
        """Attained ratios at a rate of the grid; zeros once the lowest target is out of reach."""
        try:
            return self._attained(setting, seed, rate_at(index), may_stop=True)
        except _HopelessError:
            return {"strict": 0.0, "mean": 0.0, "token_weighted": 0.0}

    def curve(self, setting: Setting, rates: Sequence[float]) -> list[float]:
        """Attained ratios by strict scoring with the first seed, all runs to their end."""
        seed = self.case.seeds[0]
        return [self._attained(setting, seed, rate, may_stop=False)["strict"] for rate in rates]

    def _attained(self, setting: Setting, seed: int, rate: float, *, may_stop: bool) -> Attained:
        settings = self.settings(setting, seed, rate)
        workload = settings.workload(rate)
        simulation: Simulation

        first, last = (int(share * len(workload)) for share in (_SCORED_FROM, _SCORED_TO))
        scored = slice(first, last)

        def stop_if_hopeless(now_s: float) -> None:
            most = (1.0 - LOWEST_ATTAINMENT) * (last - first)
            if may_stop and _num_lost(simulation.world.sim[scored], now_s) > most:
                raise _HopelessError

        simulation = settings.simulation(
            workload, self._new_policy(settings), progress=stop_if_hopeless
        )
        scores = score(simulation.run())
        num_tokens = (workload.num_prompt_tokens + workload.num_output_tokens)[scored]
        strict = scores.strict[scored]
        return {
            "strict": float(strict.mean()),
            "mean": float(scores.mean[scored].mean()),
            "token_weighted": float(num_tokens[strict].sum() / num_tokens.sum()),
        }

    def _new_policy(self, settings: Settings) -> ArrivalPolicy:
        if self.policy in ABLATIONS:
            return PromisePolicy(**ABLATIONS[self.policy])
        return settings.named_policy().build()

    def asked_ratio(self, seed: int) -> float:
        """Requests that come over those that the law brings in the long run; of any rate."""
        return len(self._workload(seed)) / self.case.num_requests

    def bound(self, seed: int, attainment: float, *, drafts: bool = False) -> float:
        """Requests per second and GPU that no schedule can exceed, for this seed's requests."""
        case = self.case
        spec = _cluster(case.machine.profile, case.machine.num_gpus)
        workload = self._workload(seed)
        drafting = NO_DRAFTING
        if drafts:
            draft = spec.hardware.draft
            drafting = Drafting(_MAX_DRAFT_TOKENS, spec.acceptance, draft.floor_s, draft.sequence_s)
        per_worker = fluid_bound(
            workload,
            _ttft_s(workload, spec),
            _gpu(spec, drafting),
            attainment,
            even_pace=False,
        )
        return per_worker / case.machine.num_gpus

    def _workload(self, seed: int) -> Workload:
        rate = 1.0
        return self.settings(Setting(), seed, rate).workload(rate)


def _num_lost(sim: Records, now_s: float) -> int:
    """Requests that are missed already, by either way of scoring; `sim` has SIM records."""
    due_at_s, first_at_s = sim["first_due_at_s"], sim["first_token_at_s"]
    # Due at 0: not asked yet. No first token yet: not a number, so never above.
    is_late = (due_at_s > 0.0) & (
        (first_at_s > due_at_s) | (np.isnan(first_at_s) & (now_s > due_at_s))
    )
    return int((is_late | (sim["outcome"] == REFUSED)).sum())


@cache
def _cluster(profile: str, num_gpus: int) -> ClusterSpec:
    return ClusterSettings(profile=profile, gpus=num_gpus).spec()


def _ttft_s(workload: Workload, spec: ClusterSpec) -> Floats:
    """What each request is promised, shape (N,)."""
    model = spec.hardware.perf_model
    return np.array(
        [
            workload.tiers[tier]
            .slo.promise(model.prefill_s(num_prompt, 0, spec.max_step_tokens))
            .ttft_s
            for tier, num_prompt in zip(
                workload.tier.tolist(), workload.num_prompt_tokens.tolist(), strict=True
            )
        ]
    )


def _gpu(spec: ClusterSpec, drafting: Drafting) -> Gpu:
    """The simulated truth, without its noise."""
    hardware, curve = spec.hardware, spec.hardware.curve
    assert curve is not None, f"{hardware.name}: the profile has no [truth]"
    return Gpu(
        roofs=roofs_of_curve(
            np.array(curve.knots, np.float64),
            np.array(curve.times_s, np.float64),
            host_s=hardware.host_s,
        ),
        sequence_s=curve.sequence_s,
        context_token_s=curve.context_token_s,
        prefill_attention_s=curve.prefill_attention_s,
        chunk_s=curve.chunk_s,
        num_kv_tokens=hardware.num_kv_tokens,
        max_running=spec.max_running,
        drafting=drafting,
    )
