import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.capacity_report import (
    above_bound,
    best_baseline,
    ratio,
    summary,
    wrong_scenarios,
)
from bench.capacity_search import (
    CRITERIA,
    GRID_RATIO,
    LOWEST_INDEX,
    Attained,
    Criterion,
    Search,
    best_settings,
    geometric_mean,
    highest_passing,
    index_of,
    rate_at,
)


class Linear:
    """Attainment falls from 1 at rate 0 with a slope per (setting, seed); mean is kinder."""

    def __init__(self, slopes: Sequence[Sequence[float]]) -> None:
        self.slopes = slopes
        self.asked: list[tuple[int, int, int]] = []

    def __call__(self, setting: int, seed: int, index: int, attainment: float) -> Attained:
        self.asked.append((setting, seed, index))
        miss = rate_at(index) * self.slopes[setting][seed]
        if 1 - miss / 2 < attainment:
            # As much as a run that was ended early says.
            return {"strict": -math.inf, "mean": -math.inf, "token_weighted": -math.inf}
        return {"strict": 1 - miss, "mean": 1 - miss / 2, "token_weighted": 1 - miss / 4}


def search_of(slopes: Sequence[Sequence[float]], first_rate: float = 5.0) -> tuple[Search, Linear]:
    measure = Linear(slopes)
    return Search(measure, index_of(first_rate)), measure


@given(
    edge=st.integers(-50, 50),
    hint=st.integers(-200, 200),
    stride=st.integers(1, 40),
)
def test_the_edge_is_found_from_anywhere(edge: int, hint: int, stride: int) -> None:
    assert highest_passing(lambda i: i <= edge, hint, stride, -50) == edge


def test_nothing_below_the_lowest_is_asked() -> None:
    asked: list[int] = []

    def never(index: int) -> bool:
        asked.append(index)
        return False

    assert highest_passing(never, 30, 8, -7) == -7
    assert min(asked) > -7


@given(
    edge=st.integers(-50, 50),
    below=st.integers(0, 30),
    above=st.integers(1, 30),
    hint=st.integers(-200, 200),
    stride=st.integers(1, 40),
)
def test_what_is_known_is_not_asked(
    edge: int, below: int, above: int, hint: int, stride: int
) -> None:
    low, high = edge - below, edge + above
    asked: list[int] = []

    def passes(index: int) -> bool:
        asked.append(index)
        return index <= edge

    assert highest_passing(passes, hint, stride, low, high) == edge
    assert all(low < index < high for index in asked)
    assert len(asked) == len(set(asked))


def test_bisection_needs_few_runs() -> None:
    asked: list[int] = []

    def passes(index: int) -> bool:
        asked.append(index)
        return index <= 431

    assert highest_passing(passes, 0, 8, -10_000) == 431
    assert len(asked) == len(set(asked)) < 20


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_capacity_is_within_one_step_below_where_attainment_crosses(criterion: Criterion) -> None:
    search, _ = search_of([[0.01]])
    slope = 0.01 if criterion.scoring == "strict" else 0.005
    crossing = (1 - criterion.attainment) / slope
    capacity = search.capacity(0, 0, criterion)
    assert capacity <= crossing * (1 + 1e-9) < capacity * GRID_RATIO * (1 + 1e-9)


def test_no_run_is_done_twice() -> None:
    search, measure = search_of([[0.01, 0.012], [0.02, 0.018]])
    best_settings(search, 2, [0, 1], [1.0, 1.0])
    assert len(measure.asked) == len(set(measure.asked)) == search.num_runs


def test_a_run_that_was_ended_early_for_a_high_attainment_is_done_again_for_a_lower_one() -> None:
    search, measure = search_of([[0.01]])
    low, high = Criterion(0.9, "strict"), Criterion(0.98, "strict")
    index = index_of(8.0)
    assert not search.passes(0, 0, index, high)
    assert search.passes(0, 0, index, low)
    assert not search.passes(0, 0, index, high)
    assert len(measure.asked) == 2


def test_a_search_starts_from_what_is_known() -> None:
    search, measure = search_of([[0.01]])
    strict, mean = Criterion(0.9, "strict"), Criterion(0.9, "mean")
    search.index(0, 0, strict)
    num_asked = len(measure.asked)
    search.index(0, 0, strict)
    assert len(measure.asked) == num_asked
    search.index(0, 0, mean)
    assert min(index for _, _, index in measure.asked[num_asked:]) > search.index(0, 0, strict)


def test_a_criterion_out_of_reach_is_a_capacity_of_zero() -> None:
    search, _ = search_of([[math.inf]])
    assert all(search.capacity(0, 0, criterion) == 0.0 for criterion in CRITERIA)
    assert search.attained(0, 0, CRITERIA[0])["strict"] == -math.inf
    assert not search.passes(0, 0, LOWEST_INDEX, CRITERIA[0])


def test_the_best_setting_wins_wherever_it_stands() -> None:
    slopes = [[0.05], [0.04], [0.01], [0.03], [0.02]]
    for shift in range(len(slopes)):
        turned = slopes[shift:] + slopes[:shift]
        search, _ = search_of(turned)
        best = best_settings(search, len(turned), [0], [1.0])
        assert {capacity.setting for capacity in best.values()} == {turned.index([0.01])}


