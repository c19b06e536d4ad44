"""Steps to measure: within what the engine can do, and telling all terms of the model apart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.perf_fit import StepSample, fit
from headway.core.perf_model import PerfModel, StepShape
from headway.core.step_design import StepLimits, StepPoint, design

CPU = StepLimits(
    max_step_tokens=256,
    max_num_running=16,
    max_model_len=2048,
    num_kv_blocks=511,
    kv_block_size=32,
    max_drafted=3,
)
GPU = StepLimits(
    max_step_tokens=2048,
    max_num_running=256,
    max_model_len=16384,
    num_kv_blocks=26000,
    kv_block_size=16,
)
NUM_STEPS = 4


def points_of(limits: StepLimits, num: int, seed: int = 0) -> list[StepPoint]:
    return design(limits, num, NUM_STEPS, np.random.default_rng(seed))


def blocks_of(point: StepPoint, block_size: int) -> int:
    """At the end of the last step."""
    growth = NUM_STEPS * (1 + point.num_drafted)
    lengths = [chunk.num_tokens + chunk.num_context_tokens for chunk in point.chunks]
    lengths += [num + growth for num in point.decode_context_tokens]
    return sum(-(-length // block_size) for length in lengths)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.builds(
        StepLimits,
        max_step_tokens=st.integers(16, 4096),
        max_num_running=st.integers(2, 256),
        max_model_len=st.integers(128, 32768),
        num_kv_blocks=st.integers(600, 30000),
        kv_block_size=st.sampled_from((16, 32, 128)),
        max_drafted=st.integers(0, 6),
    ),
    st.integers(0, 2**32 - 1),
)
def test_every_point_is_one_that_the_engine_can_make(limits: StepLimits, seed: int) -> None:
    points = points_of(limits, 20, seed)
    assert len(points) == 20
    for point in points:
        assert 0 < point.num_tokens <= limits.max_step_tokens
        num_running = len(point.chunks) + len(point.decode_context_tokens)
        assert num_running <= limits.max_num_running
        assert point.num_drafted <= limits.max_drafted
        # A chunk of one token would be a decode.
        assert all(chunk.num_tokens > 1 for chunk in point.chunks)
        ends = [chunk.num_tokens + chunk.num_context_tokens for chunk in point.chunks]
        growth = NUM_STEPS * (1 + point.num_drafted)
        ends += [num + growth for num in point.decode_context_tokens]
        assert max(ends) <= limits.max_model_len
        assert min(point.decode_context_tokens, default=1) >= 1
        assert blocks_of(point, limits.kv_block_size) <= limits.num_kv_blocks


@pytest.mark.parametrize("limits", [CPU, GPU], ids=["cpu", "gpu"])
def test_few_points_cover_all_kinds_and_ranges(limits: StepLimits) -> None:
    points = points_of(limits, 60)
    prefills = [point for point in points if not point.decode_context_tokens]
    decodes = [point for point in points if not point.chunks]
    assert (len(prefills), len(decodes)) == (15, 24)
    sizes = [sum(chunk.num_tokens for chunk in point.chunks) for point in prefills]
    assert min(sizes) <= 8
    assert max(sizes) >= 0.65 * limits.max_step_tokens
    counts = [len(point.decode_context_tokens) for point in decodes]
    assert min(counts) <= 0.1 * limits.max_num_running
    assert max(counts) >= 0.8 * limits.max_num_running
    assert any(chunk.num_context_tokens == 0 for point in prefills for chunk in point.chunks)
    assert {len(point.chunks) for point in points} == {0, 1, 2, 3}
    drafted = {point.num_drafted for point in points}
    assert drafted == set(range(limits.max_drafted + 1))


def test_the_same_seed_gives_the_same_points_and_another_seed_others() -> None:
    assert points_of(CPU, 30, 1) == points_of(CPU, 30, 1)
    assert not set(points_of(CPU, 30, 1)) & set(points_of(CPU, 30, 2))


def test_kinds_do_not_follow_one_another() -> None:
    kinds = [(not p.chunks, not p.decode_context_tokens) for p in points_of(CPU, 60)]
    runs = sum(left != right for left, right in pairwise(kinds))
    assert runs > 20


def test_too_little_memory_is_refused() -> None:
    tiny = StepLimits(512, 64, 4096, num_kv_blocks=4, kv_block_size=16)
    with pytest.raises(ValueError, match="too few"):
        points_of(tiny, 30)


@pytest.mark.parametrize("limits", [CPU, GPU], ids=["cpu", "gpu"])
def test_steps_at_the_points_tell_a_model_apart(limits: StepLimits) -> None:
    """Forty steps of a known truth, with drafting, give its coefficients back."""
    model = PerfModel(
        floor_s=6.5e-3,
        token_s=1.9e-4,
        fixed_s=2.5e-3,
        sequence_s=6.7e-5,
        context_token_s=4.2e-7,
        prefill_attention_s=9.4e-9,
        chunk_s=4.6e-4,
    )
    draft_floor_s, draft_sequence_s = 1e-3, 5e-5

    def step(point: StepPoint) -> StepSample:
        num_decodes = len(point.decode_context_tokens)
        context = sum(point.decode_context_tokens)
        num_drafted = num_decodes * point.num_drafted
        duration_s = (
            model.step_s(StepShape(point.chunks, num_decodes + num_drafted, context))
            - model.sequence_s * num_drafted
            + draft_floor_s * point.num_drafted
            + draft_sequence_s * num_drafted
        )
        return StepSample(
            duration_s=duration_s,
            num_tokens=point.num_tokens,
            num_decodes=num_decodes,
            num_decode_context_tokens=context,
            attention=sum(
                chunk.num_tokens * (chunk.num_context_tokens + chunk.num_tokens / 2)
                for chunk in point.chunks
            ),
            num_chunks=len(point.chunks),
            num_draft_rounds=point.num_drafted,
            num_drafted=num_drafted,
        )

    fitted = fit(
        [step(point) for point in points_of(limits, 40)],
        [step(point) for point in points_of(limits, 20, seed=1)],
    )
    assert (fitted.num_fitted, fitted.num_held_out) == (40, 20)
    for name in model.__dataclass_fields__:
        assert getattr(fitted.perf_model, name) == pytest.approx(getattr(model, name), rel=1e-5)
    with_drafts = limits.max_drafted > 0
    assert fitted.draft_floor_s == pytest.approx(draft_floor_s * with_drafts, rel=1e-5)
    assert fitted.draft_sequence_s == pytest.approx(draft_sequence_s * with_drafts, rel=1e-5)
    assert fitted.p99_error_ratio < 1e-6
