"""Step time as the planner predicts it, and its inverse. Formula: core.perf_model."""

from __future__ import annotations

import math

import numpy as np

from headway.core.batch_state import Record
from headway.core.kernel import kernel


@kernel
def step_s(
    worker: Record,
    num_tokens: int,
    num_decodes: int,
    num_decode_context: int,
    attention: float,
    num_chunks: int,
    num_draft_rounds: int,
    num_drafted: int,
) -> float:
    """Seconds of one step on this WORKER record, corrected by what was measured there.

    Args:
        worker: WORKER record.
        num_tokens: new tokens, drafted ones to verify included.
        num_decodes: sequences that decode.
        num_decode_context: KV tokens these read, summed.
        attention: sum over chunks of p * (h + p / 2), p new tokens after h.
        num_chunks: prefill chunks.
        num_draft_rounds: longest draft of the step.
        num_drafted: drafted tokens, summed.
    """
    if num_tokens == 0:
        return 0.0
    seconds: float = worker.time_ratio * (
        max(worker.floor_s, worker.token_s * num_tokens + worker.fixed_s)
        + worker.sequence_s * num_decodes
        + worker.context_token_s * num_decode_context
        + worker.prefill_attention_s * attention
        + worker.chunk_s * num_chunks
        + worker.draft_floor_s * num_draft_rounds
        + worker.draft_sequence_s * num_drafted
    )
    return seconds


@kernel
def chunk_within(
    worker: Record, time_s: float, num_tokens: int, num_computed: int, num_left: int
) -> int:
    """Largest chunk of one more prompt that a step can take in.

    Closed form of the roofline's inverse: the chunk of p tokens after h costs
    a * p + q * (p * h + p^2 / 2) + n beyond the floor, with a, q, n as in core.perf_model.

    Args:
        worker: WORKER record.
        time_s: what all but the GEMM term of the step leaves of its time, so that
            max(floor, token_s * T + fixed_s) + the chunk's attention and n must fit in it.
        num_tokens: new tokens that the step has already.
        num_computed: tokens of this prompt that are computed.
        num_left: tokens of this prompt that are not.
    """
    left_s = time_s / worker.time_ratio - worker.chunk_s
    if left_s < worker.floor_s:
        return 0
    a = worker.token_s
    half_q = 0.5 * worker.prefill_attention_s
    # The compute side: a * (T + p) + d + q * (p * h + p^2 / 2) <= left.
    b = a + worker.prefill_attention_s * num_computed
    c = left_s - a * num_tokens - worker.fixed_s
    if c <= 0.0:
        return 0
    p = c / b if half_q == 0.0 else (math.sqrt(b * b + 4.0 * half_q * c) - b) / (2.0 * half_q)
    # The memory side: floor + q * (p * h + p^2 / 2) <= left.
    b = worker.prefill_attention_s * num_computed
    c = left_s - worker.floor_s
    p_memory = np.inf
    if half_q > 0.0:
        p_memory = (math.sqrt(b * b + 4.0 * half_q * c) - b) / (2.0 * half_q)
    return int(min(p, p_memory, float(num_left)))
