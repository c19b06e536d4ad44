"""How long the simulator's steps take: measured step times, not the planner's roofline.

t = (interpolated(T) + sequence_s * B + context_token_s * C + prefill_attention_s * Q
     + chunk_s * (number of chunks) + host_s + drafting) * noise
with T, B, C, Q as in core.perf_model, and the curve over T from measured steps, so that a
planner in the simulator is wrong about its steps the way it would be on the device.

Noise depends on the seed, the worker and the number of the step, and on nothing else, so a run
is repeated whatever the order in which steps are asked for.
"""

from __future__ import annotations

import math

import numpy as np

from headway.core.batch_state import Floats, Records
from headway.core.kernel import kernel
from headway.core.planner.step_time import step_s
from headway.profiles import StepTimeConfig

TRUTH = np.dtype(
    [
        # 1: the planner's roofline itself and no noise; all else is then unused.
        ("exact", np.int64),
        ("num_knots", np.int64),
        ("sequence_s", np.float64),
        ("context_token_s", np.float64),
        ("prefill_attention_s", np.float64),
        ("chunk_s", np.float64),
        # What the engine's host adds to every step.
        ("host_s", np.float64),
        # Deviation of log noise. The noise without spikes is 1 on average.
        ("sigma", np.float64),
        # A step is `spike_ratio` times as long with this probability.
        ("spike_probability", np.float64),
        ("spike_ratio", np.float64),
        ("seed", np.int64),
    ]
)


# Streams of `uniform` from here on are the workers' noise; smaller ones are free for others.
_FIRST_NOISE_STREAM = 1 << 40
# Increment of splitmix64.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def exact_truth() -> tuple[Records, Floats, Floats]:
    """As `measured_truth`, of a world that is what the planner believes."""
    truth = np.zeros(1, TRUTH)
    truth["exact"] = 1
    return truth, np.zeros(0), np.zeros(0)


def measured_truth(
    curve: StepTimeConfig,
    *,
    host_s: float,
    sigma: float,
    spike_probability: float,
    spike_ratio: float,
    seed: int,
) -> tuple[Records, Floats, Floats]:
    """TRUTH record, shape (1,), with the knots (tokens) and their times (seconds)."""
    truth = np.zeros(1, TRUTH)
    truth["num_knots"] = len(curve.knots)
    for name in ("sequence_s", "context_token_s", "prefill_attention_s", "chunk_s"):
        truth[name] = getattr(curve, name)
    truth["host_s"] = host_s
    truth["sigma"] = sigma
    truth["spike_probability"] = spike_probability
    truth["spike_ratio"] = spike_ratio
    truth["seed"] = seed
    return truth, np.array(curve.knots, np.float64), np.array(curve.times_s, np.float64)


@kernel
def true_step_s(  # type: ignore[no-untyped-def]
    truth,  # noqa: ANN001
    knots: Floats,
    times: Floats,
    worker,  # noqa: ANN001
    worker_index: int,
    step_number: int,
    num_tokens: int,
    num_decodes: int,
    num_decode_context: int,
    attention: float,
    num_chunks: int,
    num_draft_rounds: int,
    num_drafted: int,
) -> float:
    """Seconds one step takes in the simulated world.

    Args:
        truth: TRUTH record.
        knots: numbers of tokens, ascending; at least `num_knots`.
        times: seconds of the knots.
        worker: WORKER record, for what drafting costs, and for the roofline if exact.
        worker_index: which worker.
        step_number: counts the steps of this worker.
        num_tokens: this and the rest as in `step_s`.
        num_decodes: see `step_s`.
        num_decode_context: see `step_s`.
        attention: see `step_s`.
        num_chunks: see `step_s`.
        num_draft_rounds: see `step_s`.
        num_drafted: see `step_s`.
    """
    if num_tokens == 0:
        return 0.0
    if truth.exact:
        corrected_s = step_s(
            worker,
            num_tokens,
            num_decodes,
            num_decode_context,
            attention,
            num_chunks,
            num_draft_rounds,
            num_drafted,
        )
        return float(corrected_s / worker.time_ratio)
    mean_s = (
        _interpolated_s(knots, times, truth.num_knots, num_tokens)
        + truth.sequence_s * num_decodes
        + truth.context_token_s * num_decode_context
        + truth.prefill_attention_s * attention
        + truth.chunk_s * num_chunks
        + truth.host_s
        + worker.draft_floor_s * num_draft_rounds
        + worker.draft_sequence_s * num_drafted
    )
    return float(mean_s * _noise(truth, worker_index, step_number))


@kernel
def _interpolated_s(knots: Floats, times: Floats, num_knots: int, num_tokens: int) -> float:
    """Linear between knots and beyond the last; constant before the first."""
    if num_tokens <= knots[0]:
        return float(times[0])
    right = 1
    while right < num_knots - 1 and knots[right] < num_tokens:
        right += 1
    slope_s = (times[right] - times[right - 1]) / (knots[right] - knots[right - 1])
    return float(times[right] + slope_s * (num_tokens - knots[right]))


@kernel
def _noise(truth, worker_index: int, step_number: int) -> float:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Log-normal with mean 1 (Box and Muller, 1958), and now and then a spike."""
    stream = _FIRST_NOISE_STREAM + worker_index
    radius = math.sqrt(-2.0 * math.log(1.0 - uniform(truth.seed, stream, 3 * step_number)))
    z = radius * math.cos(2.0 * math.pi * uniform(truth.seed, stream, 3 * step_number + 1))
    noise = math.exp(truth.sigma * z - 0.5 * truth.sigma * truth.sigma)
    if uniform(truth.seed, stream, 3 * step_number + 2) < truth.spike_probability:
        noise *= truth.spike_ratio
    return float(noise)


@kernel
def uniform(seed: int, stream: int, number: int) -> float:
    """A variable in [0, 1) that depends on these three, none negative, and on nothing else.

    Every variable is an output of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), started
    where an output for the seed and the stream puts it.
    """
    state = _mixed(_mixed(np.uint64(seed) + _GAMMA) + np.uint64(stream) * _GAMMA)
    bits = _mixed(state + (np.uint64(number) + np.uint64(1)) * _GAMMA)
    return float(bits >> np.uint64(11)) * 2.0**-53


@kernel
def _mixed(bits: np.uint64) -> np.uint64:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