def test_far_worse_settings_cost_one_run_per_criterion() -> None:
    search, measure = search_of([[0.9], [0.9], [0.01], [0.9], [0.9]])
    best_settings(search, 5, [0], [1.0])
    for loser in (0, 1, 3, 4):
        assert sum(setting == loser for setting, _, _ in measure.asked) <= len(CRITERIA)


def test_of_close_settings_the_one_best_over_all_seeds_wins() -> None:
    # The first is a little better with the first seed, the second much better with the other.
    search, _ = search_of([[0.0100, 0.04], [0.0102, 0.01]])
    best = best_settings(search, 2, [0, 1], [1.0, 1.0])
    assert best[CRITERIA[0]].setting == 1


def test_a_criterion_may_have_a_best_setting_of_its_own() -> None:
    class Crossing(Linear):
        def __call__(self, setting: int, seed: int, index: int, attainment: float) -> Attained:
            # Setting 1 never reaches 0.98, but falls later.
            miss = rate_at(index) * (0.01 if setting == 0 else 0.002) + 0.03 * setting
            return dict.fromkeys(("strict", "mean", "token_weighted"), 1 - miss)

    best = best_settings(Search(Crossing([]), index_of(5.0)), 2, [0], [1.0])
    assert {criterion.attainment: best[criterion].setting for criterion in best} == {
        0.9: 1,
        0.98: 0,
    }


def test_capacities_are_scaled_per_seed() -> None:
    search, _ = search_of([[0.01, 0.01]])
    plain = search.capacity(0, 0, CRITERIA[0])
    best = best_settings(search, 1, [0, 1], [0.9, 1.2])[CRITERIA[0]]
    assert best.by_seed == pytest.approx((0.9 * plain, 1.2 * plain))
    assert best.mean == pytest.approx(1.05 * plain)


def test_the_grid_and_its_indices_agree() -> None:
    assert all(index_of(rate_at(index)) == index for index in range(-150, 150))
    assert index_of(rate_at(7) * 1.01) == 7


def row(policy: str, capacity: float, **changes: object) -> dict[str, object]:
    return {
        "scenario": "chat",
        "arrivals": "poisson",
        "model": "m",
        "gpu": "g",
        "num_gpus": 1,
        "lengths": "known",
        "policy": policy,
        "scoring": "strict",
        "attainment": 0.9,
        "capacity_per_gpu": capacity,
        "bound_per_gpu": 10.0,
        **changes,
    }


def test_the_summary_compares_within_a_cell_only() -> None:
    rows = [
        row("headway", 8.0),
        row("vllm-v1", 2.0),
        row("edf", 4.0),
        # Behind Headway's own test, and its ablations: no baselines.
        row("edf+", 9.9),
        row("headway, no shedding", 9.9),
        row("headway", 4.0, scenario="coder"),
        row("vllm-v1", 1.0, scenario="coder"),
        row("edf", 8.0, scenario="coder"),
        # Other criteria do not count.
        row("headway", 0.1, attainment=0.98),
        row("vllm-v1", 9.0, attainment=0.98),
        row("headway", 0.1, scoring="mean"),
        # Without vLLM V1: in no ratio.
        row("headway", 6.0, num_gpus=8),
        row("headway", 1.5, num_gpus=8, scenario="coder"),
        row("polyserve", 9.0, num_gpus=8),
    ]
    assert summary(rows) == pytest.approx(
        {
            "geo_mean_vs_best_baseline": 1.0,  # of 2 and 1/2
            "geo_mean_vs_vllm_v1": 4.0,
            "min_ratio_vs_best_baseline": 0.5,
            "bound_fraction_8gpu": 0.3,  # of 0.6 and 0.15
        }
    )


def test_the_summary_of_nothing_is_empty() -> None:
    assert set(summary([]).values()) == {None}


def test_a_baseline_that_carries_nothing_has_no_ratio() -> None:
    nothing = row("edf", 0.0)
    assert ratio(row("headway", 3.0), nothing) is None
    assert ratio(row("headway", 3.0), None) is None
    assert best_baseline({"headway": row("headway", 3.0)}) is None


def test_rows_above_their_bound_are_found() -> None:
    wrong = row("edf", 10.1)
    assert above_bound([row("headway", 10.0), wrong]) == [wrong]


def test_a_scenario_with_a_row_above_its_bound_is_left_out_of_the_summary() -> None:
    rows = [row("headway", 4.0), row("vllm-v1", 2.0), row("edf", 1.0)]
    wrong = [row("headway", 9.0), row("vllm-v1", 1.0), row("edf", 10.1)]
    rows += [one | {"scenario": "coder"} for one in wrong]
    assert wrong_scenarios(rows) == ["coder"]
    assert summary(rows)["geo_mean_vs_best_baseline"] == pytest.approx(2.0)


def test_geometric_mean() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([2.0, 0.0]) == 0.0
    assert geometric_mean([]) is None
