"""Prices on the constraints of the multi-SLO dynamic program, and the bounds they give.

Why they bound what a choice can be worth is told in docs/decisions/006.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headway.core.batch_state import Floats
from headway.core.kernel import kernel
from headway.core.planner.dp_kernel import (
    BLOCKS,
    LEFT_S,
    MEMORY_ROOM,
    NUM_COLUMNS,
    RATE,
    ROOM,
    VALUE,
    Bools,
    Problem,
    assign,
    goes_on,
    put_start,
)

# Columns of `Prices.behind`.
_LEFT_PRICE = 0
_RATE_PRICE = 1
_GAIN = 2
WORK_S = 3
NUM_BLOCKS = 4
NUM_BEHIND = 5

# Sums of the same numbers in another order differ by rounding. Values closer than this share of
# all value count as equal.
ROUNDING = 1e-9

# Of lowering the bound, per call.
_NUM_UPDATES = 40


class Prices(NamedTuple):
    """Lagrange multipliers of the linear constraints, and what follows from them.

    Attributes:
        each: for one unit of each constraint, in the order of `_spare`.
        charges: what each prompt takes, at these prices.
        behind: for a point that stands before each prompt (the last row: behind all), the price
            of its left-over and of its rate, the most that the prompts behind it can gain, and
            their prefill seconds and KV blocks.
        unit: all values are multiples of it; 0 if there is none.
        rounding: values closer than this count as equal.
    """

    each: Floats
    charges: Floats
    behind: Floats
    unit: float
    rounding: float


@kernel
def _spare(problem: Problem, taken: Bools, spare: Floats) -> None:
    """What the linear constraints have to spare with the prompts that are `taken`.

    Fills `spare`: prefill seconds at each deadline, then room by the compute and by the memory
    roof, then KV blocks. What a tighter TPOT costs is left out, so the truth is never more.
    """
    num_prompts = len(taken)
    point = np.empty(NUM_COLUMNS)
    put_start(problem, point)
    for i in range(num_prompts):
        point[LEFT_S] += point[RATE] * problem.gap_s[i]
        if taken[i]:
            load = problem.load[problem.tier[i]]
            point[LEFT_S] -= problem.work_s[i]
            point[BLOCKS] -= problem.num_blocks[i]
            point[ROOM] -= load
            point[MEMORY_ROOM] -= problem.memory_load[problem.tier[i]]
            if problem.shared:
                point[RATE] -= load
        spare[i] = point[LEFT_S]
    spare[num_prompts] = point[ROOM]
    spare[num_prompts + 1] = point[MEMORY_ROOM]
    spare[num_prompts + 2] = point[BLOCKS]


@kernel
def set_prices(problem: Problem, prices: Prices) -> None:
    """Charges and `behind` from the prices of the constraints."""
    num_prompts = len(prices.charges)
    each, behind = prices.each, prices.behind
    behind[num_prompts] = 0.0
    left_price = rate_price = gain = 0.0
    for i in range(num_prompts - 1, -1, -1):
        left_price += each[i]
        tier = problem.tier[i]
        load_price = each[num_prompts] + (rate_price if problem.shared else 0.0)
        prices.charges[i] = (
            problem.work_s[i] * left_price
            + problem.load[tier] * load_price
            + problem.memory_load[tier] * each[num_prompts + 1]
            + problem.num_blocks[i] * each[num_prompts + 2]
        )
        own_gain = problem.value[i] - prices.charges[i]
        gain += own_gain if problem.forced[i] else max(0.0, own_gain)
        rate_price += left_price * problem.gap_s[i]
        behind[i, _LEFT_PRICE] = left_price
        behind[i, _RATE_PRICE] = rate_price
        behind[i, _GAIN] = gain
        behind[i, WORK_S] = behind[i + 1, WORK_S] + problem.work_s[i]
        behind[i, NUM_BLOCKS] = behind[i + 1, NUM_BLOCKS] + problem.num_blocks[i]


@kernel
def bound_of(point: Floats, prices: Prices, i: int) -> float:
    """Value that no way to go on from a point before prompt `i` exceeds."""
    bound = (
        point[VALUE]
        + point[LEFT_S] * prices.behind[i, _LEFT_PRICE]
        + point[RATE] * prices.behind[i, _RATE_PRICE]
        + point[ROOM] * prices.each[-3]
        + point[MEMORY_ROOM] * prices.each[-2]
        + point[BLOCKS] * prices.each[-1]
        + prices.behind[i, _GAIN]
    )
    return float(bound)


@kernel
def improves(bound: float, best_value: float, prices: Prices) -> bool:
    """Whether a plan under this bound can be better than the best one known."""
    if prices.unit > 0.0:
        bound = prices.unit * np.floor((bound + prices.rounding) / prices.unit)
    return bound > best_value + prices.rounding


@kernel
def add_fitting(problem: Problem, prices: Prices, taken: Bools) -> float:
    """Take what fits beside `taken`, the most value per charge first; the value of all taken."""
    point, start = np.empty(NUM_COLUMNS), np.empty(NUM_COLUMNS)
    put_start(problem, start)
    density = np.empty(len(taken))
    for i in range(len(taken)):
        density[i] = np.inf if taken[i] else prices.charges[i] / problem.value[i]
    for i in np.argsort(density):
        if not taken[i]:
            taken[i] = True
            taken[i] = goes_on(problem, 0, start, taken, point)
    return float(problem.value[taken].sum())


@kernel
def first_prices(problem: Problem, prices: Prices) -> Floats:
    """Put a price on the scarcest constraint only; returns what all new prompts take of each."""
    scale, spare = np.empty(len(prices.each)), np.empty(len(prices.each))
    _spare(problem, problem.forced, scale)
    _spare(problem, np.ones(len(problem.forced), np.bool_), spare)
    scale -= spare
    prices.each[:] = 0.0
    scarcest, shortage = 0, 0.0
    for k in range(len(spare)):
        if scale[k] > 0.0 and -spare[k] > shortage * scale[k]:
            scarcest, shortage = k, -spare[k] / scale[k]
    if shortage > 0.0:
        prices.each[scarcest] = shortage * problem.value.sum() / scale[scarcest]
    set_prices(problem, prices)
    return scale


@kernel
def lower_bound(problem: Problem, prices: Prices, scale: Floats, best_value: float) -> float:
    """Look for prices with a low bound at the start; returns it.

    Subgradient method with the step length of Polyak, each constraint in units of `scale`.
    """
    start = np.empty(NUM_COLUMNS)
    put_start(problem, start)
    taken = problem.forced.copy()
    spare, best_prices = np.empty(len(scale)), prices.each.copy()
    lowest = np.inf
    for _ in range(_NUM_UPDATES):
        set_prices(problem, prices)
        bound = bound_of(start, prices, 0)
        if bound < lowest:
            lowest = bound
            assign(best_prices, prices.each)
            if not improves(lowest, best_value, prices):
                break
        for i in range(len(taken)):
            taken[i] = problem.forced[i] or problem.value[i] > prices.charges[i]
        _spare(problem, taken, spare)
        norm = 0.0
        for k in range(len(spare)):
            if scale[k] > 0.0 and (prices.each[k] > 0.0 or spare[k] < 0.0):
                spare[k] /= scale[k]
                norm += spare[k] ** 2
            else:
                spare[k] = 0.0
        if norm == 0.0:
            break
        for k in range(len(spare)):
            if spare[k] != 0.0:
                step = (bound - best_value) / norm * spare[k] / scale[k]
                prices.each[k] = max(0.0, prices.each[k] - step)
    assign(prices.each, best_prices)
    set_prices(problem, prices)
    return lowest
