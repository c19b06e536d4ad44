"""The problem of headway.core.planner.dp, solved slowly: by its definition, in plain Python."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from fractions import Fraction
from itertools import combinations

from headway.core.planner.dp import DpInstance, DpPrompt


def rate_and_room(instance: DpInstance, added: Counter[int]) -> tuple[float, float]:
    """Prefill seconds per second beside `added` decodes per tier; the least room on any roof."""
    counts = [tier.num_decodes + added[index] for index, tier in enumerate(instance.tiers)]
    decodes = list(zip(instance.tiers, counts, strict=True))
    worker = instance.worker
    tightest_s = min((tier.tpot_s for tier, count in decodes if count), default=math.inf)
    load = sum(count * tier.decode_s / tier.tpot_s for tier, count in decodes)
    memory_load = sum(
        count * (tier.decode_s - worker.token_s) / tier.tpot_s for tier, count in decodes
    )
    memory_room = 1 - worker.floor_s / tightest_s - memory_load
    if instance.prefill_worker is None:
        rate = 1 - worker.fixed_s / min(tightest_s, worker.step_cap_s) - load
        return rate, min(rate, memory_room)
    rate = 1 - instance.prefill_worker.fixed_s / instance.prefill_worker.step_cap_s
    return rate, min(1 - worker.fixed_s / tightest_s - load, memory_room)


def keeps(instance: DpInstance, chosen: Collection[int]) -> bool:
    """Whether the forced prompts and the `chosen` new ones keep every constraint."""
    prompts = [*instance.forced, *(instance.new[index] for index in chosen)]
    prompts.sort(key=lambda prompt: prompt.due_at_s)
    decodes: Counter[int] = Counter()
    rate, room = rate_and_room(instance, decodes)
    if room < 0 or sum(prompt.num_blocks for prompt in prompts) > instance.num_free_blocks:
        return False
    left_s, at_s = 0.0, instance.now_at_s
    for prompt in prompts:
        left_s += rate * (max(at_s, prompt.due_at_s) - at_s) - prompt.prefill_s
        at_s = max(at_s, prompt.due_at_s)
        decodes[prompt.tier] += 1
        rate, room = rate_and_room(instance, decodes)
        if left_s < 0 or room < 0:
            return False
    return True


def edf_keeps_deadlines(instance: DpInstance, prompts: Collection[DpPrompt]) -> bool:
    """Run preemptive EDF, in exact numbers; every prompt's decode begins at its deadline."""
    waiting = sorted(prompts, key=lambda prompt: prompt.due_at_s)
    starts = [(prompt.due_at_s, prompt.tier) for prompt in waiting]
    at_s = Fraction(instance.now_at_s)
    work_left_s = [Fraction(prompt.prefill_s) for prompt in waiting]
    while waiting:
        decodes = Counter(tier for due_at_s, tier in starts if due_at_s <= at_s)
        rate = Fraction(rate_and_room(instance, decodes)[0])
        next_start_s = min((due_at_s for due_at_s, _ in starts if due_at_s > at_s), default=None)
        if work_left_s[0] == 0:
            if at_s > max(waiting[0].due_at_s, instance.now_at_s):
                return False
            waiting, work_left_s = waiting[1:], work_left_s[1:]
        elif next_start_s is None:
            return False
        else:
            span_s = Fraction(next_start_s) - at_s
            if rate > 0:
                span_s = min(span_s, work_left_s[0] / rate)
            work_left_s[0] -= max(Fraction(0), rate) * span_s
            at_s += span_s
    return True


def brute_force_value(instance: DpInstance) -> float:
    """The value of the best choice, found by trying all of them; the forced ones must fit."""
    indices = range(len(instance.new))
    return max(
        sum(instance.new[index].value for index in chosen)
        for size in range(len(instance.new) + 1)
        for chosen in combinations(indices, size)
        if keeps(instance, chosen)
    )


def best_value_by_counts(instance: DpInstance) -> float:
    """The same by dynamic programming over the number of chosen requests per tier.

    One Pareto set of (value, left-over, free blocks) per vector of counts: no beam, no bounds,
    nothing compared across counts.
    """
    prompts = [(prompt, True) for prompt in instance.forced]
    prompts += [(prompt, False) for prompt in instance.new]
    prompts.sort(key=lambda entry: entry[0].due_at_s)
    num_tiers = len(instance.tiers)
    states = {(0,) * num_tiers: [(0.0, 0.0, instance.num_free_blocks)]}
    at_s = instance.now_at_s
    for prompt, forced in prompts:
        span_s = max(0.0, prompt.due_at_s - at_s)
        at_s += span_s
        following: dict[tuple[int, ...], list[tuple[float, float, int]]] = {}
        for counts, points in states.items():
            rate, _ = rate_and_room(instance, Counter(dict(enumerate(counts))))
            more = tuple(count + (tier == prompt.tier) for tier, count in enumerate(counts))
            fits = rate_and_room(instance, Counter(dict(enumerate(more))))[1] >= 0
            for value, before_s, blocks in points:
                left_s = before_s + rate * span_s
                if not forced:
                    following.setdefault(counts, []).append((value, left_s, blocks))
                left_s, blocks_left = left_s - prompt.prefill_s, blocks - prompt.num_blocks
                if fits and left_s >= 0 and blocks_left >= 0:
                    gain = 0.0 if forced else prompt.value
                    following.setdefault(more, []).append((value + gain, left_s, blocks_left))
        states = {counts: _pareto(points) for counts, points in following.items()}
    return max(value for points in states.values() for value, _, _ in points)


def _pareto(points: list[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    kept: list[tuple[float, float, int]] = []
    for point in sorted(set(points), reverse=True):
        if not any(other[1] >= point[1] and other[2] >= point[2] for other in kept):
            kept.append(point)
    return kept
