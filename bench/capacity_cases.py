"""What bench.capacity compares: machines, cases, policies with their settings, and all tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from headway.core.planner.baselines import BASELINES
from headway.sim.scenarios import SCENARIOS
from headway.sim.setup import HEADWAY, HEADWAY_DP


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
        min_duration_s: at high rates there are more of them, so that they come for so long.
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
    min_duration_s: float = 0.0

    @property
    def num_gpus(self) -> int:
        return self.num_workers * self.machine.num_gpus

    def __str__(self) -> str:
        return (
            f"{self.scenario}, {self.arrivals}, {self.machine.model}, "
            f"{self.num_gpus}x{self.machine.gpu}, lengths {self.lengths}"
        )


# Headway with one decision less or made otherwise, or with one feature more.
ABLATIONS: dict[str, dict[str, Any]] = {
    "headway, steps as long as the tightest TPOT": {"adapts_length": False},
    "headway, no shedding": {"sheds": False},
    "headway, no late promises": {"promises_late": False},
    "headway, most loaded worker first": {"most_loaded_first": True},
}
PACKING = "headway, most loaded worker first"
UNDEFERRED = "headway, no deferral"
SPECULATION = "headway, speculation"
DISAGGREGATED = "headway, roles separate"
HYBRID = "headway, roles hybrid"
MAX_DRAFT_TOKENS = 4


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
        return [Setting(max_draft_tokens=MAX_DRAFT_TOKENS)]
    if policy == DISAGGREGATED:
        return [Setting(roles=roles) for roles in splits]
    if policy == HYBRID:
        # Half of the workers do both, the others share the phases between them.
        half = case.num_workers // 2
        return [Setting(roles=f"{half}+{n}:{half - n}") for n in range(1, half)]
    spec = BASELINES.get(policy.removesuffix("+"))
    if spec is None:
        return [Setting()]
    roles = splits if spec.separate_pools else ["colocated"]
    return [Setting(budget, split) for budget in spec.token_budgets for split in roles]


# Per worker and run, of the quick form with one worker: about 650 of them are scored.
NUM_REQUESTS = 1100

# Later rounds of a session come when those before have ended: some seconds each. Until several
# sessions' time has passed fewer requests a second come than the rate says.
_SESSIONS_S = 60.0

# Policies of which one worker is enough, and those that need several.
ALONE = (HEADWAY, "vllm-v0", "vllm-v1", "sarathi", "edf", "niyama", "scorpio")
TOGETHER = ("distserve", "polyserve")
ABLATIONS_TOGETHER = (PACKING, DISAGGREGATED, HYBRID)
ABLATIONS_ALONE = (*(name for name in ABLATIONS if name != PACKING), SPECULATION)
# What bursts are for: with and without an answer to them, and how a replica more helps.
ABLATIONS_IN_BURSTS = ("headway, no late promises", UNDEFERRED)
REPLICATED = (HEADWAY, "vllm-v1")
# Of the quick form, what more than one GPU and ablations are measured on.
SOME = ("chat", "coder", "mixed")
# Of these, what the dynamic programme is measured on: its runs take several times as long.
PLANNED_FLUIDLY = ("chat", "mixed")
STEADY, CALM, BURSTY = "poisson", "azure-chat", "azure-code"


@dataclass(frozen=True, slots=True)
class Task:
    """One search."""

    case: Case
    policy: str

    @property
    def effort(self) -> float:
        """How long it takes, relative to others; only by this is decided what starts first."""
        case = self.case
        # Outputs of thousands of tokens, and seven in ten requests that do not fit.
        length_ratio = 4.0 if case.scenario == "reasoning" else 1.0
        num_searches = len(settings_of(self.policy, case)) + len(case.seeds)
        # Finding room takes longest, above all by dynamic programming.
        planning_ratio = 2.0 if self.policy.startswith(HEADWAY) else 1.0
        if self.policy == HEADWAY_DP:
            planning_ratio = 12.0
        return case.num_requests * num_searches * planning_ratio * length_ratio


def _case(
    scenario: str, arrivals: str, machine: Machine, num_workers: int, num_seeds: int, scale: int = 1
) -> Case:
    num_requests = num_workers * NUM_REQUESTS * scale
    if num_workers > 1:
        num_requests //= 2
    return Case(
        scenario,
        arrivals,
        machine,
        num_workers,
        num_requests,
        tuple(range(num_seeds)),
        min_duration_s=_SESSIONS_S if scenario == "tools" else 0.0,
    )


def quick_tasks() -> Iterator[Task]:
    """Llama 8B on H100: one GPU for all, four and eight for some."""
    for scenario in SCENARIOS:
        case = replace(_case(scenario, STEADY, H100_8B, 1, 2), draws_curves=scenario in SOME)
        yield from (Task(case, policy) for policy in ALONE)
        if scenario in SOME:
            yield from (Task(case, policy) for policy in ABLATIONS_ALONE)
        if scenario in PLANNED_FLUIDLY:
            yield Task(replace(case, seeds=(0,)), HEADWAY_DP)
    for scenario in SOME:
        four = _case(scenario, STEADY, H100_8B, 4, 1)
        yield from (Task(four, policy) for policy in (HEADWAY, *TOGETHER))
        if scenario == "mixed":
            yield from (Task(four, policy) for policy in ABLATIONS_TOGETHER)
        yield Task(_case(scenario, STEADY, H100_8B, 8, 1), HEADWAY)
    for arrivals in (CALM, BURSTY):
        for scenario in SCENARIOS:
            case = _case(scenario, arrivals, H100_8B, 1, 1)
            yield from (Task(case, policy) for policy in ALONE)
            if arrivals == BURSTY and scenario in SOME:
                yield from (Task(case, policy) for policy in ABLATIONS_IN_BURSTS)
                four = _case(scenario, arrivals, H100_8B, 4, 1)
                yield from (Task(four, policy) for policy in REPLICATED)


def full_tasks() -> Iterator[Task]:
    """Every scenario and law of arrivals on every machine, with every policy and its "+"."""
    behind_test = tuple(f"{name}+" for name in ALONE if name in BASELINES)
    for machine in (H100_8B, A100_8B, H100_32B, A100_OPT):
        for scenario in SCENARIOS:
            for arrivals in (STEADY, CALM, BURSTY):
                one = _case(scenario, arrivals, machine, 1, 5, scale=4)
                yield from (Task(one, policy) for policy in (*ALONE, *behind_test))
                more = (*ABLATIONS_ALONE, UNDEFERRED, HEADWAY_DP)
                yield from (Task(one, policy) for policy in more)
                unknown = replace(one, lengths="unknown")
                yield from (Task(unknown, policy) for policy in ALONE)
                for num_workers in (4, 8):
                    several = _case(scenario, arrivals, machine, num_workers, 3, scale=4)
                    policies = (*ALONE, *TOGETHER, *ABLATIONS_TOGETHER)
                    yield from (Task(several, policy) for policy in policies)
