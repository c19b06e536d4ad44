"""Everything that determines a simulated run, from a TOML file and the command line.

A run's result.json keeps its settings whole, so that it can be repeated up to any decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from headway.core.planner.arrival import ArrivalPolicy
from headway.core.slo import Slo, StageSlo
from headway.errors import ConfigError
from headway.profiles import load_full_profile
from headway.sim.arrivals import Trace, read_trace
from headway.sim.cluster import ClusterSpec
from headway.sim.options import RunOptions
from headway.sim.scenarios import build
from headway.sim.setup import HOST_S, NamedPolicy, hardware, policy_by_name
from headway.sim.simulation import Simulation
from headway.sim.workload import Tier, Workload
from headway.toml_file import Count, NonNegative, Positive, Section

# With unknown lengths, mean outputs are taken from about so many requests of another seed.
_NUM_HISTORY = 4000
_HISTORY_SEED = 1 << 32


Ratio = Annotated[float, Field(ge=0, le=1)]


class ClusterSettings(Section):
    """The simulated machines; see `ClusterSpec`.

    Attributes:
        profile: of the model and the device, relative to the working directory.
        gpus: of all workers together.
        roles: "colocated", or "P:D" for P prefill and D decode workers, or "C+P:D" for C
            colocated ones besides.
        host_s: what an engine's host adds to every step.
        true_acceptance: of drafts by tier, at the start and when the last session starts.
    """

    profile: str = "profiles/h100-llama-3.1-8b-bf16.toml"
    gpus: Count = 1
    roles: Annotated[str, Field(pattern=r"^(colocated|([1-9]\d*\+)?[1-9]\d*:[1-9]\d*)$")] = (
        "colocated"
    )
    host_s: NonNegative = HOST_S
    block_size: Count = 16
    max_step_tokens: Count = 8192
    max_running: Count = 512
    exact: bool = False
    noise_sigma: NonNegative = 0.04
    spike_probability: Annotated[float, Field(ge=0, le=1)] = 0.0005
    spike_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 4.0
    model_error_ratio: Positive = 1.0
    max_draft_tokens: Annotated[int, Field(ge=0)] = 0
    acceptance: Ratio = 0.7
    true_acceptance: dict[str, tuple[Ratio, Ratio]] = Field(default_factory=dict)
    link_bytes_per_s: Positive = 25e9
    link_latency_s: NonNegative = 0.0005
    first_token_overhead_s: NonNegative = 0.001

    def spec(self) -> ClusterSpec:
        """The cluster.

        Raises:
            ConfigError: the profile is no good for it, or GPUs and roles do not agree.
        """
        profile = load_full_profile(Path(self.profile))
        try:
            machine = hardware(profile, self.host_s)
        except ValueError as error:
            raise ConfigError(f"{self.profile}: {error}") from error
        if self.max_draft_tokens and profile.draft is None:
            raise ConfigError(f"{self.profile}: max_draft_tokens needs a [draft] section")
        num_workers, num_left = divmod(self.gpus, machine.num_gpus)
        if num_left or not num_workers:
            raise ConfigError(f"a worker takes {machine.num_gpus} GPUs; {self.gpus} do not divide")
        taken = {"profile", "gpus", "roles", "host_s", "true_acceptance"}
        spec = ClusterSpec(
            machine,
            **self.model_dump(exclude=taken),
            true_acceptance=tuple(self.true_acceptance.items()),
        )
        if self.roles == "colocated":
            return spec.with_roles(num_workers, 0, 0)
        colocated, _, separate = self.roles.rpartition("+")
        num_prefill, num_decode = (int(number) for number in separate.split(":"))
        num_colocated = int(colocated or 0)
        if num_colocated + num_prefill + num_decode != num_workers:
            raise ConfigError(f"roles {self.roles} do not add up to {num_workers} workers")
        return spec.with_roles(num_colocated, num_prefill, num_decode)


class TierSettings(Section):
    """Bounds in place of a scenario's own; `thinking_tpot_s` where a tier thinks first."""

    ttft_s: Positive | None = None
    ttft_slowdown: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    tpot_s: Positive
    thinking_tpot_s: Positive | None = None

    @model_validator(mode="after")
    def _one_ttft_bound(self) -> Self:
        if (self.ttft_s is None) == (self.ttft_slowdown is None):
            raise ValueError("give either ttft_s or ttft_slowdown")
        return self

    def tier(self, before: Tier) -> Tier:
        """The scenario's tier with these bounds.

        Raises:
            ConfigError: it thinks and no pace is given for that, or the other way round.
        """
        thinking = before.slo.stages[:-1]
        if bool(thinking) != (self.thinking_tpot_s is not None):
            raise ConfigError(
                f"tiers.{before.name}: thinking_tpot_s is for tiers that think, and needed there"
            )
        if self.thinking_tpot_s is not None:
            thinking = tuple(replace(stage, tpot_s=self.thinking_tpot_s) for stage in thinking)
        stages = (*thinking, StageSlo(self.tpot_s))
        return Tier(before.name, Slo(stages, self.ttft_s, self.ttft_slowdown))


