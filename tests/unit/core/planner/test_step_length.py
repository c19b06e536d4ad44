"""Step lengths: what is tried, and how the usual one moves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.planner.step_length import StepLength

FLOOR_S = 0.008


@given(
    st.one_of(st.just(math.inf), st.floats(0.012, 0.3)),
    st.floats(0.013, 0.3),
)
def test_candidates_stay_within_bounds_and_the_usual_one_is_first(
    usual_s: float, longest_s: float
) -> None:
    lengths = StepLength(FLOOR_S, usual_s).candidates(longest_s)
    assert lengths[0] == min(usual_s, longest_s)
    assert len(set(lengths)) == len(lengths)
    for length_s in lengths[1:]:
        assert 1.5 * FLOOR_S < length_s <= longest_s
    assert (longest_s in lengths) == (lengths[0] == longest_s or 1.6 * lengths[0] < longest_s)


def test_a_longer_and_two_shorter_lengths_are_tried() -> None:
    assert StepLength(FLOOR_S, 0.05).candidates(0.1) == [0.05, 0.1, 0.025, 0.0125]
    assert StepLength(FLOOR_S, 0.04).candidates(0.05) == [0.04, 0.02]


def test_losses_to_the_running_step_shorten_it_and_others_lengthen_it() -> None:
    length = StepLength(FLOOR_S, 0.05)
    length.lost(to_running_step=True, longest_s=0.1)
    shorter_s = length.usual_s
    assert 0.045 < shorter_s < 0.05
    length.lost(to_running_step=False, longest_s=0.1)
    assert shorter_s < length.usual_s < 0.05


@pytest.mark.parametrize(("to_running_step", "end_s"), [(True, 1.5 * FLOOR_S), (False, 0.1)])
def test_it_stops_at_its_bounds(to_running_step: bool, end_s: float) -> None:
    length = StepLength(FLOOR_S)
    for _ in range(300):
        length.lost(to_running_step=to_running_step, longest_s=0.1)
    assert length.usual_s == end_s


def test_equally_frequent_losses_leave_it_about_where_it_is() -> None:
    length = StepLength(FLOOR_S, 0.04)
    for number in range(1000):
        # Losses to capacity move it 0.7 times as far, so ten of them weigh as much as seven.
        length.lost(to_running_step=number % 17 >= 10, longest_s=0.1)
    assert 0.03 < length.usual_s < 0.05
