"""Finds the highest rate at which enough requests are attained, and a policy's best setting.

Rates lie on one geometric grid, so that every policy is asked about the same ones and no run is
done twice. A capacity is the highest rate of the grid that passes below one that does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

# Neighbouring rates; a capacity is at most this much below where attainment crosses its target.
GRID_RATIO = 1.03
# Below this rate per second, nothing is a capacity.
LOWEST_RATE = 0.01
# Where there are several seeds, settings as good as the best one with the first seed get the
# others, too, but at most so many.
_NUM_REFINED = 2
# First stride of a search that knows little, and of one that has an answer for a similar case.
_FAR, _NEAR = 8, 1


def rate_at(index: int) -> float:
    """A rate of the grid, per second."""
    return GRID_RATIO**index


def index_of(rate: float) -> int:
    """The highest index whose rate is not above this one."""
    return math.floor(math.log(rate) / math.log(GRID_RATIO) + 1e-9)


LOWEST_INDEX = index_of(LOWEST_RATE)


@dataclass(frozen=True, slots=True, order=True)
class Criterion:
    """What counts as enough: `attainment` of all asked, by one way of scoring."""

    attainment: float
    scoring: str


# The order in which they are searched; each starts where the one before it ended.
CRITERIA = tuple(
    Criterion(attainment, scoring) for attainment in (0.9, 0.98) for scoring in ("strict", "mean")
)


def highest_passing(
    passes: Callable[[int], bool], hint: int, stride: int, low: int, high: int | None = None
) -> int:
    """Highest index that passes, if all above some index fail and all others pass.

    Args:
        passes: whether an index does; not asked outside of (low, high).
        hint: where to start.
        stride: first step away from it; doubles until the answer is bracketed.
        low: taken to pass.
        high: taken to fail, above `low`; None if no such index is known.
    """
    at = max(hint, low + 1) if high is None else hint
    if high is not None and hint >= high:
        at = high - stride
    if at > low and not passes(at):
        high = at
        while (at := high - stride) > low and not passes(at):
            high, stride = at, 2 * stride
    low = max(at, low)
    while high is None or low + stride < high:
        if not passes(low + stride):
            high = low + stride
            break
        low, stride = low + stride, 2 * stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


# Attained ratio by each way of scoring, of one setting and seed at one rate of the grid.
Attained = Mapping[str, float]
# From (setting, seed, index of the rate, attainment). Ratios that are all below the attainment
# may be given as any others below it.
Measure = Callable[[int, int, int, float], Attained]
_SCORINGS = tuple(dict.fromkeys(criterion.scoring for criterion in CRITERIA))


class Search:
    """Capacities of one policy's settings, as indices of the grid. Remembers every run.

    Args:
        measure: does one run.
        first_hint: index of a rate to start at.
    """

    def __init__(self, measure: Measure, first_hint: int) -> None:
        self._measure = measure
        self._first_hint = first_hint
        # With the attainment they were done for.
        self._known: dict[tuple[int, int, int], tuple[Attained, float]] = {}
        self._found: dict[tuple[int, int, Criterion], int] = {}

    @property
    def num_runs(self) -> int:
        return len(self._known)

    def passes(self, setting: int, seed: int, index: int, criterion: Criterion) -> bool:
        """Whether the criterion is met at this rate; true below the lowest one."""
        if index < LOWEST_INDEX:
            return True
        attained = self._run(setting, seed, index, criterion.attainment)
        return attained[criterion.scoring] >= criterion.attainment

    def index(self, setting: int, seed: int, criterion: Criterion, hint: int | None = None) -> int:
        """Of the capacity; the one below the lowest if the criterion is out of reach."""
        key = (setting, seed, criterion)
        if key not in self._found:
            stride = _NEAR
            if hint is None:
                hint, stride = self._similar(setting, seed, criterion)
            self._found[key] = highest_passing(
                lambda index: self.passes(setting, seed, index, criterion),
                hint,
                stride,
                *self._bracket(setting, seed, criterion),
            )
        return self._found[key]

    def _bracket(self, setting: int, seed: int, criterion: Criterion) -> tuple[int, int | None]:
        """What the runs so far say of the capacity: it is at least the first, below the second."""
        passed = {
            index: attained[criterion.scoring] >= criterion.attainment
            for (of_setting, of_seed, index), (attained, asked) in self._known.items()
            if (of_setting, of_seed) == (setting, seed)
            and _is_known(attained, asked, criterion.attainment)
        }
        low = max((index for index in passed if passed[index]), default=LOWEST_INDEX - 1)
        return low, min((index for index in passed if index > low), default=None)

    def capacity(self, setting: int, seed: int, criterion: Criterion) -> float:
        """Requests per second; 0 if the criterion is out of reach."""
        index = self.index(setting, seed, criterion)
        return rate_at(index) if index >= LOWEST_INDEX else 0.0

    def attained(self, setting: int, seed: int, criterion: Criterion) -> Attained:
        """Ratios of the run at the capacity, or at the lowest rate if there is none."""
        index = max(self.index(setting, seed, criterion), LOWEST_INDEX)
        return self._run(setting, seed, index, criterion.attainment)

    def _run(self, setting: int, seed: int, index: int, attainment: float) -> Attained:
        key = (setting, seed, index)
        if key not in self._known or not _is_known(*self._known[key], attainment):
            self._known[key] = self._measure(*key, attainment), attainment
        return self._known[key][0]

    def _similar(self, setting: int, seed: int, criterion: Criterion) -> tuple[int, int]:
        """Where to start, and the first stride.

        That is the capacity of the nearest case: of another seed, else scoring, attainment,
        setting. From one attainment to another it is far.
        """

        def distance(key: tuple[int, int, Criterion]) -> tuple[bool, bool, bool, bool]:
            return (
                key[0] != setting,
                key[2].attainment != criterion.attainment,
                key[2].scoring != criterion.scoring,
                key[1] != seed,
            )

        if not self._found:
            return self._first_hint, _FAR
        nearest = min(self._found, key=distance)
        is_near = nearest[2].attainment == criterion.attainment
        return self._found[nearest], _NEAR if is_near else _FAR


def _is_known(attained: Attained, asked: float, attainment: float) -> bool:
    """Whether ratios of a run that was done for `asked` can be compared with `attainment`."""
    return attainment >= asked or any(attained[scoring] >= asked for scoring in _SCORINGS)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Of a policy with its best setting, over seeds, in requests per second.

    Attributes:
        setting: which of those asked about.
        by_seed: in the order of the seeds.
    """

    setting: int
    by_seed: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.by_seed)


