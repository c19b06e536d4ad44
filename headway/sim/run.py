"""Runs settings at one rate, and sums up what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from headway.core.batch_state import Floats
from headway.core.planner.acceptance import acceptance_of
from headway.core.planner.advice import Split
from headway.core.planner.arrival import (
    Ageing,
    Answer,
    ArrivalPolicy,
    ClusterView,
    LatePromises,
    RoleChange,
    RoleChanges,
)
from headway.sim.records import RunLog, run_log
from headway.sim.result import RunResult
from headway.sim.roles import Flip, advised_split
from headway.sim.scoring import Score, score
from headway.sim.settings import Settings
from headway.sim.workload import Workload

# Requests that run before the clock does: they compile the policy's code, or load it.
_NUM_WARM_UP = 20


@dataclass(slots=True)
class TimedPolicy:
    """A policy, with the wall-clock time of each decision on the side."""

    policy: ArrivalPolicy
    former: int = field(init=False)
    decisions_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.former = self.policy.former

    def decide(self, new: int, view: ClusterView, now_s: float) -> Answer:
        started_at_s = time.perf_counter()
        answer = self.policy.decide(new, view, now_s)
        self.decisions_s.append(time.perf_counter() - started_at_s)
        return answer

    def place_deferred(self, waiting: int, view: ClusterView, now_s: float) -> Answer:
        return self.policy.place_deferred(waiting, view, now_s)

    def promise_late(self, w: int, view: ClusterView, now_s: float) -> int:
        return (
            self.policy.promise_late(w, view, now_s)
            if isinstance(self.policy, LatePromises)
            else -1
        )

    def raise_aged(self, w: int, view: ClusterView, now_s: float) -> int:
        return self.policy.raise_aged(w, view, now_s) if isinstance(self.policy, Ageing) else -1

    def change_role(self, view: ClusterView, now_s: float) -> RoleChange | None:
        if not isinstance(self.policy, RoleChanges):
            return None
        return self.policy.change_role(view, now_s)


@dataclass(frozen=True, slots=True)
class Run:
    """One run that has ended.

    Attributes:
        settings: with this run's rate only.
        decisions_s: wall-clock time the policy took for each decision.
        advice: how many workers should prefill and how many decode, for all that was asked;
            None for a single worker.
    """

    settings: Settings
    num_workers: int
    result: RunResult
    score: Score
    log: RunLog
    decisions_s: Floats
    advice: Split | None

    @property
    def rate(self) -> float:
        return self.settings.rates[0]

    @property
    def span_s(self) -> float:
        """Virtual time until the last step ended."""
        steps = self.result.steps
        return float((steps["start_s"] + steps["duration_s"]).max(initial=0.0))

    def utilisation(self) -> list[float]:
        """Share of the virtual time in which each worker ran a step."""
        steps = self.result.steps
        busy_s = np.bincount(steps["worker"], steps["duration_s"], self.num_workers)
        # Nothing ran if everything was refused.
        shares: list[float] = (busy_s / max(self.span_s, 1e-9)).tolist()
        return shares

    def acceptances(self) -> dict[str, float]:
        """By tier, what was learned of its drafts by the end; empty where nothing was drafted."""
        if not self.settings.cluster.max_draft_tokens:
            return {}
        tiers, learned = self.result.workload.tiers, self.result.acceptances
        return {
            tier.name: float(acceptance_of(learned[number])) for number, tier in enumerate(tiers)
        }

    def report(self) -> dict[str, Any]:
        """For JSON: all that result.json has."""
        p50_s, p99_s, max_s = np.quantile(self.decisions_s, (0.5, 0.99, 1.0)).tolist()
        utilisation = self.utilisation()
        return {
            "settings": self.settings.model_dump(mode="json"),
            "log_sha256": self.log.sha256,
            "all": self.score.all().report(),
            "tiers": {name: tally.report() for name, tally in self.score.tiers().items()},
            "utilisation_ratio": sum(utilisation) / len(utilisation),
            "utilisation_ratio_by_worker": utilisation,
            "acceptance_by_tier": self.acceptances(),
            "advice": None if self.advice is None else asdict(self.advice),
            "flips": [_flip(flip) for flip in self.result.flips],
            "span_s": self.span_s,
            "num_steps": len(self.result.steps),
            # Wall-clock time of this machine: the only figures that differ between two runs.
            "policy_s": {
                "decisions": len(self.decisions_s),
                "p50": p50_s,
                "p99": p99_s,
                "max": max_s,
            },
            "wall_s": self.result.wall_s,
        }


def _flip(flip: Flip) -> dict[str, Any]:
    """Null where the run ended before the worker was empty."""
    taken_at_s = None if np.isnan(flip.taken_at_s) else flip.taken_at_s
    return {
        "worker": flip.worker,
        "decided_at_s": flip.decided_at_s,
        "taken_at_s": taken_at_s,
        "to": "prefill" if flip.prefills else "decode",
    }


def run(settings: Settings, progress: Callable[[float], None] | None = None) -> Run:
    """Simulate, log and score settings that have one rate.

    Args:
        settings: what to run.
        progress: called with the virtual time now and then.

    Raises:
        ConfigError: the settings do not go together.
    """
    (rate,) = settings.rates
    workload = settings.workload(rate)
    named = settings.named_policy()
    settings.simulation(_first(workload, _NUM_WARM_UP), named.build()).run()
    policy = TimedPolicy(named.build())
    simulation = settings.simulation(workload, policy, log=True, progress=progress)
    result = simulation.run()
    scored = score(result)
    return Run(
        settings,
        simulation.cluster.num_workers,
        result,
        scored,
        run_log(result, scored),
        np.array(policy.decisions_s),
        advised_split(workload, simulation.cluster),
    )


def _first(workload: Workload, num_requests: int) -> Workload:
    """The first requests alone."""
    arrays = {
        name: value[:num_requests]
        for name in workload.__dataclass_fields__
        if isinstance(value := getattr(workload, name), np.ndarray)
    }
    return Workload(name=workload.name, tiers=workload.tiers, **arrays)
