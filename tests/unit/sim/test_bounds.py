"""Bounds against closed forms, and against schedules written down by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from headway.core.batch_state import Floats
from headway.core.perf_model import PerfModel, PrefillChunk, StepShape
from headway.core.slo import Slo, StageSlo
from headway.sim.bounds import BoundViolated, check
from headway.sim.bounds.demand import Demand, Drafting, Gpu, roofs_of_curve
from headway.sim.bounds.fluid_bound import Split, fluid_bound
from headway.sim.bounds.intervals import interval_edges
from headway.sim.bounds.trace_bound import max_scale, trace_bound
from headway.sim.workload import Tier, Workload

PERF = PerfModel(
    floor_s=6e-3,
    token_s=2e-5,
    fixed_s=2e-3,
    sequence_s=7e-6,
    context_token_s=4e-8,
    prefill_attention_s=1e-9,
    chunk_s=4e-4,
)
GPU = Gpu.of_perf_model(PERF)


def workload(
    arrived_at_s: list[float] | Floats,
    num_prompt_tokens: int | list[int],
    num_output_tokens: int | list[int],
    *stages: StageSlo,
    num_thinking_tokens: int = 0,
) -> Workload:
    num = len(arrived_at_s)
    none = np.zeros(num, np.int64)
    return Workload(
        name="test",
        tiers=(Tier("only", Slo(stages or (StageSlo(0.05),), ttft_s=1.0)),),
        arrived_at_s=np.array(arrived_at_s, np.float64),
        num_prompt_tokens=none + num_prompt_tokens,
        num_output_tokens=none + num_output_tokens,
        tier=none,
        num_thinking_tokens=none + num_thinking_tokens,
        follows=none - 1,
        gap_s=np.zeros(num),
        num_prefix_tokens=none,
    )


def ttft(work: Workload, ttft_s: float = 1.0) -> Floats:
    return np.full(len(work), ttft_s)


def closed_form(
    num_prompt: int, num_output: int, step_s: float, num_kv: float = math.inf, host_s: float = 0.0
) -> float:
    """One class in steps of one length: (1 - fixed / step) / work per request, and KV."""
    num_decodes = num_output - 1
    context = num_prompt + (num_decodes - 1) / 2
    extra_s = PERF.prefill_attention_s * num_prompt**2 / 2 + PERF.chunk_s
    extra_s += num_decodes * (PERF.sequence_s + PERF.context_token_s * context)
    matrix_s = PERF.token_s * (num_prompt + num_decodes)
    return min(
        (1 - (PERF.fixed_s + host_s) / step_s) / (matrix_s + extra_s),
        (1 - (PERF.floor_s + host_s) / step_s) / extra_s,
        num_kv / (num_decodes * step_s * context),
    )


@pytest.mark.parametrize(
    ("num_prompt", "num_output", "tpot_s", "host_s"),
    [
        (1000, 100, 0.05, 0.0),  # the compute roof
        (1000, 100, 0.05, 0.001),
        (50, 2000, 0.012, 0.0),  # the memory floor
    ],
)
def test_one_class_at_an_even_pace_is_the_closed_form(
    num_prompt: int, num_output: int, tpot_s: float, host_s: float
) -> None:
    work = workload([0.0] * 3, num_prompt, num_output, StageSlo(tpot_s))
    gpu = Gpu.of_perf_model(PERF, host_s=host_s)
    bound = fluid_bound(work, ttft(work), gpu, 1.0, even_pace=True)
    assert bound == pytest.approx(
        closed_form(num_prompt, num_output, tpot_s, host_s=host_s), rel=1e-6
    )
    assert fluid_bound(work, ttft(work), gpu, 1.0, even_pace=False) >= bound * (1 - 1e-9)


def test_little_kv_memory_makes_steps_short() -> None:
    work = workload([0.0] * 3, 1000, 500, StageSlo(0.05))
    num_kv = 30_000.0
    # Shorter steps hold KV for less time but pay more often for the weights.
    best = max(closed_form(1000, 500, step_s, num_kv) for step_s in np.geomspace(6e-3, 0.05, 4000))
    assert best < 0.9 * closed_form(1000, 500, 0.05)
    gpu = Gpu.of_perf_model(PERF, num_kv_tokens=num_kv)
    bound = fluid_bound(work, ttft(work), gpu, 1.0, even_pace=True)
    # The best length is between two of the grid.
    assert best * (1 - 1e-6) <= bound <= 1.01 * best


def test_the_dearest_requests_are_rejected_first() -> None:
    work = workload([0.0] * 10, [500] * 8 + [5000] * 2, 1)
    extra_s = PERF.prefill_attention_s * 500**2 / 2 + PERF.chunk_s
    cheap_s = 500 * PERF.token_s + extra_s
    bound = fluid_bound(work, ttft(work), GPU, 0.8, even_pace=False)
    assert bound == pytest.approx(10 / (8 * cheap_s), rel=1e-6)
    assert fluid_bound(work, ttft(work), GPU, 1.0, even_pace=False) < 0.6 * bound


def test_no_rate_serves_prompts_that_take_too_long_alone() -> None:
    work = workload([0.0] * 4, [100, 100, 100, 60_000], 5)
    assert fluid_bound(work, ttft(work), GPU, 0.9, even_pace=False) == 0.0
    assert fluid_bound(work, ttft(work), GPU, 0.75, even_pace=False) > 0.0


def test_a_split_is_no_better_than_its_slower_side() -> None:
    work = workload([0.0] * 3, 2000, 30)
    prompt_s = 2000 * PERF.token_s + PERF.prefill_attention_s * 2000**2 / 2 + PERF.chunk_s
    bound = fluid_bound(work, ttft(work), GPU, 1.0, even_pace=True, split=Split(1, 3))
    assert bound == pytest.approx(1 / 4 / prompt_s, rel=1e-6)
    context = 2000 + 28 / 2
    token_s = PERF.token_s + PERF.sequence_s + PERF.context_token_s * context
    bound = fluid_bound(work, ttft(work), GPU, 1.0, even_pace=True, split=Split(99, 1))
    per_gpu = min(
        (1 - PERF.fixed_s / 0.05) / (29 * token_s),
        (1 - PERF.floor_s / 0.05) / (29 * (token_s - PERF.token_s)),
    )
    assert bound == pytest.approx(per_gpu / 100, rel=1e-6)


def test_drafting_pays_where_reading_kv_is_the_limit_only() -> None:
    drafting = Drafting(max_tokens=3, acceptance_ratio=0.8, floor_s=3e-4, sequence_s=1e-6)
    for num_prompt, num_output, gains in ((2000, 4000, True), (4000, 2, False)):
        work = workload([0.0] * 3, num_prompt, num_output)
        plain = fluid_bound(work, ttft(work), GPU, 1.0, even_pace=True)
        gpu = replace(GPU, drafting=drafting)
        drafted = fluid_bound(work, ttft(work), gpu, 1.0, even_pace=True)
        # Longer steps keep the pace too, so the fixed cost of a step falls by a few per cent.
        assert drafted > 1.5 * plain if gains else plain <= drafted < 1.05 * plain


def test_tokens_per_step_of_drafts() -> None:
    drafting = Drafting(max_tokens=4, acceptance_ratio=0.7, floor_s=0.0, sequence_s=0.0)
    p = 0.7
    expected = [(1 - p ** (num + 1)) / (1 - p) for num in range(5)]
    assert drafting.tokens_per_step(np.arange(5)) == pytest.approx(expected)


def test_pace_of_two_stages_binds_where_each_is() -> None:
    stages = (StageSlo(0.02, end_token_id=7), StageSlo(0.1))
    work = workload([0.0], 100, 50, *stages, num_thinking_tokens=20)
    demand = Demand.of_workload(work, ttft(work), GPU)
    assert demand.num_decode_tokens.tolist() == [[19, 30]]
    # The j-th decode reads the prompt and the j - 1 output tokens fed back before.
    reads = [100 + j for j in range(49)]
    assert demand.num_context_tokens.tolist() == [[sum(reads[:19]), sum(reads[19:])]]
    assert demand.decode_s[0] == pytest.approx(19 * 0.02 + 30 * 0.1)


def test_a_cached_prefix_is_read_but_not_computed() -> None:
    work = replace(workload([0.0], 1000, 2), num_prefix_tokens=np.array([900]))
    demand = Demand.of_workload(work, ttft(work), GPU)
    step = StepShape(chunks=(PrefillChunk(100, 900),))
    assert GPU.prefill_s(demand)[0] == pytest.approx(PERF.step_s(step))


def test_roofs_are_never_above_the_curve() -> None:
    knots = np.array([1.0, 16.0, 32.0, 64.0, 256.0, 1024.0, 2048.0])
    times_s = np.array([6.3e-3, 6.9e-3, 6.6e-3, 7.0e-3, 8.7e-3, 21.9e-3, 42e-3])
    roofs = roofs_of_curve(knots, times_s, host_s=1e-3)
    tokens = np.arange(1.0, 10_000.0)
    curve_s = np.interp(tokens, knots, times_s)
    beyond = tokens > knots[-1]
    slope_s = (times_s[-1] - times_s[-2]) / (knots[-1] - knots[-2])
    curve_s[beyond] = times_s[-1] + slope_s * (tokens[beyond] - knots[-1])
    lower_s = np.max([roof.fixed_s + roof.token_s * tokens for roof in roofs], axis=0)
    assert (lower_s <= curve_s + 1e-3 + 1e-12).all()
    assert (lower_s[[0, 63, 255, 2047]] >= 0.98 * (curve_s[[0, 63, 255, 2047]] + 1e-3)).all()


def test_a_burst_of_prompts_is_bound_by_its_window() -> None:
    # 20 prompts at once, each 0.0409 s of work, and 0.3 s for all: 7.3 fit.
    work = workload([0.0] * 20, 2000, 1)
    prompt_s = 2000 * PERF.token_s + PERF.prefill_attention_s * 2000**2 / 2 + PERF.chunk_s
    for num_gpus in (1, 2):
        served = trace_bound(work, ttft(work, 0.3), GPU, num_gpus, 100)
        assert served == pytest.approx(num_gpus * 0.3 / prompt_s, rel=1e-6)
    # The fluid, which does not look at arrivals, sees nothing wrong with them.
    assert fluid_bound(work, ttft(work, 0.3), GPU, 1.0, even_pace=False) > 20


def test_no_prompt_is_computed_by_two_gpus_at_once() -> None:
    work = workload([0.0, 0.0], 5000, 1)
    assert trace_bound(work, ttft(work, 0.05), GPU, 8, 50) == 0.0


def test_nothing_is_computed_before_it_arrives() -> None:
    # Idle for 10 s, then 30 prompts of 0.0424 s within 0.1 s.
    arrived = np.concatenate([[0.0], np.full(30, 10.0)])
    work = workload(arrived, 2000, 1)
    prompt_s = 2000 * PERF.token_s + PERF.prefill_attention_s * 2000**2 / 2 + PERF.chunk_s
    served = trace_bound(work, ttft(work, 0.1), GPU, 1, 200)
    assert served == pytest.approx(1 + 0.1 / prompt_s, rel=1e-6)


def test_decodes_of_many_at_once_are_bound_by_steps_and_kv() -> None:
    work = workload([0.0] * 600, 10, 101, StageSlo(0.01))
    # 100 steps within 1.4 s, floor and sequences: (1.4 - 100 * 0.006) / (100 * (7 us + KV)).
    token_s = PERF.sequence_s + PERF.context_token_s * (10 + 99 / 2)
    memory = (1.4 - 100 * PERF.floor_s) / (100 * token_s + 0)
    served = trace_bound(work, ttft(work, 0.4), GPU, 1, 50)
    assert served <= memory * (1 + 1e-6)
    few = Gpu.of_perf_model(PERF, max_running=50)
    assert trace_bound(work, ttft(work, 0.4), few, 1, 50) <= 50 * 1.4 / (100 * PERF.floor_s)


def served_by_hand(arrived_at_s: Floats, num_prompt: int, num_output: int, ttft_s: float) -> int:
    """Requests on time if each step decodes all there are, beside one prompt that can make it."""
    waiting = sorted(arrived_at_s, reverse=True)
    now_s, on_time = 0.0, 0
    running: list[list[float]] = []  # arrival, tokens
    late: set[float] = set()
    while waiting or running:
        if not running:
            now_s = max(now_s, waiting[-1])
        context = int(sum(num_prompt + tokens - 1 for _, tokens in running))
        decodes = StepShape((), len(running), context)
        both = replace(decodes, chunks=(PrefillChunk(num_prompt, 0),))
        both_s = PERF.step_s(both)
        while waiting and waiting[-1] + ttft_s < now_s + both_s:
            waiting.pop()
        if waiting and waiting[-1] <= now_s:
            running.append([waiting.pop(), 0.0])
            now_s += both_s
        else:
            now_s += PERF.step_s(decodes)
        for entry in running:
            entry[1] += 1
            due_s = entry[0] + ttft_s + (entry[1] - 1) * 0.05
            if now_s > due_s and (entry[1] in {1, num_output} or entry[1] % 10 == 0):
                late.add(entry[0])
        on_time += sum(1 for at_s, tokens in running if tokens >= num_output and at_s not in late)
        running = [entry for entry in running if entry[1] < num_output]
    return on_time


@pytest.mark.parametrize("rate", [8.0, 30.0, 80.0])
@pytest.mark.parametrize("max_intervals", [7, 40, 150])
def test_no_schedule_serves_more_than_the_bound(rate: float, max_intervals: int) -> None:
    arrived_at_s = np.cumsum(np.random.default_rng(3).exponential(1 / rate, 120))
    work = workload(arrived_at_s, 1000, 37)
    by_hand = served_by_hand(arrived_at_s, 1000, 37, 0.25)
    bound = trace_bound(work, ttft(work, 0.25), GPU, 1, max_intervals)
    assert by_hand - 1e-6 <= bound
    if rate == 80.0 and max_intervals == 150:
        # The bound says something, and the schedule is not far below.
        assert bound < 0.8 * 120 < 1.6 * by_hand


def test_finer_intervals_serve_no_more_and_still_what_a_gpu_can() -> None:
    arrived_at_s = np.cumsum(np.random.default_rng(5).exponential(1 / 80.0, 200))
    work = workload(arrived_at_s, 1000, 37)
    coarse, fine = (trace_bound(work, ttft(work, 0.25), GPU, 1, num) for num in (5, 200))
    assert fine < coarse < 200


def test_scale_of_a_stream_meets_the_fluid() -> None:
    # Long and even, so that neither windows nor the end matter much.
    work = workload(np.arange(200) / 10.0, 2000, 20)
    fluid = fluid_bound(work, ttft(work), GPU, 0.9, even_pace=False)
    scale = max_scale(work, ttft(work), GPU, 1, 0.9, 60)
    # Beside 200 arrivals, what the end leaves over is a few seconds' worth.
    span_s = 19.9 / scale
    assert fluid * 0.98 <= 10.0 * scale <= fluid * (1 + 3.0 / span_s)
    assert trace_bound(
        replace(work, arrived_at_s=work.arrived_at_s / scale), ttft(work), GPU, 1, 60
    ) < 0.9 * len(work)


def test_sessions_and_drafting_are_refused() -> None:
    session = replace(
        workload([0.0, 1.0], 10, 10),
        arrived_at_s=np.array([0.0, math.nan]),
        follows=np.array([-1, 0]),
    )
    with pytest.raises(ValueError, match="rounds"):
        trace_bound(session, ttft(session), GPU, 1, 10)
    work = workload([0.0], 10, 10)
    drafting = Drafting(max_tokens=1, acceptance_ratio=0.5, floor_s=0.0, sequence_s=0.0)
    with pytest.raises(ValueError, match="drafting"):
        trace_bound(work, ttft(work), replace(GPU, drafting=drafting), 1, 10)


def test_edges_keep_events_where_there_is_room() -> None:
    arrived, due = np.array([0.0, 0.31, 2.0]), np.array([0.5, 0.81, 2.5])
    edges = interval_edges(arrived, due, 10.0, 40)
    assert set(arrived) | set(due) <= set(edges)
    assert edges[0] == 0.0
    assert edges[-1] == 10.0
    assert (np.diff(edges) <= 0.5 + 1e-12).all()
    assert len(interval_edges(np.linspace(0, 9, 500), np.linspace(1, 10, 500), 20.0, 40)) <= 41


def test_a_capacity_above_its_bound_fails() -> None:
    check(9.9, 10.0)
    check(10.0, 10.0)
    for capacity in (10.001, math.nan):
        with pytest.raises(BoundViolated):
            check(capacity, 10.0)