def best_settings(
    search: Search, num_settings: int, seeds: Sequence[int], scale: Sequence[float]
) -> dict[Criterion, Capacity]:
    """For each criterion, the setting of the highest mean capacity over seeds.

    Args:
        search: where to look.
        num_settings: settings are numbered from 0.
        seeds: numbers to pass on; at least one.
        scale: what to multiply rates by, per seed.
    """
    best: dict[Criterion, Capacity] = {}
    favourite = num_settings // 2
    for criterion in CRITERIA:
        # With one seed only a better one can win.
        margin = 0 if len(seeds) > 1 else 1
        close = _best_of_seed(search, num_settings, seeds[0], criterion, favourite, margin)
        refined = [
            Capacity(
                setting,
                tuple(
                    search.capacity(setting, seed, criterion) * factor
                    for seed, factor in zip(seeds, scale, strict=True)
                ),
            )
            for setting in close
        ]
        best[criterion] = max(refined, key=lambda capacity: capacity.mean)
        favourite = best[criterion].setting
    return best


def _best_of_seed(
    search: Search,
    num_settings: int,
    seed: int,
    criterion: Criterion,
    favourite: int,
    margin: int,
) -> list[int]:
    """The settings that are best with this seed, the best of them first.

    One that fails `margin` steps of the grid above the best so far, itself included, is not
    looked for any further; to know that takes one run, or none.
    """
    near = [favourite]
    highest = search.index(favourite, seed, criterion)
    for setting in range(num_settings):
        if setting != favourite and search.passes(setting, seed, highest + margin, criterion):
            near.append(setting)
            highest = max(highest, search.index(setting, seed, criterion, hint=highest))
    # Stable: of equal ones the first.
    near.sort(key=lambda setting: -search.index(setting, seed, criterion))
    return near[:_NUM_REFINED]


def geometric_mean(values: Iterable[float]) -> float | None:
    """None of nothing; 0 if a value is."""
    kept = list(values)
    if not kept:
        return None
    if min(kept) <= 0.0:
        return 0.0
    return math.exp(fmean(math.log(value) for value in kept))
