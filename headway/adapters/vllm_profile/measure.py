"""Measures many steps so that what disturbs the machine for a while does little harm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from headway.adapters.vllm_profile.engine import SteppedEngine
from headway.core.perf_fit import StepSample
from headway.core.step_design import StepPoint

# Steps made of each point, after a first one that only warms up: it is when kernels are chosen.
NUM_REPEATS = 3
# Points whose steps differ by more than this are measured some more times.
_MAX_SPREAD_RATIO = 0.2
_NUM_MORE_REPEATS = 2

# Measured steps of one point.
Repeats = list[StepSample]
# Told how many steps were made, and how many there will be.
Told = Callable[[int, int], None]


def measure(
    engine: SteppedEngine, points: Sequence[StepPoint], generator: np.random.Generator, tell: Told
) -> list[Repeats]:
    """The steps of each point; none of a point that vLLM would not make a step of.

    All points are measured once before any is measured again, each time in another random order:
    a disturbance then hits one step of many points, which their medians forget, and not all steps
    of one.

    Raises:
        EngineFailed: vLLM failed.
    """
    repeats: list[Repeats] = [[] for _ in points]
    num_made, num_planned = 0, (1 + NUM_REPEATS) * len(points)

    def once(indices: Sequence[int], into: list[Repeats]) -> None:
        nonlocal num_made
        for index in generator.permutation(indices):
            step = engine.measure(points[index])
            if step is not None:
                into[index].append(step)
            num_made += 1
            tell(num_made, num_planned)

    tell(num_made, num_planned)
    engine.warm_up()
    once(range(len(points)), [[] for _ in points])
    for _ in range(NUM_REPEATS):
        once(range(len(points)), repeats)
    for _ in range(_NUM_MORE_REPEATS):
        unsure = [index for index, steps in enumerate(repeats) if spread(steps) > _MAX_SPREAD_RATIO]
        num_planned += len(unsure)
        once(unsure, repeats)
    return repeats


def spread(steps: Repeats) -> float:
    """How much steps of one shape differ: (longest - shortest) / median; 0 of none."""
    if not steps:
        return 0.0
    durations_s = [step.duration_s for step in steps]
    return (max(durations_s) - min(durations_s)) / float(np.median(durations_s))
