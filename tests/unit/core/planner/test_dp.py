from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.planner.dp import (
    Broken,
    DpInstance,
    DpPlan,
    DpPrompt,
    DpTier,
    DpWorker,
    _problem,
    explain,
    plan,
)
from headway.core.planner.dp_prices import NUM_BEHIND, Prices, set_prices
from headway.core.planner.dp_search import _search_layers
from headway.core.planner.interface import Constraint
from tests.unit.core.planner.dp_reference import (
    best_value_by_counts,
    brute_force_value,
    edf_keeps_deadlines,
    keeps,
)

# Small instances consist of multiples of powers of two, so that sums and rates are exact and two
# ways to compute them cannot differ by rounding.
VALUES = [(1.0,), (1.0, 2.0, 3.0), (0.5, 0.75, 2.0), (0.3,)]


def small_prompt(
    rng: np.random.Generator, num_tiers: int, max_sixteenths: int, value: float
) -> DpPrompt:
    return DpPrompt(
        prefill_s=int(rng.integers(0, max_sixteenths + 1)) / 16,
        due_at_s=int(rng.integers(-1, 33)) / 8,
        tier=int(rng.integers(num_tiers)),
        num_blocks=int(rng.integers(0, 9)),
        value=value,
    )


def small_worker(rng: np.random.Generator, max_fixed: int) -> DpWorker:
    fixed_s = int(rng.integers(0, max_fixed + 1)) / 64
    return DpWorker(
        fixed_s,
        floor_s=fixed_s + int(rng.integers(0, 3)) / 64,
        token_s=1 / 256,
        step_cap_s=float(rng.choice([1 / 8, 1 / 4, math.inf])),
    )


