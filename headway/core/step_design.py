"""Which steps to measure, so that a perf model can be fitted to them: a Latin hypercube.

Each of the ranges (new tokens, contexts, decodes, ...) is cut into as many equally likely parts
as there are points of one kind, and each part is used once, in an order of its own per range
(McKay, Beckman and Conover, Technometrics 1979). So few points cover every range, and no two
terms of the model grow together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from headway.core.batch_state import Floats
from headway.core.perf_model import PrefillChunk

# Shares of steps that only prefill, only decode, or do both.
_PREFILL_RATIO, _DECODE_RATIO = 0.25, 0.4
_MAX_CHUNKS = 3
_MIN_CHUNK_TOKENS = 4
_MIN_DECODE_CONTEXT_TOKENS = 16
# Share of chunks that begin their prompt.
_FIRST_CHUNK_RATIO = 0.25
# vLLM keeps a block for itself, and a last block may be partly filled.
_USABLE_BLOCKS_RATIO = 0.9
_NUM_RANGES = 6


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What one engine can have in a step.

    Attributes:
        max_drafted: tokens drafted per decode; 0 without speculation.
    """

    max_step_tokens: int
    max_num_running: int
    max_model_len: int
    num_kv_blocks: int
    kv_block_size: int
    max_drafted: int = 0


@dataclass(frozen=True, slots=True)
class StepPoint:
    """A step to be measured.

    Attributes:
        decode_context_tokens: of each decode.
        num_drafted: tokens to verify per decode, on top of its own.
    """

    chunks: tuple[PrefillChunk, ...]
    decode_context_tokens: tuple[int, ...]
    num_drafted: int

    @property
    def num_tokens(self) -> int:
        """New tokens of the step."""
        num_decode_tokens = len(self.decode_context_tokens) * (1 + self.num_drafted)
        return num_decode_tokens + sum(chunk.num_tokens for chunk in self.chunks)


def design(
    limits: StepLimits, num_points: int, num_steps: int, generator: np.random.Generator
) -> list[StepPoint]:
    """Points of all kinds in random order, so that a drift of the machine hits all alike.

    Args:
        limits: every point keeps within them, for as many steps as are made of it.
        num_points: how many.
        num_steps: made of each point; its decodes grow meanwhile.
        generator: decides; the same gives the same points.
    """
    num_prefill = round(_PREFILL_RATIO * num_points)
    num_decode = round(_DECODE_RATIO * num_points)
    points: list[StepPoint] = []
    for num, prefills, decodes in (
        (num_prefill, True, False),
        (num_decode, False, True),
        (num_points - num_prefill - num_decode, True, True),
    ):
        points += [
            _point(limits, num_steps, position, generator, prefills=prefills, decodes=decodes)
            for position in _latin_hypercube(num, generator)
        ]
    return [points[index] for index in generator.permutation(len(points))]


def _latin_hypercube(num: int, generator: np.random.Generator) -> Floats:
    """Positions in [0, 1), shape (num, _NUM_RANGES)."""
    parts = np.column_stack([generator.permutation(num) for _ in range(_NUM_RANGES)])
    return np.asarray((parts + generator.random(parts.shape)) / max(num, 1))


def _point(
    limits: StepLimits,
    num_steps: int,
    position: Floats,
    generator: np.random.Generator,
    *,
    prefills: bool,
    decodes: bool,
) -> StepPoint:
    tokens_at, offset_at, decodes_at, context_at, chunks_at, drafted_at = position
    num_drafted = int(drafted_at * (limits.max_drafted + 1)) if decodes else 0
    room = limits.max_step_tokens - (_MIN_CHUNK_TOKENS if prefills else 0)
    max_decodes = min(limits.max_num_running - prefills, room // (1 + num_drafted))
    # Evenly, unlike tokens and contexts: the model is there for workers that are full.
    num_decodes = 1 + int(decodes_at * max(1, max_decodes)) if decodes else 0
    max_growth = num_steps * (1 + num_drafted)
    contexts: tuple[int, ...] = ()
    if decodes:
        longest = limits.max_model_len - max_growth
        typical = _between(_MIN_DECODE_CONTEXT_TOKENS, longest, context_at)
        spread = generator.uniform(0.5, 1.5, num_decodes)
        contexts = tuple(int(max(1, min(typical * ratio, longest))) for ratio in spread)
    chunks: tuple[PrefillChunk, ...] = ()
    if prefills:
        # All of it may become one chunk, which its prompt's output must follow.
        most = min(
            limits.max_step_tokens - num_decodes * (1 + num_drafted), limits.max_model_len - 1
        )
        num_tokens = _between(_MIN_CHUNK_TOKENS, most, tokens_at)
        num_chunks = min(
            1 + int(chunks_at * _MAX_CHUNKS),
            num_tokens // _MIN_CHUNK_TOKENS,
            limits.max_num_running - num_decodes,
        )
        sizes = _split(num_tokens, num_chunks, generator)
        # The first chunk follows the hypercube; the others are as they fall.
        offsets_at = (offset_at, *generator.random(num_chunks - 1))
        chunks = tuple(
            PrefillChunk(size, _offset(limits.max_model_len - size - 1, at))
            for size, at in zip(sizes, offsets_at, strict=True)
        )
    return _within_memory(StepPoint(chunks, contexts, num_drafted), limits, max_growth)


def _between(least: int, most: int, at: float) -> int:
    """Evenly on a logarithmic scale."""
    return min(most, round(least * math.exp(at * math.log(max(1.0, most / least)))))


def _split(num_tokens: int, num_parts: int, generator: np.random.Generator) -> list[int]:
    """Parts of any sizes, none below _MIN_CHUNK_TOKENS."""
    free = num_tokens - num_parts * _MIN_CHUNK_TOKENS
    cuts = np.sort(generator.integers(0, free, size=num_parts - 1, endpoint=True))
    return [int(part) + _MIN_CHUNK_TOKENS for part in np.diff((0, *cuts, free))]


def _offset(most: int, at: float) -> int:
    """Tokens computed before a chunk: none, or any number alike."""
    if at < _FIRST_CHUNK_RATIO:
        return 0
    return int(most * (at - _FIRST_CHUNK_RATIO) / (1.0 - _FIRST_CHUNK_RATIO))


def _within_memory(point: StepPoint, limits: StepLimits, max_growth: int) -> StepPoint:
    """The point with contexts shortened, all by the same ratio, until its KV fits."""
    ratio = 1.0
    while True:
        chunks = tuple(
            PrefillChunk(chunk.num_tokens, int(chunk.num_context_tokens * ratio))
            for chunk in point.chunks
        )
        contexts = tuple(max(1, int(num * ratio)) for num in point.decode_context_tokens)
        lengths = [chunk.num_tokens + chunk.num_context_tokens for chunk in chunks]
        lengths += [num + max_growth for num in contexts]
        num_blocks = sum(-(-length // limits.kv_block_size) for length in lengths)
        if num_blocks <= _USABLE_BLOCKS_RATIO * limits.num_kv_blocks:
            return StepPoint(chunks, contexts, point.num_drafted)
        if ratio < 1e-3:
            raise ValueError(
                f"{limits.num_kv_blocks} KV blocks are too few for {len(lengths)} requests"
            )
        ratio *= 0.9
