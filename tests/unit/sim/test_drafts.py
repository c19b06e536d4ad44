"""Drafts in the simulator: their acceptance is not what the planner first believes."""

from __future__ import annotations

import pytest

from headway.core.planner.acceptance import acceptance_of
from headway.sim.result import RunResult
from tests.simulated import Finished, cluster, simulate, workload

TIERS = ("chat", "coder", "summarizer", "tool-answer", "tool-call", "reasoning")


def run(ends: tuple[float, float], *, learn: bool = True, load: float = 0.9) -> Finished:
    """Mixed requests; drafts of all tiers are accepted alike."""
    machines = cluster(
        "colocated-1",
        max_draft_tokens=3,
        acceptance=0.8,
        true_acceptance=tuple((name, ends) for name in TIERS),
    )
    asked = workload("chat", 700, load=load, num_workers=1, seed=3)
    return simulate(asked, machines, log=True, learn=learn)


def drafted_ratio(result: RunResult, part: slice) -> float:
    """Drafted tokens per decode in a part of the steps."""
    steps = result.steps[part]
    return float(steps["num_drafted"].sum() / steps["num_decodes"].sum())


@pytest.mark.parametrize("truth", [0.3, 0.5, 0.9])
def test_what_is_learned_is_the_truth(truth: float) -> None:
    result = run((truth, truth), load=0.4).result
    assert result.acceptances["num_trials"][0] > 500
    assert acceptance_of(result.acceptances[0]) == pytest.approx(truth, abs=0.06)


def test_drafting_ends_where_it_costs() -> None:
    bad, good = run((0.05, 0.05)).result, run((0.9, 0.9)).result
    assert drafted_ratio(good, slice(None)) > 2.0
    assert drafted_ratio(bad, slice(None)) < 0.25 * drafted_ratio(good, slice(None))


def test_it_follows_drift() -> None:
    result = run((0.9, 0.0), load=0.5).result
    third = len(result.steps) // 3
    assert drafted_ratio(result, slice(2 * third, None)) < 0.3 * drafted_ratio(
        result, slice(50, third)
    )


def test_learning_is_worth_it_where_the_belief_is_wrong() -> None:
    learned, fixed = (run((0.05, 0.05), load=1.1, learn=learn) for learn in (True, False))
    assert fixed.result.acceptances["num_trials"].sum() == 0
    assert learned.score.strict.mean() > fixed.score.strict.mean() + 0.05
