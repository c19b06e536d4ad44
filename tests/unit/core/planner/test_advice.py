"""How many workers of each role a load needs, and when one should change."""

from __future__ import annotations

import math

import pytest

from headway.core.perf_model import PerfModel
from headway.core.planner.advice import (
    PREFILL_SHARE,
    FlipRule,
    Load,
    LoadMeter,
    Split,
    best_split,
    load_of_request,
    split_of,
)

# 8 ms at least, 30 us per token, 2 us per sequence and 20 ns per token of context.
MODEL = PerfModel(0.008, 3e-5, 0.0005, 2e-6, 2e-8, 1e-9, 1e-5)
ROOM = 400_000


def request(num_prompt: int, num_output: int, tpot_s: float = 0.05, num_kept: int = 0) -> Load:
    return load_of_request(MODEL, num_prompt, num_kept, num_output, tpot_s)


def many(one: Load, rate: float) -> Load:
    return Load().plus(one, rate)


def test_a_prompt_takes_its_tokens_and_attention_and_less_where_some_is_kept() -> None:
    whole, rest = request(1000, 10), request(1000, 10, num_kept=900)
    assert whole.prefill_s == pytest.approx(1000 * 3e-5 + 0.5e6 * 1e-9 + 1e-5)
    assert rest.prefill_s == pytest.approx(100 * 3e-5 + (900 + 50) * 100 * 1e-9 + 1e-5)
    assert whole.decode_compute_s == rest.decode_compute_s


def settled_step_s(tokens_per_s: float, context: float) -> float:
    """Length of the steps of a decode worker in balance, by iterating what a step does."""
    duration_s = MODEL.floor_s
    for _ in range(10_000):
        num = tokens_per_s * duration_s
        duration_s = max(MODEL.floor_s, MODEL.token_s * num + MODEL.fixed_s) + num * (
            MODEL.sequence_s + MODEL.context_token_s * context
        )
    return duration_s


@pytest.mark.parametrize(("num_output", "tpot_s", "room"), [(200, 0.015, 10**9), (200, 0.2, ROOM)])
def test_a_full_decode_worker_is_one_whose_steps_reach_the_bound_or_fill_memory(
    num_output: int, tpot_s: float, room: int
) -> None:
    one = request(1000, num_output, tpot_s)
    split = split_of(many(one, 1.0), MODEL, room, 1, 1)
    rate = 1.0 / max(split.decode_ratio, split.kv_ratio)
    context = 1000 + 0.5 * num_output
    step_s = settled_step_s(rate * num_output, context)
    held = rate * num_output * step_s * context
    assert max(step_s / tpot_s, held / room) == pytest.approx(1.0, rel=0.01)


def test_ratios_are_linear_in_the_load_and_in_the_workers_of_the_role() -> None:
    one = many(request(2000, 300), 5.0)
    first, twice = split_of(one, MODEL, ROOM, 1, 2), split_of(many(one, 2.0), MODEL, ROOM, 2, 4)
    for name in ("prefill_ratio", "decode_ratio", "kv_ratio"):
        assert getattr(first, name) == pytest.approx(getattr(twice, name))
    assert first.prefill_ratio == pytest.approx(one.prefill_s / PREFILL_SHARE)


def test_long_prompts_want_prefill_workers_and_long_outputs_decode_workers() -> None:
    prompts = best_split(many(request(4000, 20), 20.0), MODEL, ROOM, 8)
    outputs = best_split(many(request(200, 2000), 20.0), MODEL, ROOM, 8)
    assert prompts.num_prefill == 7
    assert outputs.num_prefill == 1
    assert prompts.num_prefill + prompts.num_decode == 8


def test_no_pace_is_too_tight_to_be_said_so() -> None:
    assert split_of(many(request(100, 10, 0.005), 1.0), MODEL, ROOM, 1, 1).worst_ratio == math.inf


def test_one_worker_has_no_split() -> None:
    with pytest.raises(ValueError, match="two workers"):
        best_split(Load(), MODEL, ROOM, 1)


def test_the_meter_finds_the_rate_and_forgets() -> None:
    meter, one = LoadMeter(memory_s=10.0), request(1000, 100)
    for number in range(200):
        meter.observe(one, 0.1 * number)
    assert meter.load(20.0).prefill_s == pytest.approx(10 * one.prefill_s, rel=0.05)
    assert meter.load(20.0).tightest_tpot_s == 0.05
    for number in range(400):
        meter.observe(request(1000, 100, 0.1), 20.0 + 0.2 * number)
    assert meter.load(100.0).prefill_s == pytest.approx(5 * one.prefill_s, rel=0.05)
    assert meter.load(100.0).tightest_tpot_s == 0.1
    assert meter.load(200.0).prefill_s < 0.01 * one.prefill_s


def test_nothing_asked_is_no_load() -> None:
    assert LoadMeter().load(5.0) == Load()


def split(num_prefill: int, worst_ratio: float) -> Split:
    return Split(num_prefill, 4 - num_prefill, worst_ratio, 0.0, 0.0)


FREE = {1: 0.0, -1: 0.0}


def test_a_role_changes_only_after_the_reason_has_held() -> None:
    rule = FlipRule(hold_s=5.0)
    now, best = split(1, 1.5), split(3, 0.8)
    assert rule.wants(now, best, FREE, 0.0) == 0
    assert rule.wants(now, best, FREE, 4.0) == 0
    assert rule.wants(now, now, FREE, 4.5) == 0
    assert rule.wants(now, best, FREE, 5.0) == 0
    assert rule.wants(now, best, FREE, 10.0) == 1
    rule.changed(10.0)
    assert rule.wants(now, best, FREE, 11.0) == 0


@pytest.mark.parametrize(
    ("now", "best", "drain_s", "wanted"),
    [
        (split(3, 1.5), split(1, 0.8), 0.0, -1),
        (split(1, 0.6), split(2, 0.3), 0.0, 0),
        (split(1, 0.85), split(2, 0.8), 0.0, 0),
        (split(1, 1.5), split(2, 0.8), 160.0, 1),
        (split(1, 1.5), split(2, 0.8), 170.0, 0),
    ],
    ids=["the other way", "comfortable", "hardly better", "worth the drain", "not worth it"],
)
def test_a_role_changes_only_where_it_wins_more_than_it_costs(
    now: Split, best: Split, drain_s: float, wanted: int
) -> None:
    rule = FlipRule(hold_s=0.0, horizon_s=60.0)
    drains_s = {1: drain_s, -1: drain_s}
    rule.wants(now, best, drains_s, 0.0)
    assert rule.wants(now, best, drains_s, 1.0) == wanted
