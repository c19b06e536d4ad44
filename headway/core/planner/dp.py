"""The multi-SLO dynamic program: which of the waiting requests can be promised together.

The problem in formulas, and why the search is exact: docs/decisions/006.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.core.planner.dp_kernel import (
    NOWHERE,
    RUNNING,
    Problem,
    earliest_due_s,
    fits,
    tightest_tpot_s,
    walk,
)
from headway.core.planner.dp_search import search
from headway.core.planner.interface import Constraint

# Measured on 64 new requests in four tiers: 0.02 % of the value lost, see docs/decisions/006.
DEFAULT_MAX_POINTS = 4000

_CONSTRAINTS = (Constraint.PREFILL_TIME, Constraint.DECODE_RATE, Constraint.KV_BLOCKS)


@dataclass(frozen=True, slots=True)
class DpTier:
    """Requests that decode at one pace.

    Attributes:
        tpot_s: each of them yields a token this often.
        decode_s: what one of their tokens adds to a step that computes: a + b + c * context,
            in the terms of `headway.core.perf_model`. Not less than the worker's `token_s`.
        num_decodes: how many of them decode now.
    """

    tpot_s: float
    decode_s: float
    num_decodes: int


@dataclass(frozen=True, slots=True)
class DpWorker:
    """Terms of the roofline of one worker, see `headway.core.perf_model`.

    Attributes:
        fixed_s: per step that computes; less than `step_cap_s`.
        floor_s: no step is shorter.
        token_s: per token.
        step_cap_s: longest step while prompts wait; may be infinite.
    """

    fixed_s: float
    floor_s: float
    token_s: float
    step_cap_s: float


@dataclass(frozen=True, slots=True)
class DpPrompt:
    """A prompt that waits or is being computed.

    Attributes:
        prefill_s: work left: token, attention and per-chunk terms, without fixed costs of steps.
        due_at_s: when it must be computed, the tail of its KV transfer subtracted.
        tier: index into the tiers of the instance.
        num_blocks: what it takes from the free KV blocks until its end.
        value: of keeping its promise; counts for new prompts only.
    """

    prefill_s: float
    due_at_s: float
    tier: int
    num_blocks: int
    value: float = 1.0


@dataclass(frozen=True, slots=True)
class DpInstance:
    """What is to be planned.

    Attributes:
        now_at_s: the instant of planning.
        tiers: of all requests.
        worker: decodes, and prefills too if there is no `prefill_worker`.
        num_free_blocks: KV blocks of `worker` that nobody holds or was promised.
        forced: prompts of requests that are admitted already.
        new: prompts of requests to choose from.
        prefill_worker: computes the prompts. Its KV blocks are not planned: prompts run there
            one after the other and leave.
    """

    now_at_s: float
    tiers: tuple[DpTier, ...]
    worker: DpWorker
    num_free_blocks: int
    forced: tuple[DpPrompt, ...]
    new: tuple[DpPrompt, ...]
    prefill_worker: DpWorker | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """A constraint that the admitted requests break without any new one.

    Attributes:
        constraint: which.
        forced: the first forced prompt, by deadline, with which it breaks; None if it is broken
            by the requests that decode now.
    """

    constraint: Constraint
    forced: int | None


@dataclass(frozen=True, slots=True)
class DpPlan:
    """Which new requests to promise.

    Attributes:
        chosen: indices into `DpInstance.new`, ascending.
        value: theirs together.
        exact: whether no other choice has more value.
        num_states: points the search kept; 0 if it was not needed.
        upper_bound: no choice has more value than this.
        broken: constraints that break without any new request; nothing is chosen then.
    """

    chosen: tuple[int, ...]
    value: float
    exact: bool
    num_states: int
    upper_bound: float
    broken: tuple[Broken, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a new request was not chosen, given everything that was.

    Attributes:
        binding: constraints that it breaks, each judged as if the others did not exist.
        fitting_due_at_s: the earliest prefill deadline that could be met, decode rate and KV
            blocks set aside; infinite if there is none.
        fitting_tpot_s: the tightest TPOT that could be sustained, the others set aside;
            infinite if there is none.
        num_fitting_blocks: KV blocks it could have had.
    """

    binding: tuple[Constraint, ...]
    fitting_due_at_s: float
    fitting_tpot_s: float
    num_fitting_blocks: int


def plan(instance: DpInstance, max_points: int = DEFAULT_MAX_POINTS) -> DpPlan:
    """Choose the new requests of the largest value that fit with all forced ones.

    Args:
        instance: what to plan.
        max_points: bounds the search; beyond it the best plan found is returned, and `exact`
            says whether it is known to be the best there is.

    Raises:
        ValueError: a number is out of its range.
    """
    problem, order = _problem(instance)
    broken = _broken(problem, order)
    if broken:
        return DpPlan((), 0.0, exact=True, num_states=0, upper_bound=0.0, broken=broken)
    num_new = len(instance.new)
    if num_new and fits(problem, np.ones(len(order), np.bool_)):
        value = sum(prompt.value for prompt in instance.new)
        chosen = tuple(range(num_new))
        return DpPlan(chosen, value, exact=True, num_states=0, upper_bound=value)
    if num_new <= 1:
        return DpPlan((), 0.0, exact=True, num_states=0, upper_bound=0.0)
    unit = _unit([prompt.value for prompt in instance.new])
    taken, exact, highest, num_states = search(problem, unit, max_points)
    indices = np.sort(order[taken & ~problem.forced]) - len(instance.forced)
    chosen = tuple(indices.tolist())
    value = sum(instance.new[index].value for index in chosen)
    return DpPlan(chosen, value, exact, num_states, value if exact else highest)


