"""The problem of the multi-SLO dynamic program as arrays, and what one choice comes to.

What is solved is told in docs/decisions/006; `headway.core.planner.dp` is the way in, and
`headway.core.planner.dp_search` chooses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headway.core.batch_state import Floats
from headway.core.kernel import kernel

Bools = NDArray[np.bool_]

# In place of the position of a prompt: none, and the requests that decode now.
NOWHERE = -1
RUNNING = -2

# Columns of a point: what one way of choosing among the prompts so far has led to.
VALUE = 0
LEFT_S = 1  # prefill seconds produced so far and not used
BLOCKS = 2  # KV blocks still free
LOAD = 3  # share of the time that decodes take, counted by the compute roof, ...
MEMORY_LOAD = 4  # ... by the memory roof
TPOT_S = 5  # tightest among the decodes
RATE = 6  # prefill seconds produced per second
ROOM = 7  # share of the time left for more decodes, by the compute roof, ...
MEMORY_ROOM = 8  # ... by the memory roof
BOUND = 9  # no way to go on leads to more value
NUM_COLUMNS = 10

# A prompt that must wait longer than this counts as one that never fits.
_MAX_WAIT_S = 3600.0


class Problem(NamedTuple):
    """One instance, prompts in the order of their deadlines.

    Attributes:
        gap_s: from the deadline before (the first: from now) to the prompt's own.
        work_s: prefill seconds the prompt needs.
        tier: index into the tiers.
        num_blocks: KV blocks it takes from the free ones.
        value: of choosing it; 0 for forced prompts.
        forced: whether it must be chosen.
        tpot_s: of each tier.
        load: share of the time that one decode of each tier takes, by the compute roof.
        memory_load: the same by the memory roof.
        shared: whether the decodes run on the worker that prefills.
        fixed_s: per step of the worker that prefills.
        step_cap_s: longest step of the worker that prefills.
        decode_fixed_s: per step of the worker that decodes.
        floor_s: shortest step of the worker that decodes.
        running_load: of the requests that decode now, by the compute roof.
        running_memory_load: by the memory roof.
        running_tpot_s: tightest among them, infinite if there are none.
        num_free_blocks: on the worker that decodes.
    """

    gap_s: Floats
    work_s: Floats
    tier: NDArray[np.int64]
    num_blocks: Floats
    value: Floats
    forced: Bools
    tpot_s: Floats
    load: Floats
    memory_load: Floats
    shared: bool
    fixed_s: float
    step_cap_s: float
    decode_fixed_s: float
    floor_s: float
    running_load: float
    running_memory_load: float
    running_tpot_s: float
    num_free_blocks: float


@kernel
def assign(target: NDArray[Any], source: NDArray[Any]) -> None:
    # numba compiles a loop in a fraction of the time it takes for target[:] = source.
    for k in range(len(source)):
        target[k] = source[k]


@kernel
def _set_pace(problem: Problem, point: Floats) -> None:
    """Rate and rooms from the loads and the tightest TPOT."""
    tpot_s = point[TPOT_S]
    point[MEMORY_ROOM] = 1.0 - problem.floor_s / tpot_s - point[MEMORY_LOAD]
    if problem.shared:
        step_s = min(problem.step_cap_s, tpot_s)
        point[RATE] = point[ROOM] = 1.0 - problem.fixed_s / step_s - point[LOAD]
    else:
        point[RATE] = 1.0 - problem.fixed_s / problem.step_cap_s
        point[ROOM] = 1.0 - problem.decode_fixed_s / tpot_s - point[LOAD]


@kernel
def put_start(problem: Problem, point: Floats) -> None:
    """Make `point` the one before the first prompt."""
    point[:] = 0.0
    point[BLOCKS] = problem.num_free_blocks
    point[LOAD] = problem.running_load
    point[MEMORY_LOAD] = problem.running_memory_load
    point[TPOT_S] = problem.running_tpot_s
    _set_pace(problem, point)


@kernel
def _add_decode(problem: Problem, tier: int, point: Floats) -> None:
    """One more request of this tier decodes from now on."""
    point[LOAD] += problem.load[tier]
    point[MEMORY_LOAD] += problem.memory_load[tier]
    if problem.tpot_s[tier] < point[TPOT_S]:
        point[TPOT_S] = problem.tpot_s[tier]
        _set_pace(problem, point)
    else:
        point[ROOM] -= problem.load[tier]
        point[MEMORY_ROOM] -= problem.memory_load[tier]
        if problem.shared:
            point[RATE] = point[ROOM]


@kernel
def take(problem: Problem, i: int, point: Floats) -> None:
    """Choose prompt `i` at its deadline."""
    point[VALUE] += problem.value[i]
    point[LEFT_S] -= problem.work_s[i]
    point[BLOCKS] -= problem.num_blocks[i]
    _add_decode(problem, problem.tier[i], point)


@kernel
def holds(point: Floats) -> bool:
    return bool(
        point[LEFT_S] >= 0.0
        and point[ROOM] >= 0.0
        and point[MEMORY_ROOM] >= 0.0
        and point[BLOCKS] >= 0.0
    )


@kernel
def walk(problem: Problem, taken: Bools) -> tuple[int, int, int]:
    """The prompt at which prefill time, decode rate and KV blocks first break, each by itself.

    `taken` says which prompts are chosen. NOWHERE stands for a constraint that holds, RUNNING
    for a decode rate that the requests decoding now break already.
    """
    late = unsustained = short = NOWHERE
    point = np.empty(NUM_COLUMNS)
    put_start(problem, point)
    if not holds(point):
        unsustained = RUNNING
    for i in range(len(taken)):
        point[LEFT_S] += max(0.0, point[RATE]) * problem.gap_s[i]
        if taken[i]:
            take(problem, i, point)
            if min(point[ROOM], point[MEMORY_ROOM]) < 0.0 and unsustained == NOWHERE:
                unsustained = i
            if point[LEFT_S] < 0.0 and late == NOWHERE:
                late = i
            if point[BLOCKS] < 0.0 and short == NOWHERE:
                short = i
    return late, unsustained, short


@kernel
def goes_on(problem: Problem, first: int, start: Floats, taken: Bools, point: Floats) -> bool:
    """Whether the prompts from `first` on that are `taken` fit behind `start`.

    `point` is overwritten.
    """
    assign(point, start)
    for i in range(first, len(taken)):
        point[LEFT_S] += point[RATE] * problem.gap_s[i]
        if taken[i]:
            take(problem, i, point)
            if not holds(point):
                return False
    return True


@kernel
def fits(problem: Problem, taken: Bools) -> bool:
    """Whether the prompts that are `taken` keep all constraints."""
    start = np.empty(NUM_COLUMNS)
    put_start(problem, start)
    return holds(start) and goes_on(problem, 0, start, taken, np.empty(NUM_COLUMNS))


@kernel
def _late_with(problem: Problem, others: Bools, work_s: float, tier: int, due_s: float) -> bool:
    """Whether a prompt due in `due_s` makes itself or one of the `others` late."""
    point = np.empty(NUM_COLUMNS)
    put_start(problem, point)
    passed_s, at_s = 0.0, 0.0
    waiting = True
    for i in range(len(others) + 1):
        last = i == len(others)
        at_s += 0.0 if last else problem.gap_s[i]
        if waiting and (last or due_s < at_s):
            point[LEFT_S] += max(0.0, point[RATE]) * (due_s - passed_s) - work_s
            if point[LEFT_S] < 0.0:
                return True
            _add_decode(problem, tier, point)
            passed_s, waiting = due_s, False
        if not last:
            point[LEFT_S] += max(0.0, point[RATE]) * (at_s - passed_s)
            passed_s = at_s
            if others[i]:
                take(problem, i, point)
                if point[LEFT_S] < 0.0:
                    return True
    return False


@kernel
def earliest_due_s(
    problem: Problem, others: Bools, work_s: float, tier: int, low_s: float
) -> float:
    """The earliest deadline from `low_s` on, to a microsecond, at which a prompt makes none late.

    Moving its deadline back moves its work and its decode behind more of the others, so what
    is possible at one deadline is possible at all later ones. Infinite if none is possible.
    """
    if not _late_with(problem, others, work_s, tier, low_s):
        return low_s
    end_s = max(low_s, problem.gap_s.sum())
    high_s = end_s
    while _late_with(problem, others, work_s, tier, high_s):
        if high_s > end_s + _MAX_WAIT_S:
            return float(np.inf)
        high_s = end_s + 2.0 * (high_s - end_s) + 1.0
    while high_s - low_s > 1e-6:
        middle_s = (low_s + high_s) / 2.0
        if _late_with(problem, others, work_s, tier, middle_s):
            low_s = middle_s
        else:
            high_s = middle_s
    return float(high_s)


@kernel
def tightest_tpot_s(
    problem: Problem, others: Bools, decode_s: float, memory_decode_s: float
) -> float:
    """The tightest TPOT at which one more request can decode beside the `others`.

    A token of it adds `decode_s` to a step that computes, `memory_decode_s` to one bound by
    memory. Infinite if there is none.
    """
    tpot_s = problem.running_tpot_s
    load, memory_load = problem.running_load, problem.running_memory_load
    for i in range(len(others)):
        if others[i]:
            tier = problem.tier[i]
            tpot_s = min(tpot_s, problem.tpot_s[tier])
            load += problem.load[tier]
            memory_load += problem.memory_load[tier]
    longest_s = min(tpot_s, problem.step_cap_s) if problem.shared else tpot_s
    pace_s = _pace_within(1.0 - load, problem.decode_fixed_s, decode_s, longest_s)
    memory_pace_s = _pace_within(1.0 - memory_load, problem.floor_s, memory_decode_s, tpot_s)
    return float(max(pace_s, memory_pace_s))


@kernel
def _pace_within(room: float, step_s: float, token_s: float, longest_s: float) -> float:
    """Least t with step_s / min(t, longest_s) + token_s / t <= room; infinite if there is none."""
    if room > 0.0 and (step_s + token_s) / room <= longest_s:
        return (step_s + token_s) / room
    room -= step_s / longest_s
    if room <= 0.0:
        return float(np.inf) if token_s > 0.0 or room < 0.0 else longest_s
    return max(longest_s, token_s / room)
