"""What a request needs at least, and what a step takes at least.

Both bounds count only what no schedule can avoid: the new tokens, the attention over them and
one chunk of each prompt, and each output token's place in some step and its read of the KV
before it. Recomputation, rejected drafts, block rounding and waiting are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from headway.core.batch_state import Floats, Ints
from headway.core.perf_model import PerfModel
from headway.sim.workload import Workload


@dataclass(frozen=True, slots=True)
class Roof:
    """A step of T new tokens takes at least fixed_s + token_s * T, before attention."""

    fixed_s: float
    token_s: float


@dataclass(frozen=True, slots=True)
class Drafting:
    """Speculation: up to `max_tokens` drafted tokens per sequence and step.

    Attributes:
        acceptance_ratio: of each drafted token, given that those before it were accepted.
        floor_s: per step and drafted token; `sequence_s`: per sequence and drafted token.
    """

    max_tokens: int
    acceptance_ratio: float
    floor_s: float
    sequence_s: float

    def tokens_per_step(self, num_drafted: Ints) -> Floats:
        """Expected output tokens per sequence and step: 1 + p + ... + p^l."""
        p = self.acceptance_ratio
        return np.asarray(sum(p**i * (num_drafted >= i) for i in range(self.max_tokens + 1)))


NO_DRAFTING = Drafting(max_tokens=0, acceptance_ratio=0.0, floor_s=0.0, sequence_s=0.0)


@dataclass(frozen=True, slots=True)
class Gpu:
    """Lower bounds of one worker's steps, and its memory.

    A step takes at least (the highest of `roofs`) + the other terms of core.perf_model.

    Attributes:
        num_kv_tokens: that fit in memory; may be infinite.
        max_running: sequences in one step.
    """

    roofs: tuple[Roof, ...]
    sequence_s: float
    context_token_s: float
    prefill_attention_s: float
    chunk_s: float
    num_kv_tokens: float = math.inf
    max_running: int = 512
    drafting: Drafting = NO_DRAFTING

    @classmethod
    def of_perf_model(
        cls,
        perf: PerfModel,
        *,
        host_s: float = 0.0,
        num_kv_tokens: float = math.inf,
        max_running: int = 512,
        drafting: Drafting = NO_DRAFTING,
    ) -> Gpu:
        """Of a device whose steps take what the roofline says, and `host_s` each on top."""
        return cls(
            roofs=(
                Roof(perf.floor_s + host_s, 0.0),
                Roof(perf.fixed_s + host_s, perf.token_s),
            ),
            sequence_s=perf.sequence_s,
            context_token_s=perf.context_token_s,
            prefill_attention_s=perf.prefill_attention_s,
            chunk_s=perf.chunk_s,
            num_kv_tokens=num_kv_tokens,
            max_running=max_running,
            drafting=drafting,
        )

    def prefill_s(self, demand: Demand) -> Floats:
        """Seconds each prompt takes alone in one step: no schedule computes it sooner. (N,)."""
        matrix_s = np.max(
            [roof.fixed_s + roof.token_s * demand.num_new_tokens for roof in self.roofs], axis=0
        )
        return np.asarray(matrix_s + demand.prefill_extra_s)

    @property
    def min_step_s(self) -> float:
        """The shortest step that decodes."""
        return max(roof.fixed_s + roof.token_s for roof in self.roofs) + self.sequence_s


def roofs_of_curve(num_tokens: Floats, times_s: Floats, *, host_s: float = 0.0) -> tuple[Roof, ...]:
    """The lines under a measured curve that goes on straight after its last knot.

    They are the lower convex hull, so no line is above the curve anywhere; what the curve has
    above its hull is given away.
    """
    far = 100.0 * num_tokens[-1]
    last_slope_s = (times_s[-1] - times_s[-2]) / (num_tokens[-1] - num_tokens[-2])
    tokens = np.append(num_tokens, far)
    # More tokens never take less: the largest non-decreasing curve below this one.
    times = np.minimum.accumulate(
        np.append(times_s, times_s[-1] + last_slope_s * (far - num_tokens[-1]))[::-1]
    )[::-1]
    roofs: list[Roof] = []
    at = 0
    while at < len(tokens) - 1:
        slopes_s = (times[at + 1 :] - times[at]) / (tokens[at + 1 :] - tokens[at])
        slope_s = float(slopes_s.min())
        roofs.append(Roof(float(times[at] - slope_s * tokens[at]) + host_s, slope_s))
        at += 1 + int(np.flatnonzero(slopes_s == slopes_s.min())[-1])
    return tuple(roofs)


@dataclass(frozen=True, slots=True)
class Demand:
    """Least work of N requests. Arrays of two columns are per stage: thinking, answer.

    Attributes:
        num_new_tokens: prompt tokens without the cached prefix, which is taken to be found.
        prefill_extra_s: attention over the prompt, and one chunk.
        num_decode_tokens: output tokens after the first, which the prefill yields, (N, 2).
        num_context_tokens: KV tokens that these read, summed, (N, 2).
        tpot_s: their pace, (N, 2).
        ttft_s: promised from arrival to first token.
    """

    tier: Ints
    num_prompt_tokens: Ints
    num_new_tokens: Ints
    prefill_extra_s: Floats
    num_decode_tokens: Ints
    num_context_tokens: Floats
    tpot_s: Floats
    ttft_s: Floats

    @classmethod
    def of_workload(cls, workload: Workload, ttft_s: Floats, gpu: Gpu) -> Demand:
        """Of all requests of a workload.

        Args:
            workload: N requests.
            ttft_s: what each was promised, slow-down resolved, (N,).
            gpu: whose attention times count.
        """
        prompt, output = workload.num_prompt_tokens, workload.num_output_tokens
        # The last prompt token is computed even if all others are found in the cache.
        new = np.maximum(prompt - workload.num_prefix_tokens, 1)
        attention = new * (prompt - new + new / 2)
        # The first token has no gap before it, so the stage it is in has one less.
        thinking = np.maximum(np.minimum(workload.num_thinking_tokens, output) - 1, 0)
        decode = np.column_stack([thinking, output - 1 - thinking])
        stages = [tier.slo.stages for tier in workload.tiers]
        paces_s = np.array([(stage[0].tpot_s, stage[-1].tpot_s) for stage in stages])
        return cls(
            tier=workload.tier,
            num_prompt_tokens=prompt,
            num_new_tokens=new,
            prefill_extra_s=gpu.prefill_attention_s * attention + gpu.chunk_s,
            num_decode_tokens=decode,
            num_context_tokens=np.column_stack(
                [
                    context_read(prompt, decode[:, 0]),
                    context_read(prompt + decode[:, 0], decode[:, 1]),
                ]
            ),
            tpot_s=paces_s[workload.tier],
            ttft_s=ttft_s,
        )

    @property
    def decode_s(self) -> Floats:
        """From the first token's due time to the last one's, (N,)."""
        return np.asarray((self.num_decode_tokens * self.tpot_s).sum(axis=1))


def context_read(num_before: Ints, num_tokens: Ints) -> Floats:
    """KV tokens read by `num_tokens` decodes of which the first reads `num_before`."""
    return np.asarray(num_tokens * (num_before + (num_tokens - 1) / 2), np.float64)
