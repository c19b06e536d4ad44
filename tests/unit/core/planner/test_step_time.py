"""The compiled step time is the perf model's, and chunks fill a step to its last token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.batch_state import Records
from headway.core.perf_model import PerfModel, PrefillChunk, StepShape
from headway.core.planner.step_time import chunk_within, step_s
from tests.former_loop import make_worker

MODELS = st.builds(
    PerfModel,
    floor_s=st.floats(1e-3, 3e-2),
    token_s=st.floats(1e-6, 1e-3),
    fixed_s=st.floats(0.0, 1e-2),
    sequence_s=st.floats(0.0, 1e-4),
    context_token_s=st.floats(0.0, 1e-6),
    prefill_attention_s=st.one_of(st.just(0.0), st.floats(1e-11, 1e-7)),
    chunk_s=st.floats(0.0, 1e-3),
)


def worker_of(model: PerfModel, time_ratio: float = 1.0) -> Records:
    values = {name: getattr(model, name) for name in model.__dataclass_fields__}
    return make_worker(**values, time_ratio=time_ratio)


# The first example compiles.
@settings(deadline=None, derandomize=True)
@given(
    MODELS,
    st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 20_000)), max_size=4),
    st.integers(0, 300),
    st.integers(0, 10**6),
    st.floats(0.5, 2.0),
)
def test_a_step_takes_what_the_perf_model_says(
    model: PerfModel, chunks: list[tuple[int, int]], num_decodes: int, context: int, ratio: float
) -> None:
    shape = StepShape(
        tuple(PrefillChunk(num_tokens, before) for num_tokens, before in chunks),
        num_decodes,
        context if num_decodes else 0,
    )
    num_tokens = num_decodes + sum(chunk.num_tokens for chunk in shape.chunks)
    attention = sum(p * (before + p / 2) for p, before in chunks)
    found_s = step_s(
        worker_of(model, ratio)[0],
        num_tokens,
        num_decodes,
        shape.num_decode_context_tokens,
        attention,
        len(chunks),
        0,
        0,
    )
    expected_s = ratio * model.step_s(shape) if num_tokens else 0.0
    assert found_s == pytest.approx(expected_s, rel=1e-12)


def test_drafting_costs_per_round_and_per_token() -> None:
    worker = make_worker(draft_floor_s=0.002, draft_sequence_s=1e-5)[0]
    without_s = step_s(worker, 80, 20, 0, 0.0, 0, 0, 0)
    drafted_s = step_s(worker, 80, 20, 0, 0.0, 0, 3, 60)
    assert drafted_s - without_s == pytest.approx(3 * 0.002 + 60 * 1e-5)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    MODELS,
    st.floats(0.5, 2.0),
    st.floats(1e-3, 0.3),
    st.integers(0, 500),
    st.integers(0, 20_000),
    st.integers(1, 10_000),
)
def test_the_largest_chunk_fits_and_one_more_token_does_not(
    model: PerfModel, ratio: float, time_s: float, num_others: int, num_computed: int, num_left: int
) -> None:
    worker = worker_of(model, ratio)[0]
    chunk = chunk_within(worker, time_s, num_others, num_computed, num_left)
    assert 0 <= chunk <= num_left

    def with_chunk_s(p: int) -> float:
        attention = p * (num_computed + 0.5 * p)
        return float(step_s(worker, num_others + p, 0, 0, attention, 1, 0, 0))

    if chunk > 0:
        assert with_chunk_s(chunk) <= time_s * (1 + 1e-9)
    if chunk < num_left:
        assert with_chunk_s(chunk + 1) >= time_s * (1 - 1e-9)


def test_a_chunk_by_hand() -> None:
    # 10 ms at least, 0.1 ms per token: 500 tokens in 50 ms, 100 of which are others'.
    worker = make_worker()[0]
    assert chunk_within(worker, 0.0500001, 100, 0, 10_000) == 400
    assert chunk_within(worker, 0.0500001, 100, 0, 50) == 50
    assert chunk_within(worker, 0.0099, 0, 0, 10) == 0
    assert chunk_within(worker, 0.0500001, 500, 0, 10) == 0
    # Attention over 9999 tokens before it: 1e-8 * 9999 more per token, and half of its own.
    worker = make_worker(prefill_attention_s=1e-8)[0]
    p = chunk_within(worker, 0.05, 0, 9999, 10_000)
    roots = np.roots([0.5e-8, 1e-4 + 1e-8 * 9999, -0.05])
    assert p == int(roots.max())
