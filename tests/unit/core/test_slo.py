"""Promises and token deadlines."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.slo import DemandLine, Promise, Slo, StageSlo


def _line(*stages: StageSlo, ttft_s: float = 1.0, arrived_at_s: float = 100.0) -> DemandLine:
    return DemandLine(Promise(ttft_s, stages), arrived_at_s)


def test_tokens_are_due_on_a_line_that_starts_at_the_ttft() -> None:
    line = _line(StageSlo(0.1))
    due_at_s = []
    for _ in range(3):
        due_at_s.append(line.next_due_at_s)
        line.token(7, at_s=100.0)
    assert due_at_s == pytest.approx([101.0, 101.1, 101.2])


def test_early_tokens_bank_slack() -> None:
    line = _line(StageSlo(0.1))
    for _ in range(9):
        line.token(7, at_s=100.5)
    line.token(7, at_s=101.85)  # the tenth is due at 101.9, however long its own gap was
    assert line.attained


def test_the_lead_is_what_the_first_token_left_of_its_bound() -> None:
    line = _line(StageSlo(0.1))
    assert line.lead_s == 0.0
    line.token(7, at_s=100.4)
    line.token(7, at_s=100.9)
    assert line.lead_s == pytest.approx(0.6)
    late = _line(StageSlo(0.1))
    late.token(7, at_s=101.4)
    assert late.lead_s == 0.0


def test_a_late_first_token_is_a_miss() -> None:
    line = _line(StageSlo(0.1))
    line.token(7, at_s=101.001)
    assert not line.attained


def test_a_late_token_between_check_points_is_forgiven_if_the_next_one_is_in_time() -> None:
    line = _line(StageSlo(0.1))
    for index in range(10):
        line.token(7, at_s=101.45 if index == 4 else 100.9)
    assert line.attained


def test_the_last_token_is_a_check_point() -> None:
    line = _line(StageSlo(0.1))
    for index in range(4):
        line.token(7, at_s=105.0 if index == 3 else 100.5)
    assert not line.attained


def test_no_token_is_no_attainment() -> None:
    assert not _line(StageSlo(0.1)).attained


def test_a_stage_ends_with_its_token_and_the_pace_changes() -> None:
    line = _line(StageSlo(0.5, end_token_id=42), StageSlo(0.1))
    line.token(7, at_s=100.0)
    assert line.next_due_at_s == pytest.approx(101.5)
    line.token(42, at_s=100.0)
    assert line.next_due_at_s == pytest.approx(101.6)


def test_a_stage_ends_after_its_count() -> None:
    line = _line(StageSlo(0.5, end_after_tokens=2), StageSlo(0.1))
    for _ in range(3):
        line.token(7, at_s=100.0)
    assert line.next_due_at_s == pytest.approx(101.0 + 0.5 + 0.1 + 0.1)


@given(
    tpot_s=st.floats(0.001, 2.0),
    gaps_s=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60),
)
def test_never_slower_than_the_pace_is_always_attained(tpot_s: float, gaps_s: list[float]) -> None:
    line = _line(StageSlo(tpot_s))
    at_s = 100.5
    for gap_s in gaps_s:
        line.token(7, at_s)
        at_s += min(gap_s, tpot_s)
    assert line.attained


def test_a_slow_down_becomes_seconds_of_this_prompt() -> None:
    slo = Slo((StageSlo(0.1),), ttft_slowdown=3.0)
    assert slo.promise(zero_load_prefill_s=0.4).ttft_s == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Slo((StageSlo(0.1),)), "either"),
        (lambda: Slo((StageSlo(0.1),), ttft_s=1.0, ttft_slowdown=2.0), "either"),
        (lambda: Slo((), ttft_s=1.0), "at least one stage"),
        (lambda: Slo((StageSlo(0.1), StageSlo(0.1)), ttft_s=1.0), "every stage but the last"),
        (lambda: Slo((StageSlo(0.1, end_after_tokens=1),), ttft_s=1.0), "the last has none"),
        (lambda: Slo((StageSlo(0.1),), ttft_s=-1.0), "positive"),
        (lambda: Slo((StageSlo(0.1),), ttft_slowdown=1.0), "above 1"),
        (lambda: Slo((StageSlo(0.1),), ttft_s=math.inf), "positive"),
        (lambda: StageSlo(0.0), "positive"),
        (lambda: StageSlo(math.nan), "positive"),
        (lambda: StageSlo(0.1, end_token_id=1, end_after_tokens=1), "one way"),
        (lambda: StageSlo(0.1, end_after_tokens=0), "at least 1"),
    ],
)
def test_impossible_bounds_are_refused(make: Callable[[], object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        make()
