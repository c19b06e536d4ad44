"""One run of bench.capacity, and the bound of its requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np

from bench.capacity_cases import ABLATIONS, MAX_DRAFT_TOKENS, UNDEFERRED, Case, Setting
from bench.capacity_search import Attained
from headway.core.batch_state import Floats, Records
from headway.core.planner.arrival import Answer, ArrivalPolicy, ClusterView, Verdict
from headway.core.planner.probe import load_of
from headway.core.planner.promising import PromisePolicy
from headway.sim.bounds.demand import NO_DRAFTING, Drafting, Gpu, roofs_of_curve
from headway.sim.bounds.fluid_bound import fluid_bound
from headway.sim.cluster import ClusterSpec
from headway.sim.scoring import allowed_decode_s, score
from headway.sim.settings import ClusterSettings, Settings
from headway.sim.setup import HEADWAY
from headway.sim.simulation import Simulation
from headway.sim.workload import Workload
from headway.sim.world_state import REFUSED, SERVED

# Of the requests in their order, those before and after these shares load the system only. The
# first ones meet an empty one and the last ones leave it empty: in a run that is short beside its
# longest requests, both would pass at rates that no system can sustain.
_SCORED_FROM, _SCORED_TO = 0.2, 0.8


@dataclass(slots=True)
class Undeferred:
    """Headway without its answer to bursts: what fits nowhere is promised all the same."""

    policy: PromisePolicy
    former: int = field(init=False)

    def __post_init__(self) -> None:
        self.former = self.policy.former

    def decide(self, new: int, view: ClusterView, now_s: float) -> Answer:
        """On the least loaded worker, where Headway would defer."""
        answer = self.policy.decide(new, view, now_s)
        if answer.verdict is not Verdict.DEFER:
            return answer
        loads = [
            load_of(now_s, view.requests, view.ids[w], view.counts[w], view.workers[w])[0]
            for w in range(len(view.workers))
        ]
        w = loads.index(min(loads))
        return Answer(Verdict.SERVE, w, w)

    def place_deferred(self, waiting: int, view: ClusterView, now_s: float) -> Answer:
        """Not asked, as nothing is deferred."""
        return self.policy.place_deferred(waiting, view, now_s)


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
                "duration_s": max(case.num_requests / rate, case.min_duration_s),
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

    def attained(
        self, setting: Setting, seed: int, rate: float, attainment: float = 0.0
    ) -> Attained:
        """Attained ratios; where all are below `attainment`, any that are."""
        settings = self.settings(setting, seed, rate)
        workload = settings.workload(rate)
        simulation: Simulation
        scored = slice(*(int(share * len(workload)) for share in (_SCORED_FROM, _SCORED_TO)))
        allowed_s = allowed_decode_s(workload)[scored]

        def may_end(now_s: float) -> bool:
            world = simulation.world
            sim, due_at_s = world.sim[scored], world.requests["next_due_at_s"][scored]
            return is_settled(sim, due_at_s, allowed_s, now_s, attainment)

        simulation = settings.simulation(workload, self.new_policy(settings), may_end=may_end)
        scores = score(simulation.run())
        num_tokens = (workload.num_prompt_tokens + workload.num_output_tokens)[scored]
        strict = scores.strict[scored]
        return {
            "strict": float(strict.mean()),
            "mean": float(scores.mean[scored].mean()),
            "token_weighted": float(num_tokens[strict].sum() / num_tokens.sum()),
        }

    def new_policy(self, settings: Settings) -> ArrivalPolicy:
        """One that knows nothing yet."""
        if self.policy in ABLATIONS:
            return PromisePolicy(**ABLATIONS[self.policy])
        if self.policy == UNDEFERRED:
            return Undeferred(PromisePolicy())
        return settings.named_policy().build()

    def asked_ratio(self, seed: int) -> float:
        """Requests that come over those that the law brings in the long run; of any rate."""
        return len(_workload(self.case, seed)) / self.case.num_requests


def _workload(case: Case, seed: int) -> Workload:
    rate = 1.0
    return Runner(case, HEADWAY).settings(Setting(), seed, rate).workload(rate)


# All policies of a case have the same.
@cache
def bound(case: Case, seed: int, attainment: float, *, drafts: bool = False) -> float:
    """Requests per second and GPU that no schedule can exceed, for this seed's requests."""
    machine = case.machine
    spec = _cluster(machine.profile, machine.num_gpus)
    workload = _workload(case, seed)
    drafting = NO_DRAFTING
    if drafts:
        draft = spec.hardware.draft
        drafting = Drafting(MAX_DRAFT_TOKENS, spec.acceptance, draft.floor_s, draft.sequence_s)
    per_worker = fluid_bound(
        workload,
        _ttft_s(workload, spec),
        _gpu(spec, drafting),
        attainment,
        even_pace=False,
    )
    return per_worker / machine.num_gpus


def is_settled(
    sim: Records, next_due_at_s: Floats, allowed_s: Floats, now_s: float, attainment: float
) -> bool:
    """Whether nothing that a run may still bring can change what it says.

    That is so once every request was attained or missed for good, or once so many were missed,
    by either way of scoring, that `attainment` is out of reach.

    Args:
        sim: SIM records of what is scored.
        next_due_at_s: when the next token of each is due.
        allowed_s: from the due time of each one's first token to that of the last.
        now_s: the present.
        attainment: 0 ends no run because of misses.
    """
    due_at_s, first_at_s = sim["first_due_at_s"], sim["first_token_at_s"]
    served = sim["outcome"] == SERVED
    # Due at 0: not asked yet. No first token yet: not a number, so never above.
    late = (due_at_s > 0.0) & (
        (first_at_s > due_at_s) | (np.isnan(first_at_s) & (now_s > due_at_s))
    )
    # What is deferred can be promised later as long as something is due.
    unpromised = (sim["deferred"] == 1) & (served | np.isinf(next_due_at_s))
    missed = late | unpromised | (sim["outcome"] == REFUSED)
    if (missed | served).all():
        return True
    slow = served & (sim["last_token_at_s"] - first_at_s > allowed_s)
    highest = max(
        1.0 - float((missed | (sim["num_checkpoints_missed"] > 0)).mean()),
        1.0 - float((missed | slow).mean()),
    )
    # What is missed is counted in whole requests, the rest is rounding.
    return highest < attainment - 0.5 / len(sim)


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