def small_instance(seed: int, max_new: int = 7) -> DpInstance:
    """A quarter each: mixed, short of decode rate, short of blocks, with a prefill worker."""
    rng = np.random.default_rng(seed)
    kind = seed % 4
    num_tiers = int(rng.integers(1, 4))
    tiers = tuple(
        DpTier(
            tpot_s=float(rng.choice([1 / 8, 1 / 4, 1 / 2, 1])),
            decode_s=int(rng.integers(1, 17)) * (4 if kind % 2 else 1) / 256,
            num_decodes=0 if kind % 2 else int(rng.integers(0, 4)),
        )
        for _ in range(num_tiers)
    )
    values = VALUES[rng.integers(len(VALUES))]
    longest = 6 if kind % 2 else 16
    forced = [small_prompt(rng, num_tiers, longest // 4, 1.0) for _ in range(rng.integers(0, 5))]
    return DpInstance(
        now_at_s=0.0,
        tiers=tiers,
        worker=small_worker(rng, 6 if kind % 2 else 2),
        num_free_blocks=16 if kind == 2 else 60,
        forced=tuple(replace(p, num_blocks=1) for p in forced[: 2 if kind % 2 else 4]),
        new=tuple(
            small_prompt(rng, num_tiers, longest, float(rng.choice(values)))
            for _ in range(rng.integers(0, max_new + 1))
        ),
        prefill_worker=small_worker(rng, 2) if kind == 3 else None,
    )


def check_against_brute_force(instance: DpInstance) -> DpPlan:
    found = plan(instance)
    assert bool(found.broken) == (not keeps(instance, ()))
    if not found.broken:
        assert found.exact
        assert found.value == pytest.approx(brute_force_value(instance), abs=1e-9)
        assert found.value == sum(instance.new[index].value for index in found.chosen)
        assert found.upper_bound == found.value
        assert keeps(instance, found.chosen)
    return found


@pytest.mark.parametrize("batch", range(10))
def test_is_as_good_as_trying_every_choice(batch: int) -> None:
    num_feasible = num_choices = num_searched = 0
    for seed in range(batch * 1000, batch * 1000 + 1000):
        instance = small_instance(seed)
        found = check_against_brute_force(instance)
        num_feasible += not found.broken
        num_choices += 0 < len(found.chosen) < len(instance.new)
        num_searched += found.num_states > 0
    # Otherwise these instances would not try what they are for.
    assert num_feasible > 500
    assert num_choices > 250
    assert num_searched > 25


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_is_as_good_as_trying_every_choice_and_shrinks(data: st.DataObject) -> None:
    def eighths(low: int, high: int) -> float:
        return data.draw(st.integers(low, high)) / 8

    def prompt(num_tiers: int) -> DpPrompt:
        tier = data.draw(st.integers(0, num_tiers - 1))
        blocks = data.draw(st.integers(0, 8))
        value = data.draw(st.integers(1, 3)) * 1.0
        return DpPrompt(eighths(0, 8), eighths(0, 32), tier, blocks, value)

    num_tiers = data.draw(st.integers(1, 3))
    instance = DpInstance(
        now_at_s=0.0,
        tiers=tuple(
            DpTier(2.0 ** -data.draw(st.integers(0, 3)), eighths(1, 4) / 16, 0)
            for _ in range(num_tiers)
        ),
        worker=DpWorker(1 / 64, 1 / 32, 1 / 256, step_cap_s=1 / 4),
        num_free_blocks=data.draw(st.integers(0, 30)),
        forced=tuple(prompt(num_tiers) for _ in range(data.draw(st.integers(0, 2)))),
        new=tuple(prompt(num_tiers) for _ in range(data.draw(st.integers(0, 5)))),
    )
    check_against_brute_force(instance)


def test_is_as_good_as_counting_per_tier_without_beam_or_bounds() -> None:
    for seed in range(60):
        instance = small_instance(seed, max_new=16)
        found = plan(instance)
        if not found.broken:
            assert found.exact
            assert found.value == pytest.approx(best_value_by_counts(instance), abs=1e-9)


def value_without_prices(instance: DpInstance) -> float:
    """What the layers of the search find with no bounds to guide them and no greedy plan."""
    problem, order = _problem(instance)
    num = len(order)
    behind = np.empty((num + 1, NUM_BEHIND))
    prices = Prices(np.zeros(num + 3), np.empty(num), behind, unit=0.0, rounding=1e-9)
    set_prices(problem, prices)
    taken, _, _ = _search_layers(problem, prices, 0.0, 100_000)
    return float(problem.value[taken].sum())


def test_dominance_alone_loses_nothing() -> None:
    for seed in range(3000):
        instance = small_instance(seed)
        found = plan(instance)
        if instance.new and not found.broken:
            assert value_without_prices(instance) == pytest.approx(found.value, abs=1e-9)


@pytest.mark.parametrize("what", ["room", "memory load", "memory room"])
def test_a_point_that_is_worse_in_one_thing_dominates_none(what: str) -> None:
    # Only the first and the last request fit together; up to the second, each alternative looks
    # better than the first in all but one thing.
    memory = what.startswith("memory")
    worker = DpWorker(0.0 if memory else 1 / 32, 1 / 16 if memory else 0.0, 1 / 64, math.inf)
    tpots_s, loads, blocks = {
        "room": ((1, 1 / 8, 1), (1 / 4, 1 / 8, 11 / 16), 3),
        "memory load": ((1 / 8, 1, 1 / 8), (3 / 8, 3 / 8, 3 / 8), 5),
        "memory room": ((1, 1 / 8, 1), (1 / 4, 1 / 4, 1 / 2), 3),
    }[what]
    tiers = tuple(DpTier(t, load * t, 0) for t, load in zip(tpots_s, loads, strict=True))
    works_s, num_blocks = (1 / 8, 0.0, 0.0), (2, 2, 1)
    new = tuple(DpPrompt(works_s[k], 1.0 + k, k, num_blocks[k]) for k in range(3))
    prefill_worker = worker if memory else None
    instance = DpInstance(0.0, tiers, worker, blocks, (), new, prefill_worker)
    assert [keeps(instance, pair) for pair in ((0, 1), (0, 2), (1, 2))] == [False, True, False]
    assert value_without_prices(instance) == 2.0


def test_a_point_of_more_load_at_a_slower_pace_does_not_dominate() -> None:
    # Three requests at 1/4 s leave more room than one at 1/8 s, whose pace shortens the steps,
    # until one more at 1/8 s comes.
    fast, slow = DpTier(1 / 8, 5 / 128, 0), DpTier(1 / 4, 1 / 32, 0)
    last = DpTier(1 / 8, 7 / 128, 0)
    worker = DpWorker(1 / 32, 0.0, 1 / 64, math.inf)
    new = (
        DpPrompt(1 / 8, 1.0, 0, 5, value=3.0),
        *(DpPrompt(0.0, 2.0, 1, 2) for _ in range(3)),
        DpPrompt(0.0, 3.0, 2, 0),
    )
    instance = DpInstance(0.0, (fast, slow, last), worker, 6, (), new)
    assert keeps(instance, (0, 4))
    assert keeps(instance, (1, 2, 3))
    assert not keeps(instance, (1, 2, 3, 4))
    assert value_without_prices(instance) == 4.0


def test_what_counts_as_feasible_is_what_preemptive_edf_achieves() -> None:
    num_kept = num_missed = 0
    for seed in range(400):
        instance = replace(small_instance(seed, max_new=4), num_free_blocks=10**6)
        prompts = (*instance.forced, *instance.new)
        # Without decodes that cannot be sustained, deadlines are all that can break.
        tiers = tuple(replace(tier, num_decodes=1, decode_s=1 / 256) for tier in instance.tiers)
        worker = DpWorker(1 / 64, 1 / 64, 1 / 256, instance.worker.step_cap_s)
        instance = replace(instance, tiers=tiers, worker=worker)
        kept = keeps(instance, range(len(instance.new)))
        assert kept == edf_keeps_deadlines(instance, prompts)
        num_kept += kept
        num_missed += not kept
    assert min(num_kept, num_missed) > 50


WORKER = DpWorker(fixed_s=1 / 64, floor_s=1 / 32, token_s=1 / 256, step_cap_s=1 / 8)
FAST, SLOW = DpTier(1 / 4, 1 / 64, 0), DpTier(1.0, 1 / 64, 0)


def instance_of(*new: DpPrompt, forced: tuple[DpPrompt, ...] = (), blocks: int = 100) -> DpInstance:
    return DpInstance(0.0, (FAST, SLOW), WORKER, blocks, forced, new)


def test_nothing_new() -> None:
    assert plan(instance_of()) == DpPlan((), 0.0, exact=True, num_states=0, upper_bound=0.0)


def test_one_new_request_that_fits_and_one_that_does_not() -> None:
    # Steps of 1/8 s lose 1/64 each, so 7/8 s of prefill are produced per second.
    assert plan(instance_of(DpPrompt(0.875, 1.0, 0, 1))).chosen == (0,)
    assert plan(instance_of(DpPrompt(0.88, 1.0, 0, 1))).chosen == ()


def test_weights_decide() -> None:
    large = DpPrompt(0.8, 1.0, 0, 1, value=3.0)
    small = [DpPrompt(0.4, 1.0, 0, 1, value=1.0)] * 2
    assert plan(instance_of(large, *small)).chosen == (0,)
    assert plan(instance_of(replace(large, value=1.5), *small)).chosen == (1, 2)


def test_a_prompt_gives_way_to_a_forced_one_that_is_due_later() -> None:
    new = DpPrompt(0.5, 1.0, 0, 1, value=100.0)
    forced = DpPrompt(1.5, 2.0, 0, 1)
    assert plan(instance_of(new)).chosen == (0,)
    assert plan(instance_of(new, forced=(forced,))).chosen == ()


def test_left_over_time_carries_over_and_earlier_decodes_take_theirs() -> None:
    # 7/8 s until the first deadline, 3/8 left over; then its decode takes 1/16 of the time.
    first, second_s = DpPrompt(0.5, 1.0, 0, 1), 0.375 + 0.875 - 1 / 16
    assert plan(instance_of(first, DpPrompt(second_s, 2.0, 0, 1))).chosen == (0, 1)
    assert len(plan(instance_of(first, DpPrompt(second_s + 0.001, 2.0, 0, 1))).chosen) == 1


def test_names_the_forced_prompt_that_breaks() -> None:
    on_time, late = DpPrompt(0.5, 1.0, 0, 1), DpPrompt(1.5, 1.5, 1, 1)
    broken = plan(instance_of(on_time, forced=(late, on_time)))
    assert broken.chosen == ()
    assert broken.broken == (Broken(Constraint.PREFILL_TIME, 0),)
    short = plan(instance_of(forced=(replace(late, due_at_s=9.0), on_time), blocks=1))
    assert short.broken == (Broken(Constraint.KV_BLOCKS, 0),)


def test_names_the_running_decodes_if_they_are_too_many() -> None:
    instance = replace(instance_of(), tiers=(replace(FAST, num_decodes=20), SLOW))
    assert plan(instance).broken == (Broken(Constraint.DECODE_RATE, None),)


def test_disaggregated_decodes_take_nothing_from_prefill() -> None:
    prompts = [DpPrompt(0.4375, 0.5 * (k + 1), 0, 1) for k in range(4)]
    assert len(plan(instance_of(*prompts)).chosen) < 4
    joint = replace(instance_of(*prompts), prefill_worker=WORKER)
    assert plan(joint).chosen == (0, 1, 2, 3)
    # One decode takes 1/16 of the decode worker's time, and 15/16 are left beside fixed costs.
    full = replace(joint, tiers=(replace(FAST, num_decodes=12), SLOW))
    assert len(plan(full).chosen) == 3


@pytest.mark.parametrize(
    "bad",
    [
        DpPrompt(-1.0, 1.0, 0, 1),
        DpPrompt(1.0, math.inf, 0, 1),
        DpPrompt(1.0, 1.0, 2, 1),
        DpPrompt(1.0, 1.0, 0, 1, value=0.0),
    ],
)
def test_rejects_numbers_out_of_range(bad: DpPrompt) -> None:
    with pytest.raises(ValueError, match="out of range"):
        plan(instance_of(bad))


def test_explains_what_binds_and_what_would_have_fitted() -> None:
    first = DpPrompt(0.5, 1.0, 0, 60, value=2.0)
    instance = instance_of(first, DpPrompt(0.5, 1.0, 0, 50))
    why = explain(instance, plan(instance), 1)
    assert why.binding == (Constraint.PREFILL_TIME, Constraint.KV_BLOCKS)
    # 3/8 s are left over at 1.0 s; 1/8 s more takes 1/8 / (7/8 - 1/16).
    assert why.fitting_due_at_s == pytest.approx(1.0 + 0.125 / 0.8125, abs=2e-6)
    assert why.num_fitting_blocks == 40


def test_explains_a_rate_that_cannot_be_sustained() -> None:
    busy = instance_of(DpPrompt(0.02, 1.0, 0, 1))
    # 13 of the 14 sixteenths that steps of 1/8 s leave are taken, and half of the last one.
    busy = replace(busy, tiers=(replace(FAST, num_decodes=13), replace(SLOW, num_decodes=2)))
    why = explain(busy, plan(busy), 0)
    assert why.binding == (Constraint.DECODE_RATE,)
    assert why.fitting_tpot_s == pytest.approx((1 / 64) / (1 / 32))


def test_relaxed_as_explained_a_refused_request_fits_and_hardly_less_does_not() -> None:
    num_seen = dict.fromkeys((Constraint.PREFILL_TIME, Constraint.DECODE_RATE), 0)
    for seed in range(1500):
        instance = small_instance(seed)
        found = plan(instance)
        for index in set(range(len(instance.new))) - set(found.chosen):
            if found.broken:
                continue
            why = explain(instance, found, index)
            assert why.binding
            prompt = instance.new[index]
            together = (*found.chosen, index)
            if why.binding == (Constraint.PREFILL_TIME,) and why.fitting_due_at_s < math.inf:
                num_seen[Constraint.PREFILL_TIME] += 1
                for later_s, expected in ((1e-9, True), (-2e-6, False)):
                    later = replace(prompt, due_at_s=why.fitting_due_at_s + later_s)
                    assert keeps(with_prompt(instance, index, later), together) is expected
            if why.binding == (Constraint.DECODE_RATE,) and why.fitting_tpot_s < math.inf:
                num_seen[Constraint.DECODE_RATE] += 1
                for ratio, expected in ((1 + 1e-9, True), (1 - 1e-6, False)):
                    tier = instance.tiers[prompt.tier]
                    own = replace(tier, tpot_s=why.fitting_tpot_s * ratio, num_decodes=0)
                    # Due after all others, so that its decode delays none of them.
                    last = DpPrompt(0.0, 100.0, len(instance.tiers), prompt.num_blocks)
                    relaxed = replace(
                        with_prompt(instance, index, last), tiers=(*instance.tiers, own)
                    )
                    assert keeps(relaxed, together) is expected
            if Constraint.KV_BLOCKS in why.binding:
                assert prompt.num_blocks > why.num_fitting_blocks
    assert min(num_seen.values()) > 50


def with_prompt(instance: DpInstance, index: int, prompt: DpPrompt) -> DpInstance:
    return replace(instance, new=(*instance.new[:index], prompt, *instance.new[index + 1 :]))


def medium_instance(seed: int, num_new: int = 64, num_tiers: int = 4) -> DpInstance:
    """Llama-3.1-8B on an H100: log-normal prompts, about twice what can be computed in time."""
    rng = np.random.default_rng(seed)
    token_s, step_cap_s = 19.1e-6, 0.025
    tiers = []
    for tpot_s in (0.03, 0.05, 0.1, 0.075, 0.04, 0.15)[:num_tiers]:
        decode_s = token_s + 6.7e-6 + 4.18e-8 * rng.uniform(500, 4000)
        load = rng.uniform(0.0, 1.0) / num_tiers
        tiers.append(DpTier(tpot_s, decode_s, int(load * tpot_s / decode_s)))
    horizon_s = num_new * 0.035

    def prompt(earliest: float) -> DpPrompt:
        num_tokens = int(np.clip(rng.lognormal(6.8, 1.0), 50, 16000))
        prefill_s = token_s * num_tokens + 4.7e-10 * num_tokens**2 + 0.46e-3
        due_at_s = horizon_s * rng.uniform(earliest, 1.0) + prefill_s * rng.uniform(1.5, 5.0)
        value = float(rng.choice([1.0, 2.0, 3.0, 5.0])) if seed % 2 else 1.0
        return DpPrompt(prefill_s, due_at_s, int(rng.integers(num_tiers)), num_tokens // 16, value)

    forced = tuple(prompt(0.3) for _ in range(8))
    new = tuple(prompt(0.05) for _ in range(num_new))
    num_blocks = sum(p.num_blocks for p in new)
    free = int(num_blocks * rng.uniform(0.4, 0.7)) if seed % 4 > 1 else 10 * num_blocks
    worker = DpWorker(2.55e-3, 6.57e-3, token_s, step_cap_s)
    return DpInstance(0.0, tuple(tiers), worker, free, forced, new)


def test_the_beam_loses_little_and_says_when_it_may_have() -> None:
    losses, num_doubtful = [], 0
    for seed in range(48):
        instance = medium_instance(seed)
        best, narrow = plan(instance, max_points=100_000), plan(instance, max_points=1)
        if best.broken:
            continue
        assert best.exact
        assert narrow.value <= best.value <= narrow.upper_bound + 1e-6
        assert keeps(instance, narrow.chosen)
        if narrow.exact:
            assert narrow.value == best.value
        num_doubtful += not narrow.exact
        losses.append(1.0 - narrow.value / best.value)
    assert num_doubtful > 5
    assert len(losses) > 24
    assert np.mean(losses) < 0.005
    assert max(losses) < 0.03