class Settings(Section):
    """A run, or several that differ in the rate alone.

    Attributes:
        policy: see `policy_names`.
        token_budget: of a baseline's steps; its largest one unless given.
        rates: requests per second, all workers together.
        trace: file in the format of Azure's LLM traces; with arrivals "trace" only.
        trace_window: seconds of the trace to replay, for example "t1200:1800".
        lengths: "unknown": policies count on the mean output of each tier.
        max_total_tokens: leaves out longer requests.
        tiers: bounds in place of the scenario's, by the tier's name.
    """

    scenario: str = "mixed"
    policy: str = "headway"
    token_budget: Count | None = None
    rates: tuple[Positive, ...] = (4.0,)
    duration_s: Positive = 60.0
    seed: Annotated[int, Field(ge=0)] = 0
    arrivals: Literal["poisson", "azure-chat", "azure-code", "trace"] = "poisson"
    trace: str | None = None
    trace_window: str | None = None
    lengths: Literal["known", "unknown"] = "known"
    max_total_tokens: Count | None = None
    tpot_scale: Positive = 1.0
    cluster: ClusterSettings = ClusterSettings()
    tiers: dict[str, TierSettings] = Field(default_factory=dict)

    def with_rate(self, rate: float) -> Settings:
        """At this rate alone."""
        return self.model_copy(update={"rates": (rate,)})

    def named_policy(self) -> NamedPolicy:
        """The policy.

        Raises:
            ConfigError: there is none of that name.
        """
        try:
            return policy_by_name(self.policy, self.token_budget)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def workload(self, rate: float) -> Workload:
        """What is asked at this rate.

        Raises:
            ConfigError: there is no such scenario, trace or tier, or nothing is asked.
        """
        try:
            workload = self._built(rate, self.duration_s, self.seed, self._trace())
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(str(error)) from error
        if not len(workload):
            raise ConfigError(f"nothing is asked in {self.duration_s:g} s at {rate:g} per second")
        names = [tier.name for tier in workload.tiers]
        if unknown := self.tiers.keys() - set(names):
            raise ConfigError(f"scenario {self.scenario} has tiers {names}, not {sorted(unknown)}")
        if unknown := self.cluster.true_acceptance.keys() - set(names):
            raise ConfigError(
                f"cluster.true_acceptance: {self.scenario} has tiers {names}, not {sorted(unknown)}"
            )
        tiers = tuple(
            self.tiers[tier.name].tier(tier) if tier.name in self.tiers else tier
            for tier in workload.tiers
        )
        return replace(workload, tiers=tiers)

    def simulation(
        self,
        workload: Workload,
        policy: ArrivalPolicy,
        *,
        log: bool = False,
        stop_before: int | None = None,
        progress: Callable[[float], None] | None = None,
        may_end: Callable[[float], bool] | None = None,
    ) -> Simulation:
        """A run of `workload` under `policy`, which `named_policy` built.

        Raises:
            ConfigError: cluster and policy do not go together.
        """
        options = RunOptions(
            seed=self.seed,
            known_lengths=self.lengths == "known",
            log=log,
            stop_before=stop_before,
            progress=progress,
            may_end=may_end,
        )
        try:
            return self.named_policy().simulation(workload, self.cluster.spec(), options, policy)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _trace(self) -> Trace | None:
        return read_trace(Path(self.trace), self.trace_window) if self.trace else None

    def _built(self, rate: float, duration_s: float, seed: int, trace: Trace | None) -> Workload:
        return build(
            self.scenario,
            arrivals=self.arrivals,
            rate=rate,
            duration_s=duration_s,
            seed=seed,
            trace=trace,
            max_total_tokens=self.max_total_tokens,
            tpot_scale=self.tpot_scale,
        )