def explain(instance: DpInstance, plan_made: DpPlan, index: int) -> Explanation:
    """What stood against the new request `index`, which `plan_made` for `instance` left out."""
    assert index not in plan_made.chosen, "explains requests that were not chosen"
    problem, order = _problem(instance)
    num_forced = len(instance.forced)
    others = (order < num_forced) | np.isin(order - num_forced, plan_made.chosen)
    together = others | (order == num_forced + index)
    binding = tuple(
        constraint
        for constraint, position in zip(_CONSTRAINTS, walk(problem, together), strict=True)
        if position != NOWHERE
    )
    prompt = instance.new[index]
    decode_s = instance.tiers[prompt.tier].decode_s
    after_s = earliest_due_s(
        problem,
        others,
        prompt.prefill_s,
        prompt.tier,
        max(0.0, prompt.due_at_s - instance.now_at_s),
    )
    return Explanation(
        binding,
        fitting_due_at_s=instance.now_at_s + after_s,
        fitting_tpot_s=tightest_tpot_s(
            problem, others, decode_s, decode_s - instance.worker.token_s
        ),
        num_fitting_blocks=max(0, instance.num_free_blocks - int(problem.num_blocks[others].sum())),
    )


def _problem(instance: DpInstance) -> tuple[Problem, NDArray[np.int64]]:
    """The instance as arrays, and which prompt (forced ones first) stands at each position."""
    worker, tiers = instance.worker, instance.tiers
    prefill_worker = instance.prefill_worker or worker
    _check(instance, prefill_worker)
    prompts = (*instance.forced, *instance.new)
    due_s = np.array([prompt.due_at_s for prompt in prompts]) - instance.now_at_s
    order = np.argsort(due_s, kind="stable")
    sorted_prompts = [prompts[position] for position in order.tolist()]
    forced = order < len(instance.forced)
    value = np.array([prompt.value for prompt in sorted_prompts], np.float64)
    load = [tier.decode_s / tier.tpot_s for tier in tiers]
    memory_load = [(tier.decode_s - worker.token_s) / tier.tpot_s for tier in tiers]
    running = [tier.num_decodes for tier in tiers]
    problem = Problem(
        gap_s=np.diff(np.maximum(due_s[order], 0.0), prepend=0.0),
        work_s=np.array([prompt.prefill_s for prompt in sorted_prompts], np.float64),
        tier=np.array([prompt.tier for prompt in sorted_prompts], np.int64),
        num_blocks=np.array([prompt.num_blocks for prompt in sorted_prompts], np.float64),
        value=np.where(forced, 0.0, value),
        forced=forced,
        tpot_s=np.array([tier.tpot_s for tier in tiers], np.float64),
        load=np.array(load, np.float64),
        memory_load=np.array(memory_load, np.float64),
        shared=instance.prefill_worker is None,
        fixed_s=float(prefill_worker.fixed_s),
        step_cap_s=float(prefill_worker.step_cap_s),
        decode_fixed_s=float(worker.fixed_s),
        floor_s=float(worker.floor_s),
        running_load=float(np.dot(running, load)),
        running_memory_load=float(np.dot(running, memory_load)),
        running_tpot_s=min((tier.tpot_s for tier in tiers if tier.num_decodes), default=math.inf),
        num_free_blocks=float(instance.num_free_blocks),
    )
    return problem, order


def _check(instance: DpInstance, prefill_worker: DpWorker) -> None:
    if not 0.0 <= prefill_worker.fixed_s < prefill_worker.step_cap_s:
        raise ValueError(f"steps have no room for prompts: {prefill_worker}")
    for tier in instance.tiers:
        if not (tier.tpot_s > 0.0 and tier.decode_s >= instance.worker.token_s >= 0.0):
            raise ValueError(f"out of range: {tier}")
    for prompt in (*instance.forced, *instance.new):
        if not (
            prompt.prefill_s >= 0.0
            and math.isfinite(prompt.due_at_s)
            and 0 <= prompt.tier < len(instance.tiers)
            and prompt.num_blocks >= 0
            and 0.0 < prompt.value < math.inf
        ):
            raise ValueError(f"out of range: {prompt}")


def _broken(problem: Problem, order: NDArray[np.int64]) -> tuple[Broken, ...]:
    positions = zip(_CONSTRAINTS, walk(problem, problem.forced), strict=True)
    return tuple(
        Broken(constraint, None if position == RUNNING else int(order[position]))
        for constraint, position in positions
        if position != NOWHERE
    )


def _unit(values: Sequence[float]) -> float:
    """A number of which all values are multiples; 0 if none is seen."""
    if all(value == values[0] for value in values):
        return values[0]
    if all(float(value).is_integer() for value in values):
        return float(math.gcd(*map(int, values)))
    return 0.0
