"""What a worker's measured step times say about its perf model, learned online.

State, over steps n with x = log(measured / predicted), one RESIDUAL record per worker:

    e = x - m, limited to +-3 * max(sqrt(v), 0.02)
    m += g_m * e,                running mean, g_m = 1 / min(n + 3, 30)
    v += g_v * (e^2 - v),        running variance, g_v = 1 / min(n + 3, 100)
    c += g_v * (e * e' - c),     running covariance with e' of the step before

The limit is Huber's (Robust Estimation of a Location Parameter, 1964): one step five times too
long counts like one at three deviations, while a lasting change widens v and passes.

Of a sum of k steps of about equal length, the part of the residual that steps have in common
(the model is wrong for this mix of shapes) does not average out, the rest does; m itself is
known only as well as its g_m allows. Variance of the sum's relative error:

    2 * c' + (v - c') * (1 / k + g_m / (2 - g_m)),  c' = c within [0, v]

from the variance of a mean of equally correlated terms, plus that of an exponentially weighted
mean (S. W. Roberts, Control Chart Tests Based on Geometric Moving Averages, 1959). The common
part counts twice: what m has not followed yet, and what moves before the sum ends.
"""

from __future__ import annotations

import math

import numpy as np

from headway.core.batch_state import Records
from headway.core.kernel import kernel

RESIDUAL = np.dtype(
    [
        ("mean_log_ratio", np.float64),
        ("variance", np.float64),
        ("covariance", np.float64),
        # e of the newest step.
        ("last_deviation", np.float64),
        ("num_steps", np.int64),
    ]
)

# One-sided, of a normal distribution.
DEVIATIONS_95 = 1.645
DEVIATIONS_99 = 2.326

# Before the first step: the model may be 10 % off (7 % twice), and steps vary by 5 % around that.
_COMMON_DEVIATION = 0.07
_STEP_DEVIATION = 0.05

# What is believed before the first step weighs as much as so many steps.
_PRIOR_STEPS = 3
# A spread takes longer to know than a mean, and changes less often.
_MEAN_MEMORY_STEPS = 30
_SPREAD_MEMORY_STEPS = 100

_LIMIT_DEVIATIONS = 3.0
# However steady a worker was, a change of up to 6 % is taken in whole.
_LEAST_DEVIATION = 0.02


def new_residuals(num_workers: int) -> Records:
    """RESIDUAL records, shape (num_workers,), of workers nothing was measured on yet."""
    residuals = np.zeros(num_workers, RESIDUAL)
    residuals["covariance"] = _COMMON_DEVIATION**2
    residuals["variance"] = _COMMON_DEVIATION**2 + _STEP_DEVIATION**2
    return residuals


@kernel
def update_residual(state, predicted_s: float, measured_s: float) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Take in one step. Steps without a positive time say nothing and are left out.

    Args:
        state: RESIDUAL record, changed in place.
        predicted_s: by the profile, before any correction (`time_ratio` of WORKER being 1).
        measured_s: what the step took.
    """
    if not (predicted_s > 0.0 and 0.0 < measured_s < np.inf):
        return
    limit = _LIMIT_DEVIATIONS * max(math.sqrt(state.variance), _LEAST_DEVIATION)
    deviation = math.log(measured_s / predicted_s) - state.mean_log_ratio
    deviation = min(max(deviation, -limit), limit)
    gain = 1.0 / min(state.num_steps + _PRIOR_STEPS, _SPREAD_MEMORY_STEPS)
    state.covariance += gain * (deviation * state.last_deviation - state.covariance)
    state.variance += gain * (deviation * deviation - state.variance)
    state.mean_log_ratio += _mean_gain(state.num_steps) * deviation
    state.last_deviation = deviation
    state.num_steps += 1


@kernel
def _mean_gain(num_steps: int) -> float:
    return 1.0 / min(num_steps + _PRIOR_STEPS, _MEAN_MEMORY_STEPS)


@kernel
def time_ratio(state) -> float:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Measured / predicted time of a typical step; 1 before the first."""
    return math.exp(state.mean_log_ratio)


@kernel
def guard_ratio(state, num_steps: float, num_deviations: float) -> float:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Factor on top of `time_ratio` that a sum of step times stays below.

    Args:
        state: RESIDUAL record.
        num_steps: k, steps of about equal length in the sum; at least 1.
        num_deviations: how sure, for example DEVIATIONS_95.
    """
    common = min(max(state.covariance, 0.0), state.variance)
    own = state.variance - common
    gain = _mean_gain(state.num_steps)
    variance = 2.0 * common + own * (1.0 / num_steps + gain / (2.0 - gain))
    # own / 2: the mean of a log-normal variable is above its median, the more steps the surer.
    return math.exp(num_deviations * math.sqrt(variance) + 0.5 * own)
