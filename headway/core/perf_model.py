"""How long one engine step takes, as a function of what it computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Part of a prompt in one step: new tokens, and tokens whose KV exists already."""

    num_tokens: int
    num_context_tokens: int


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one step computes.

    Attributes:
        chunks: the prefill chunks.
        num_decodes: sequences that decode one token each.
        num_decode_context_tokens: KV tokens these read, summed.
    """

    chunks: tuple[PrefillChunk, ...] = ()
    num_decodes: int = 0
    num_decode_context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PerfModel:
    """Roofline of one (model, device, engine), fitted to measured steps.

    step = max(floor_s, token_s * T + fixed_s) + sequence_s * B + context_token_s * C
         + prefill_attention_s * Q + chunk_s * (number of chunks)
    with T new tokens, B decodes, C decode context tokens, Q = sum of p * (h + p / 2) over
    chunks of p tokens with h before them. Q over a prompt does not depend on the chunking.

    Source: the form follows the max-of-linear-terms model of SLOs-Serve (arXiv 2504.08784),
    with attention as two separate linear terms.
    """

    floor_s: float
    token_s: float
    fixed_s: float
    sequence_s: float
    context_token_s: float
    prefill_attention_s: float
    chunk_s: float

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must not be negative, got {value}")

    def step_s(self, shape: StepShape) -> float:
        """Seconds one step of this shape takes."""
        num_tokens = shape.num_decodes + sum(chunk.num_tokens for chunk in shape.chunks)
        if num_tokens == 0:
            return 0.0
        attention = sum(
            chunk.num_tokens * (chunk.num_context_tokens + chunk.num_tokens / 2)
            for chunk in shape.chunks
        )
        return (
            max(self.floor_s, self.token_s * num_tokens + self.fixed_s)
            + self.sequence_s * shape.num_decodes
            + self.context_token_s * shape.num_decode_context_tokens
            + self.prefill_attention_s * attention
            + self.chunk_s * len(shape.chunks)
        )

    def prefill_s(self, num_tokens: int, num_context_tokens: int, max_step_tokens: int) -> float:
        """Seconds to prefill `num_tokens` after `num_context_tokens`, alone, in largest chunks."""
        total_s = 0.0
        while num_tokens > 0:
            num_chunk_tokens = min(num_tokens, max_step_tokens)
            chunk = PrefillChunk(num_chunk_tokens, num_context_tokens)
            total_s += self.step_s(StepShape(chunks=(chunk,)))
            num_context_tokens += num_chunk_tokens
            num_tokens -= num_chunk_tokens
        return total_s

    def decode_step_s(self, context_token_counts: Sequence[int]) -> float:
        """Seconds of a step that decodes one token for each sequence of these lengths."""
        return self.step_s(
            StepShape(
                num_decodes=len(context_token_counts),
                num_decode_context_tokens=sum(context_token_counts),
            )
        )

    def scaled(self, ratio: float) -> PerfModel:
        """The same device, slower by `ratio`."""
        return PerfModel(*(getattr(self, name) * ratio for name in self.__dataclass_fields__))
