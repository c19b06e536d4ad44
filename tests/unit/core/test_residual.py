"""The online correction of predicted step times, and the guard on sums of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from headway.core.batch_state import Floats
from headway.core.residual import (
    DEVIATIONS_95,
    DEVIATIONS_99,
    guard_ratio,
    new_residuals,
    time_ratio,
    update_residual,
)

SIGMA = 0.05


def _fed(ratios: Iterable[float], state: Any = None) -> Any:
    state = new_residuals(1)[0] if state is None else state
    for ratio in ratios:
        update_residual(state, 0.010, 0.010 * ratio)
    return state


def _noisy(num_steps: int, bias: float = 1.0, seed: int = 1, sigma: float = SIGMA) -> Floats:
    rng = np.random.default_rng(seed)
    return np.asarray(bias * np.exp(sigma * rng.standard_normal(num_steps) - sigma**2 / 2))


def test_before_the_first_step_the_model_is_believed_with_caution() -> None:
    state = _fed(())
    assert time_ratio(state) == 1.0
    assert 1.15 < guard_ratio(state, 20, DEVIATIONS_95) < 1.25


@pytest.mark.parametrize("bias", [0.8, 0.9, 1.1, 1.2])
def test_a_bias_is_learned_within_50_steps(bias: float) -> None:
    assert time_ratio(_fed([bias] * 50)) == pytest.approx(bias, rel=0.01)
    learned = [time_ratio(_fed(_noisy(50, bias, seed))) for seed in range(40)]
    # 1 % of the start is left, and the noise of the mean: 0.05 * sqrt(1 / 59) = 0.7 %.
    assert np.abs(np.array(learned) / bias - 1).max() < 0.03
    assert np.mean(learned) == pytest.approx(bias, rel=0.01)


def test_a_worker_that_changes_is_followed() -> None:
    state = _fed(_noisy(1000))
    _fed(_noisy(100, 2.0, seed=2), state)
    assert time_ratio(state) == pytest.approx(2.0, rel=0.05)


def test_while_a_worker_changes_the_guard_widens() -> None:
    state = _fed(_noisy(1000))
    settled = guard_ratio(state, 20, DEVIATIONS_95)
    _fed(_noisy(20, 1.2, seed=2), state)
    assert guard_ratio(state, 20, DEVIATIONS_95) > settled + 0.03


def _coverage(residuals: Floats, num_sum: int, num_deviations: float) -> tuple[float, float]:
    """Share of the following sums that stay below what was guarded, and the mean guard."""
    state = new_residuals(1)[0]
    covered, guards = [], []
    for n, ratio in enumerate(residuals[:-num_sum]):
        if n % 5 == 0:
            guard = guard_ratio(state, num_sum, num_deviations)
            promised_s = num_sum * 0.010 * time_ratio(state) * guard
            covered.append(0.010 * residuals[n : n + num_sum].sum() <= promised_s)
            guards.append(guard)
        update_residual(state, 0.010, 0.010 * ratio)
    return float(np.mean(covered)), float(np.mean(guards[40:]))


@pytest.mark.parametrize("bias", [1.0, 1.1])
@pytest.mark.parametrize(("num_sum", "widest"), [(1, 1.13), (10, 1.05), (20, 1.04), (100, 1.03)])
def test_the_guard_covers_sums_and_narrows_with_them(
    bias: float, num_sum: int, widest: float
) -> None:
    coverage, mean_guard = _coverage(_noisy(20_000, bias), num_sum, DEVIATIONS_95)
    assert coverage >= 0.95
    assert 1.01 < mean_guard < widest


def test_a_surer_guard_covers_more() -> None:
    coverage, _ = _coverage(_noisy(20_000), 20, DEVIATIONS_99)
    assert coverage >= 0.99


def test_what_steps_have_in_common_does_not_average_out() -> None:
    """How far the model is off wanders by 4 %, with a memory of 30 steps; steps vary by 3 %."""
    rng = np.random.default_rng(4)
    memory = np.exp(-1 / 30)
    off = np.zeros(20_000)
    for n, change in enumerate(0.04 * np.sqrt(1 - memory**2) * rng.standard_normal(20_000)):
        off[n] = memory * off[n - 1] + change
    coverage, mean_guard = _coverage(np.exp(off) * _noisy(20_000, sigma=0.03), 20, DEVIATIONS_95)
    assert coverage >= 0.95
    # As much spread from step to step, but none of it in common.
    _, mean_guard_alone = _coverage(_noisy(20_000, sigma=0.05), 20, DEVIATIONS_95)
    assert mean_guard > mean_guard_alone + 0.02


def test_a_fresh_worker_is_covered_from_its_first_step() -> None:
    rng = np.random.default_rng(6)
    num_covered = np.zeros(60)
    for seed in range(300):
        state = new_residuals(1)[0]
        residuals = _noisy(80, np.exp(0.1 * rng.standard_normal()), seed)
        for n in range(60):
            promised = time_ratio(state) * guard_ratio(state, 20, DEVIATIONS_95)
            num_covered[n] += residuals[n : n + 20].mean() <= promised
            update_residual(state, 0.010, 0.010 * residuals[n])
    assert num_covered.min() / 300 >= 0.93
    assert num_covered.mean() / 300 >= 0.95


def test_a_spike_poisons_nothing() -> None:
    state = _fed(_noisy(1000))
    ratio, guard = time_ratio(state), guard_ratio(state, 20, DEVIATIONS_95)
    _fed([5.0], state)
    assert time_ratio(state) == pytest.approx(ratio, rel=0.01)
    assert guard_ratio(state, 20, DEVIATIONS_95) == pytest.approx(guard, abs=0.01)


def test_rare_spikes_are_covered_without_a_wide_guard() -> None:
    residuals = _noisy(20_000)
    residuals[np.random.default_rng(5).random(20_000) < 0.001] *= 5
    coverage, mean_guard = _coverage(residuals, 20, DEVIATIONS_95)
    # A sum with a spike in it is lost, which are 2 %.
    assert coverage >= 0.95 - 0.02
    assert mean_guard < 1.04
    assert time_ratio(_fed(residuals)) == pytest.approx(1.0, rel=0.02)


def test_a_spike_as_the_first_step_is_forgotten() -> None:
    assert time_ratio(_fed([5.0, *_noisy(50)])) == pytest.approx(1.0, rel=0.03)


def test_a_steady_worker_can_still_change() -> None:
    state = _fed([1.0] * 5000)
    assert guard_ratio(state, 20, DEVIATIONS_95) < 1.001
    _fed([1.3] * 100, state)
    assert time_ratio(state) == pytest.approx(1.3, rel=0.03)


@pytest.mark.parametrize(
    ("predicted_s", "measured_s"),
    [(0.0, 0.01), (0.01, 0.0), (-1.0, 0.01), (0.01, float("nan")), (0.01, float("inf"))],
)
def test_steps_without_a_time_say_nothing(predicted_s: float, measured_s: float) -> None:
    state = _fed(_noisy(100))
    before = state.tolist()
    update_residual(state, predicted_s, measured_s)
    assert state.tolist() == before


def test_the_same_steps_give_the_same_state() -> None:
    assert _fed(_noisy(500)).tobytes() == _fed(_noisy(500)).tobytes()


def test_workers_learn_apart() -> None:
    residuals = new_residuals(2)
    _fed([1.2] * 50, residuals[1])
    assert time_ratio(residuals[0]) == 1.0
    assert time_ratio(residuals[1]) == pytest.approx(1.2, rel=0.01)
