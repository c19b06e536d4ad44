"""Step times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.perf_model import PerfModel, PrefillChunk, StepShape

# Round numbers, so that expected values can be worked out by hand.
MODEL = PerfModel(
    floor_s=0.010,
    token_s=0.001,
    fixed_s=0.002,
    sequence_s=0.0005,
    context_token_s=0.00001,
    prefill_attention_s=0.000001,
    chunk_s=0.003,
)


def test_an_empty_step_takes_no_time() -> None:
    assert MODEL.step_s(StepShape()) == 0.0


def test_few_tokens_cost_the_floor() -> None:
    assert MODEL.decode_step_s([100, 200]) == pytest.approx(0.010 + 2 * 0.0005 + 300 * 0.00001)


def test_many_tokens_cost_by_the_token_and_by_the_attention() -> None:
    chunk = PrefillChunk(num_tokens=100, num_context_tokens=50)
    assert MODEL.step_s(StepShape(chunks=(chunk,))) == pytest.approx(
        0.100 + 0.002 + 100 * (50 + 50) * 0.000001 + 0.003
    )


def test_chunking_adds_only_what_each_step_costs_anyway() -> None:
    whole = MODEL.prefill_s(120, 0, max_step_tokens=120)
    halves = MODEL.prefill_s(120, 0, max_step_tokens=60)
    assert halves - whole == pytest.approx(0.002 + 0.003)


@given(st.integers(1, 4000), st.integers(0, 4000), st.integers(1, 512))
def test_prefill_is_the_sum_of_its_steps(num_tokens: int, num_context: int, step: int) -> None:
    expected_s, left, context = 0.0, num_tokens, num_context
    while left:
        chunk = PrefillChunk(min(step, left), context)
        expected_s += MODEL.step_s(StepShape(chunks=(chunk,)))
        context += chunk.num_tokens
        left -= chunk.num_tokens
    assert MODEL.prefill_s(num_tokens, num_context, step) == pytest.approx(expected_s)


def test_a_slower_device_is_slower_everywhere() -> None:
    shape = StepShape(chunks=(PrefillChunk(30, 10),), num_decodes=4, num_decode_context_tokens=900)
    assert MODEL.scaled(1.7).step_s(shape) == pytest.approx(1.7 * MODEL.step_s(shape))


def test_negative_costs_are_refused() -> None:
    with pytest.raises(ValueError, match="token_s"):
        PerfModel(0, -1e-9, 0, 0, 0, 0, 0)
