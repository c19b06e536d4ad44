"""The search of the multi-SLO dynamic program.

Why it is exact is told in docs/decisions/006.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headway.core.batch_state import Floats
from headway.core.kernel import kernel
from headway.core.planner.dp_kernel import (
    BLOCKS,
    BOUND,
    LEFT_S,
    LOAD,
    MEMORY_LOAD,
    MEMORY_ROOM,
    NUM_COLUMNS,
    RATE,
    ROOM,
    VALUE,
    Bools,
    Problem,
    assign,
    goes_on,
    holds,
    put_start,
    take,
)
from headway.core.planner.dp_prices import (
    NUM_BEHIND,
    NUM_BLOCKS,
    ROUNDING,
    WORK_S,
    Prices,
    add_fitting,
    bound_of,
    first_prices,
    improves,
    lower_bound,
)

Words = NDArray[np.uint64]

# Sums of the same shares of a worker's time in another order differ by rounding.
_SAME_LOAD = 1e-12

# Rounds of lowering the bound.
_NUM_ROUNDS = 2

# However many prompts share `max_points`.
_MIN_WIDTH = 16


class Layer(NamedTuple):
    """Points, and for each a bit per prompt that says whether it is chosen."""

    points: Floats
    chosen: Words


@kernel
def _dominates(points: Floats, one: int, other: int) -> bool:
    """Whether whatever `other` can go on to, `one` can too, with at least its value."""
    return bool(
        points[one, LEFT_S] >= points[other, LEFT_S]
        and points[one, VALUE] >= points[other, VALUE]
        and points[one, LOAD] <= points[other, LOAD] + _SAME_LOAD
        and points[one, BLOCKS] >= points[other, BLOCKS]
        and points[one, ROOM] >= points[other, ROOM] - _SAME_LOAD
        and points[one, MEMORY_LOAD] <= points[other, MEMORY_LOAD] + _SAME_LOAD
        and points[one, MEMORY_ROOM] >= points[other, MEMORY_ROOM] - _SAME_LOAD
    )


@kernel
def _copy(layer: Layer, source: int, target: int) -> None:
    for column in range(NUM_COLUMNS):
        layer.points[target, column] = layer.points[source, column]
    for word in range(layer.chosen.shape[1]):
        layer.chosen[target, word] = layer.chosen[source, word]


@kernel
def _settle(layer: Layer, end: int) -> int:
    """Add the point at row `end` to the Pareto set in the rows before it; their new number.

    The row behind `end` is overwritten.
    """
    row = 0
    while row < end:
        if _dominates(layer.points, row, end):
            # What dominates one point is likely to dominate the next: look at it earlier.
            ahead = row // 2
            _copy(layer, row, end)
            _copy(layer, ahead, row)
            _copy(layer, end, ahead)
            return end
        if _dominates(layer.points, end, row):
            end -= 1
            _copy(layer, end, row)
            _copy(layer, end + 1, end)
        else:
            row += 1
    return end + 1


@kernel
def _narrow(layer: Layer, end: int, width: int) -> float:
    """Move the `width` points of the largest bounds to the front; the largest bound left out."""
    bounds = layer.points[:end, BOUND].copy()
    ascending = np.argsort(bounds)
    keep = np.zeros(end, np.bool_)
    for rank in range(end - width, end):
        keep[ascending[rank]] = True
    kept = 0
    for row in range(end):
        if keep[row]:
            _copy(layer, row, kept)
            kept += 1
    return float(bounds[ascending[end - width - 1]])


@kernel
def _extend(
    problem: Problem,
    prices: Prices,
    i: int,
    layer: Layer,
    num_points: int,
    following: Layer,
    best_value: float,
    best_words: Words,
) -> tuple[int, float]:
    """Fill `following` with what the points of `layer` become at the deadline of prompt `i`.

    Returns the number of its points, and the value of the best plan known; `best_words` is
    overwritten when that plan is among them.
    """
    end = 0
    scratch = np.empty(NUM_COLUMNS)
    behind = prices.behind[i + 1]
    for row in range(num_points):
        for accept in range(1 if problem.forced[i] else 0, 2):
            point = following.points[end]
            assign(point, layer.points[row])
            point[LEFT_S] += point[RATE] * problem.gap_s[i]
            if accept:
                take(problem, i, point)
                if not holds(point):
                    continue
            point[BOUND] = bound_of(point, prices, i + 1)
            if not improves(point[BOUND], best_value, prices):
                continue
            if accept and not goes_on(problem, i + 1, point, problem.forced, scratch):
                continue
            # More than all prompts behind could use is worth nothing.
            point[LEFT_S] = min(point[LEFT_S], behind[WORK_S] * (1.0 + ROUNDING))
            point[BLOCKS] = min(point[BLOCKS], behind[NUM_BLOCKS])
            assign(following.chosen[end], layer.chosen[row])
            if accept:
                following.chosen[end, i // 64] |= np.uint64(1) << np.uint64(i % 64)
            if point[VALUE] > best_value + prices.rounding:
                best_value = point[VALUE]
                assign(best_words, following.chosen[end])
            end = _settle(following, end)
    return end, best_value


@kernel
def search(problem: Problem, unit: float, max_points: int) -> tuple[Bools, bool, float, int]:
    """Choose among the new prompts. The forced ones must fit.

    Args:
        problem: what to choose from.
        unit: all values are multiples of it; 0 if there is none.
        max_points: the beam; most points kept, summed over the prompts.

    Returns:
        Which prompts are chosen, whether no plan has more value, a value that none exceeds,
        points kept.
    """
    num_prompts = len(problem.work_s)
    prices = Prices(
        np.empty(num_prompts + 3),
        np.empty(num_prompts),
        np.empty((num_prompts + 1, NUM_BEHIND)),
        unit,
        ROUNDING * problem.value.sum(),
    )
    scale = first_prices(problem, prices)
    best = problem.forced.copy()
    best_value = add_fitting(problem, prices, best)
    highest = np.inf
    for _ in range(_NUM_ROUNDS):
        highest = lower_bound(problem, prices, scale, best_value)
        if not improves(highest, best_value, prices):
            return best, True, best_value, 0
        other = problem.forced.copy()
        other_value = add_fitting(problem, prices, other)
        if other_value > best_value:
            best, best_value = other, other_value
    other, dropped, num_kept = _search_layers(problem, prices, best_value, max_points)
    if add_fitting(problem, prices, other) > best_value:
        best = other
    best_value = problem.value[best].sum()
    highest = min(highest, dropped)
    return best, not improves(highest, best_value, prices), highest, num_kept


@kernel
def _search_layers(
    problem: Problem, prices: Prices, best_value: float, max_points: int
) -> tuple[Bools, float, int]:
    """The forced prompts, or a choice better than `best_value`; highest bound dropped; points."""
    num_prompts = len(problem.work_s)
    width = max(max_points // num_prompts, _MIN_WIDTH)
    # All points of a layer can stay and double, and `_settle` uses one row more.
    shape = (2 * width + 2, (num_prompts + 63) // 64)
    layer = Layer(np.empty((shape[0], NUM_COLUMNS)), np.zeros(shape, np.uint64))
    following = Layer(np.empty((shape[0], NUM_COLUMNS)), np.zeros(shape, np.uint64))
    best_words = np.zeros(shape[1], np.uint64)
    put_start(problem, layer.points[0])
    num_points, num_kept, dropped = 1, 0, -np.inf
    for i in range(num_prompts):
        end, best_value = _extend(
            problem, prices, i, layer, num_points, following, best_value, best_words
        )
        if end > width:
            dropped = max(dropped, _narrow(following, end, width))
            end = width
        layer, following, num_points = following, layer, end
        num_kept += end
    taken = problem.forced.copy()
    for i in range(num_prompts):
        bit = (best_words[i // 64] >> np.uint64(i % 64)) & np.uint64(1)
        taken[i] = taken[i] or bit == np.uint64(1)
    return taken, dropped, num_kept
