"""Whose bounds were met: by hand, and against the demand line of live requests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headway.core.planner.acceptance import new_acceptances
from headway.core.slo import DemandLine, Promise, Slo, StageSlo
from headway.sim.result import RunResult
from headway.sim.run import Run, run
from headway.sim.scoring import allowed_decode_s, percentiles, score, tpot_bounds_s
from headway.sim.settings import ClusterSettings, Settings
from headway.sim.workload import Tier, Workload
from headway.sim.world_state import REFUSED, SERVED, SIM, STEP, TOKEN

TALK = Tier("talk", Slo((StageSlo(0.1),), ttft_s=0.5))
THINK = Tier("think", Slo((StageSlo(0.05, end_after_tokens=100), StageSlo(0.2)), ttft_s=1.0))
OVERHEAD_S = 0.01


def asked(
    *num_output: int, tiers: tuple[int, ...] = (), thinking: tuple[int, ...] = ()
) -> Workload:
    num = len(num_output)
    zeros = np.zeros(num, np.int64)
    return Workload(
        name="by hand",
        tiers=(TALK, THINK),
        arrived_at_s=np.arange(num, dtype=np.float64),
        num_prompt_tokens=np.full(num, 100),
        num_output_tokens=np.array(num_output),
        tier=np.array(tiers) if tiers else zeros,
        num_thinking_tokens=np.array(thinking) if thinking else zeros,
        follows=zeros - 1,
        gap_s=np.zeros(num),
        num_prefix_tokens=zeros,
    )


def ended(
    workload: Workload, ttft_s: list[float], decode_s: list[float], **sim: object
) -> RunResult:
    """Requests with these times, as the client sees the first token."""
    bound_s = np.array([workload.tiers[tier].slo.ttft_s for tier in workload.tier])
    records = np.zeros(len(workload), SIM)
    records["outcome"] = SERVED
    records["first_due_at_s"] = workload.arrived_at_s + bound_s - OVERHEAD_S
    records["first_token_at_s"] = workload.arrived_at_s + np.array(ttft_s) - OVERHEAD_S
    records["last_token_at_s"] = records["first_token_at_s"] + np.array(decode_s)
    for name, value in sim.items():
        records[name] = value
    return RunResult(
        workload=workload,
        sim=records,
        arrived_at_s=workload.arrived_at_s,
        ttft_bound_s=bound_s,
        acceptances=new_acceptances(0.7, len(workload.tiers)),
        flips=[],
        steps=np.zeros(0, STEP),
        token_log=np.zeros(0, TOKEN),
        num_decisions=len(workload),
        planning_s=0.0,
        wall_s=0.0,
    )


def test_the_two_ways_to_score_differ_where_a_stall_or_an_early_first_token_hides() -> None:
    # Ten gaps of 0.1 s each: in time; first token late; stalled in the middle; slow after an
    # early first token.
    result = ended(
        asked(11, 11, 11, 11),
        [0.4, 0.6, 0.4, 0.1],
        [0.9, 0.5, 0.9, 1.1],
        num_checkpoints_missed=[0, 1, 1, 0],
    )
    scored = score(result)
    assert scored.strict.tolist() == [True, False, False, True]
    assert scored.mean.tolist() == [True, False, True, False]
    assert scored.ttft_s == pytest.approx([0.4, 0.6, 0.4, 0.1])
    assert scored.tpot_s == pytest.approx([0.09, 0.05, 0.09, 0.11])


def test_best_effort_and_refused_requests_are_misses_however_fast_they_were() -> None:
    result = ended(
        asked(1, 1, 1, 1), [0.1] * 4, [0.0] * 4, deferred=[0, 1, 0, 0], outcome=[1, 1, 2, 1]
    )
    assert (result.sim["outcome"] == REFUSED).sum() == 1
    result.sim["first_token_at_s"][2] = np.nan
    tally = score(result).all()
    counts = (tally.num_asked, tally.num_promised, tally.num_best_effort, tally.num_refused)
    assert counts == (4, 2, 1, 1)
    assert tally.attained_ratio == tally.attained_mean_ratio == 0.5


def test_long_requests_that_are_shed_show_in_the_token_weighted_ratio() -> None:
    # Prompts of 100 tokens: 101 + 101 attained of 101 + 101 + 798.
    result = ended(asked(1, 1, 698), [0.1] * 3, [0.0] * 3, deferred=[0, 0, 1])
    tally = score(result).all()
    assert tally.attained_ratio == pytest.approx(2 / 3)
    assert tally.token_weighted_ratio == pytest.approx(202 / 1000)


def test_tiers_are_told_apart_and_one_that_nobody_asked_for_has_no_latency() -> None:
    scored = score(ended(asked(2, 2), [0.1, 0.3], [0.1, 0.1]))
    tiers = scored.tiers()
    assert (tiers["talk"].num_asked, tiers["think"].num_asked) == (2, 0)
    assert tiers["talk"].ttft_s["p50"] == pytest.approx(0.2)
    assert tiers["think"].ttft_s["p50"] is None
    assert tiers["think"].report()["attained_strict_ratio"] == 1.0


@pytest.mark.parametrize(
    ("num_output", "num_thinking", "allowed_s"),
    [
        (1, 0, 0.0),
        # Without thinking the answer's pace holds from the start.
        (11, 0, 10 * 0.2),
        # The gap after the last token of a stage is already the next stage's.
        (11, 4, 3 * 0.05 + 7 * 0.2),
        (11, 50, 10 * 0.05),
    ],
)
def test_each_gap_has_the_pace_of_its_stage(
    num_output: int, num_thinking: int, allowed_s: float
) -> None:
    workload = asked(num_output, tiers=(1,), thinking=(num_thinking,))
    assert allowed_decode_s(workload) == pytest.approx([allowed_s])
    line = DemandLine(promise(workload, 0, 1.0), arrived_at_s=0.0)
    first_due_at_s = line.next_due_at_s
    for _ in range(num_output - 1):
        line.token(0, 0.0)
    assert line.next_due_at_s - first_due_at_s == pytest.approx(allowed_s)


def promise(workload: Workload, index: int, ttft_s: float) -> Promise:
    """What the request was promised, its own end of thinking in it."""
    thinking_s, answer_s = tpot_bounds_s(workload)[index]
    num_thinking = int(workload.num_thinking_tokens[index])
    if not num_thinking:
        return Promise(ttft_s, (StageSlo(answer_s),))
    return Promise(
        ttft_s, (StageSlo(thinking_s, end_after_tokens=num_thinking), StageSlo(answer_s))
    )


@pytest.fixture(scope="module")
def crowded() -> Run:
    """More than one worker can serve, by a policy that serves it all."""
    settings = Settings(
        scenario="mixed",
        policy="sarathi",
        token_budget=2048,
        rates=(10.0,),
        duration_s=20.0,
        cluster=ClusterSettings(max_running=64),
    )
    return run(settings)


def test_strict_scoring_is_the_demand_line_of_live_requests(crowded: Run) -> None:
    result, workload = crowded.result, crowded.result.workload
    attained = []
    for index in range(len(workload)):
        first_due_at_s = float(result.sim["first_due_at_s"][index])
        line = DemandLine(promise(workload, index, first_due_at_s), arrived_at_s=0.0)
        own = result.token_log[result.token_log["request"] == index]
        left_at_s = dict(zip(own["index"].tolist(), own["at_s"].tolist(), strict=True))
        for token in range(int(workload.num_output_tokens[index])):
            line.token(-1, left_at_s.get(token, -np.inf))
        attained.append(line.attained)
    assert 0.1 < np.mean(attained) < 0.9
    assert crowded.score.strict.tolist() == attained


def test_scores_do_not_depend_on_the_order_of_tiers(crowded: Run) -> None:
    workload = crowded.result.workload
    num_tiers = len(workload.tiers)
    turned = replace(workload, tiers=workload.tiers[::-1], tier=num_tiers - 1 - workload.tier)
    again = score(replace(crowded.result, workload=turned))
    before = crowded.score.tiers()
    assert {name: tally.report() for name, tally in again.tiers().items()} == {
        name: tally.report() for name, tally in before.items()
    }
    assert sum(tally.num_attained for tally in before.values()) == again.all().num_attained


def test_percentiles_interpolate_and_leave_out_what_has_no_value() -> None:
    values = np.array([5.0, 1.0, np.nan, 3.0, 2.0, 4.0])
    assert percentiles(values) == pytest.approx({"p50": 3.0, "p90": 4.6, "p99": 4.96})
