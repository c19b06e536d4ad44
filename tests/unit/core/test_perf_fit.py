"""The roofline fitted to measured steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.perf_fit import MIN_STEPS, StepSample, fit
from headway.core.perf_model import PerfModel, PrefillChunk, StepShape

# Orders of magnitude of an 8B model on a data-centre GPU.
MODEL = PerfModel(
    floor_s=6.5e-3,
    token_s=1.9e-5,
    fixed_s=2.5e-3,
    sequence_s=6.7e-6,
    context_token_s=4.2e-8,
    prefill_attention_s=9.4e-10,
    chunk_s=4.6e-4,
)


def _sample(model: PerfModel, shape: StepShape, noise_ratio: float = 1.0) -> StepSample:
    return StepSample(
        duration_s=model.step_s(shape) * noise_ratio,
        num_tokens=shape.num_decodes + sum(chunk.num_tokens for chunk in shape.chunks),
        num_decodes=shape.num_decodes,
        num_decode_context_tokens=shape.num_decode_context_tokens,
        attention=sum(
            chunk.num_tokens * (chunk.num_context_tokens + chunk.num_tokens / 2)
            for chunk in shape.chunks
        ),
        num_chunks=len(shape.chunks),
    )


def _shape(rng: np.random.Generator) -> StepShape:
    """Decode-only, mixed or prefill-only, of 1 to a few thousand tokens."""
    chunks: tuple[PrefillChunk, ...] = ()
    num_decodes = num_context_tokens = 0
    kind = rng.choice(("decode", "mixed", "prefill"), p=(0.4, 0.4, 0.2))
    if kind != "prefill":
        num_decodes = int(2 ** rng.uniform(0, 8))
        num_context_tokens = num_decodes * int(2 ** rng.uniform(7, 13))
    if kind != "decode":
        chunks = tuple(
            PrefillChunk(int(2 ** rng.uniform(4, 11)), int(rng.choice((0, 512, 4096))))
            for _ in range(rng.integers(1, 4))
        )
    return StepShape(chunks, num_decodes, num_context_tokens)


def _steps(num_steps: int, sigma: float = 0.0, model: PerfModel = MODEL) -> list[StepSample]:
    rng = np.random.default_rng(7)
    return [
        _sample(model, _shape(rng), float(np.exp(sigma * rng.standard_normal())))
        for _ in range(num_steps)
    ]


def test_exact_steps_give_the_coefficients_they_were_made_with() -> None:
    fitted = fit(_steps(200))
    assert astuple(fitted.perf_model) == pytest.approx(astuple(MODEL), rel=1e-6)
    assert fitted.p99_error_ratio < 1e-9
    assert fitted.r2 > 1 - 1e-12
    assert (fitted.num_fitted, fitted.num_held_out) == (134, 66)


def test_few_exact_steps_are_enough() -> None:
    fitted = fit(_steps(60))
    assert astuple(fitted.perf_model) == pytest.approx(astuple(MODEL), rel=1e-6)


def test_under_noise_the_error_is_that_of_the_noise() -> None:
    sigma = 0.05
    fitted = fit(_steps(900, sigma))
    # |x| of a normal x with deviation sigma: mean 0.80, median 0.67, 90 % 1.64, 99 % 2.58 sigma.
    assert fitted.mean_error_ratio == pytest.approx(0.80 * sigma, rel=0.15)
    assert fitted.p50_error_ratio == pytest.approx(0.67 * sigma, rel=0.2)
    assert fitted.p90_error_ratio == pytest.approx(1.64 * sigma, rel=0.2)
    assert fitted.p99_error_ratio == pytest.approx(2.58 * sigma, rel=0.3)
    assert fitted.r2 > 0.98
    # What it is for: step times, free of the noise, of shapes it never saw.
    rng = np.random.default_rng(99)
    for _ in range(50):
        shape = _shape(rng)
        assert fitted.perf_model.step_s(shape) == pytest.approx(MODEL.step_s(shape), rel=0.04)


def test_it_does_not_learn_from_the_steps_that_check_it() -> None:
    steps = _steps(300)
    spoilt = [replace(s, duration_s=s.duration_s * (1 + (i % 3 == 2))) for i, s in enumerate(steps)]
    fitted = fit(spoilt)
    assert fitted.perf_model == fit(steps).perf_model
    assert fitted.p50_error_ratio == pytest.approx(0.5)


def test_the_same_steps_give_the_same_model() -> None:
    assert fit(_steps(90, 0.05)) == fit(_steps(90, 0.05))


@pytest.mark.parametrize("floor_s", [0.0, 2.5e-3, 40e-3])
def test_it_finds_the_two_sides_wherever_they_meet(floor_s: float) -> None:
    model = replace(MODEL, floor_s=floor_s)
    fitted = fit(_steps(300, model=model))
    assert fitted.p99_error_ratio < 1e-6


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_no_coefficient_is_ever_negative(seed: int) -> None:
    """Durations that have nothing to do with the shapes."""
    rng = np.random.default_rng(seed)
    steps = [
        replace(_sample(MODEL, _shape(rng)), duration_s=float(rng.uniform(1e-3, 1e-1)))
        for _ in range(60)
    ]
    # Such durations may also leave nothing that grows with the tokens, which is refused.
    with contextlib.suppress(ValueError):
        assert min(astuple(fit(steps).perf_model)) >= 0


def _decode(num_decodes: int, num_context_tokens: int) -> StepSample:
    shape = StepShape((), num_decodes, num_context_tokens)
    return _sample(MODEL, shape)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda step, i: _decode(1 + i, 100 * i + i * i), "same attention, num_chunks"),
        (lambda step, i: _sample(MODEL, StepShape((PrefillChunk(16 + i, 9 * i),))),
         "same num_decodes, num_decode_context_tokens, num_chunks"),
        (lambda step, i: replace(step, num_decode_context_tokens=300 * step.num_decodes),
         "proportional"),
        (lambda step, i: replace(step, duration_s=1.0), "does not grow with num_tokens"),
        (lambda step, i: _sample(replace(MODEL, floor_s=1.0), _shape(np.random.default_rng(i))),
         "does not grow with num_tokens"),
        (lambda step, i: replace(step, duration_s=0.0), "duration_s is positive"),
        (lambda step, i: replace(step, duration_s=float("nan")), "duration_s is positive"),
        (lambda step, i: replace(step, attention=-1.0), "negative"),
        (lambda step, i: replace(step, num_tokens=0), "at least one token"),
    ],
)  # fmt: skip
def test_steps_that_cannot_be_fitted_are_refused(
    change: Callable[[StepSample, int], StepSample], said: str
) -> None:
    steps = [change(step, i) for i, step in enumerate(_steps(90))]
    with pytest.raises(ValueError, match=said):
        fit(steps)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=f"at least {MIN_STEPS} steps, got {MIN_STEPS - 1}"):
        fit(_steps(MIN_STEPS - 1))
