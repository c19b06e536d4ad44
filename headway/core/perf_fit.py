"""Fits the roofline of core.perf_model to measured steps. Offline: needs scipy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from headway.core.batch_state import Floats
from headway.core.perf_model import PerfModel

# Seven coefficients, and a third of the steps only checks them.
MIN_STEPS = 30
_HELD_OUT_EVERY = 3
# Four times as many gave the same models on 3000 steps from each of six truths in profiles/.
_NUM_STARTS = 16
_MAX_ROUNDS = 50
_DRAFT_TERMS = ("num_draft_rounds", "num_drafted")
_TERMS = (
    *("num_tokens", "num_decodes", "num_decode_context_tokens", "attention", "num_chunks"),
    *_DRAFT_TERMS,
)
_NUM_MODEL = len(PerfModel.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class StepSample:
    """One measured step. Terms as in `PerfModel`.

    Attributes:
        num_tokens: T, new tokens, decodes included.
        num_decodes: B.
        num_decode_context_tokens: C, KV tokens that the decodes read, summed.
        attention: Q, sum over prefill chunks of p * (h + p / 2).
        num_chunks: prefill chunks.
        num_draft_rounds: longest draft that the step verifies, or would make.
        num_drafted: drafted tokens, summed; they count in `num_tokens` too.
    """

    duration_s: float
    num_tokens: int
    num_decodes: int
    num_decode_context_tokens: int
    attention: float
    num_chunks: int
    num_draft_rounds: int = 0
    num_drafted: int = 0


@dataclass(frozen=True, slots=True)
class FittedModel:
    """A perf model, and its relative errors |predicted / measured - 1| on steps it never saw.

    Attributes:
        draft_floor_s: per round of drafting; 0 when no step had drafts.
        draft_sequence_s: per drafted token, on top of `token_s`; 0 when no step had drafts.
        num_fitted, num_held_out: steps of each kind.
        r2: coefficient of determination of the held-out durations, in seconds.
    """

    perf_model: PerfModel
    draft_floor_s: float
    draft_sequence_s: float
    num_fitted: int
    num_held_out: int
    r2: float
    mean_error_ratio: float
    p50_error_ratio: float
    p90_error_ratio: float
    p99_error_ratio: float


def fit(steps: Sequence[StepSample], held_out: Sequence[StepSample] = ()) -> FittedModel:
    """Fit by non-negative least squares of the relative error, and check on other steps.

    Which side of max(floor_s, token_s * T + fixed_s) a step is on depends on T alone, as
    token_s >= 0. So each round assigns the steps by T, solves the then linear problem, and the
    next round assigns by the new coefficients, until nothing changes; the starts are thresholds
    spread over the measured T. The best model of all rounds wins. The same steps in the same
    order give the same model.

    Args:
        steps: measured.
        held_out: steps to check on; without any it is every third of `steps`.

    Raises:
        ValueError: fewer than MIN_STEPS steps in all, a bad value, or steps too much alike to tell
            the coefficients apart.
    """
    num_steps = len(steps) + len(held_out)
    if num_steps < MIN_STEPS:
        raise ValueError(f"a fit needs at least {MIN_STEPS} steps, got {num_steps}")
    terms, duration_s = _arrays([*steps, *held_out])
    is_held_out = np.arange(num_steps) >= len(steps)
    if not held_out:
        is_held_out = np.arange(num_steps) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    fitted_terms, fitted_s = terms[~is_held_out], duration_s[~is_held_out]
    _refuse_degenerate(fitted_terms)
    coefficients = _best_roofline(fitted_terms, fitted_s)
    _refuse_flat(coefficients, fitted_terms, fitted_s)

    measured_s = duration_s[is_held_out]
    errors_s = _predict(coefficients, terms[is_held_out]) - measured_s
    errors = np.abs(errors_s / measured_s)
    variation = float(np.sum((measured_s - measured_s.mean()) ** 2))
    p50, p90, p99 = (float(value) for value in np.quantile(errors, (0.5, 0.9, 0.99)))
    return FittedModel(
        perf_model=PerfModel(*(float(value) for value in coefficients[:_NUM_MODEL])),
        draft_floor_s=float(coefficients[_NUM_MODEL]),
        draft_sequence_s=float(coefficients[_NUM_MODEL + 1]),
        num_fitted=len(fitted_s),
        num_held_out=len(measured_s),
        r2=1.0 - float(np.sum(errors_s**2)) / variation,
        mean_error_ratio=float(errors.mean()),
        p50_error_ratio=p50,
        p90_error_ratio=p90,
        p99_error_ratio=p99,
    )


def predicted_s(
    model: PerfModel, draft_floor_s: float, draft_sequence_s: float, steps: Sequence[StepSample]
) -> Floats:
    """What steps take by a model, shape (num_steps,)."""
    coefficients = [getattr(model, name) for name in model.__dataclass_fields__]
    terms, _ = _arrays(steps)
    return _predict(np.array([*coefficients, draft_floor_s, draft_sequence_s]), terms)


def median_sample(repeats: Sequence[StepSample]) -> StepSample:
    """One step in place of equal ones, whose contexts may differ by a few tokens."""
    return replace(
        repeats[len(repeats) // 2],
        duration_s=float(np.median([step.duration_s for step in repeats])),
    )


def _arrays(steps: Sequence[StepSample]) -> tuple[Floats, Floats]:
    """Terms, shape (N, 7), in the order of _TERMS; durations in seconds, shape (N,)."""
    terms = np.array([[getattr(step, name) for name in _TERMS] for step in steps], dtype=np.float64)
    duration_s = np.array([s.duration_s for s in steps], dtype=np.float64)
    if not (np.isfinite(terms).all() and (terms >= 0).all() and (terms[:, 0] > 0).all()):
        raise ValueError("every step has at least one token and no negative or infinite term")
    if not (np.isfinite(duration_s).all() and (duration_s > 0).all()):
        raise ValueError("every duration_s is positive and finite")
    return terms, duration_s


def _refuse_degenerate(terms: Floats) -> None:
    # Without speculation the last two are 0 throughout, and so are their coefficients.
    names = [
        name
        for name, column in zip(_TERMS, terms.T, strict=True)
        if name not in _DRAFT_TERMS or column.any()
    ]
    terms = terms[:, : len(names)]
    constant = [name for name, column in zip(names, terms.T, strict=True) if np.ptp(column) == 0]
    if constant:
        raise ValueError(f"these steps all have the same {', '.join(constant)}")
    with_constant = np.column_stack((np.ones(len(terms)), terms / terms.max(axis=0)))
    if np.linalg.matrix_rank(with_constant, tol=1e-6 * len(terms) ** 0.5) < with_constant.shape[1]:
        raise ValueError(f"of {', '.join(names)}, some are proportional in all these steps")


def _refuse_flat(coefficients: Floats, terms: Floats, duration_s: Floats) -> None:
    """A model that never saw the compute side would call large steps free."""
    floor_s, token_s, fixed_s = coefficients[:3]
    largest_s = token_s * terms[:, 0].max()
    if largest_s < 0.01 * np.median(duration_s) or largest_s + fixed_s <= floor_s:
        raise ValueError("the time of these steps does not grow with num_tokens: add larger steps")


def _predict(coefficients: Floats, terms: Floats) -> Floats:
    """`PerfModel.step_s` of many steps, and what drafting adds.

    The coefficients are in the order of the model's fields; the two of drafting follow.
    """
    floor_s, token_s, fixed_s = coefficients[:3]
    gemm_s = np.maximum(floor_s, token_s * terms[:, 0] + fixed_s)
    return np.asarray(gemm_s + terms[:, 1:] @ coefficients[3:])


def _best_roofline(terms: Floats, duration_s: Floats) -> Floats:
    """Coefficients as in `_predict`, shape (9,)."""
    num_tokens = terms[:, 0]
    best, best_loss = np.zeros(_NUM_MODEL + len(_DRAFT_TERMS)), np.inf
    for threshold in np.quantile(num_tokens, np.arange(_NUM_STARTS) / _NUM_STARTS):
        on_memory_side = num_tokens <= threshold
        for _ in range(_MAX_ROUNDS):
            coefficients = _solve(terms, duration_s, on_memory_side)
            loss = float(np.sum((_predict(coefficients, terms) / duration_s - 1.0) ** 2))
            if loss < best_loss:
                best, best_loss = coefficients, loss
            floor_s, token_s, fixed_s = coefficients[:3]
            assigned = token_s * num_tokens + fixed_s <= floor_s
            if (assigned == on_memory_side).all():
                break
            on_memory_side = assigned
    return best


def _solve(terms: Floats, duration_s: Floats, on_memory_side: np.ndarray) -> Floats:
    """Non-negative least squares of predicted / measured = 1, the side of each step given."""
    on_compute_side = ~on_memory_side
    columns = np.column_stack(
        (on_memory_side, on_compute_side * terms[:, 0], on_compute_side, terms[:, 1:])
    )
    relative = columns / duration_s[:, None]
    # The terms differ by ten orders of magnitude: scaled to length 1, the solver sees them alike.
    lengths = np.linalg.norm(relative, axis=0)
    lengths[lengths == 0.0] = 1.0
    solution, _ = nnls(relative / lengths, np.ones(len(duration_s)))
    return np.asarray(solution / lengths, dtype=np.float64)
