"""How many workers should prefill and how many decode, and when it is worth changing one's role.

Work is counted as the roofline of core.perf_model has it: a prompt takes its tokens and attention
of a prefill worker's seconds, an output token its share of a decode worker's.

A decode worker that has R tokens per second to yield, each of which takes u of its time beside the
step's own f, runs in steps of t = f + u * B with B = R * t decodes in each, so t = f / (1 - R * u).
That is the pace at which outputs come, which must be within every bound, and by Little's law how
long each keeps its KV: t <= tpot, and with V KV tokens read per second, V * t <= room for KV.
Both are linear in the load: R * u <= 1 - f / tpot, and V * f / room + R * u <= 1. They hold for
the compute side of the roofline, f = fixed_s, and for its memory side, f = floor_s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from headway.core.perf_model import PerfModel

# A prefill worker that is busy for a larger share of the time lets too many prompts wait longer
# than their bounds allow. Not derived: with DistServe's policy on four H100s, of 0.6 and 0.8 this
# found the better split of prefill and decode workers.
PREFILL_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a cluster, per second.

    Attributes:
        prefill_s: seconds of one worker that prompts take.
        decode_compute_s: seconds of one worker that decodes take if compute is what bounds steps.
        decode_memory_s: if memory is; without the floor of each step.
        num_read_tokens: KV tokens that decodes read; times the step, what they hold at once.
        tightest_tpot_s: so often steps must follow each other; infinite without requests.
    """

    prefill_s: float = 0.0
    decode_compute_s: float = 0.0
    decode_memory_s: float = 0.0
    num_read_tokens: float = 0.0
    tightest_tpot_s: float = math.inf

    def plus(self, other: Load, weight: float = 1.0) -> Load:
        """This, and `weight` times the other."""
        return Load(
            self.prefill_s + weight * other.prefill_s,
            self.decode_compute_s + weight * other.decode_compute_s,
            self.decode_memory_s + weight * other.decode_memory_s,
            self.num_read_tokens + weight * other.num_read_tokens,
            min(self.tightest_tpot_s, other.tightest_tpot_s),
        )


def load_of_request(
    model: PerfModel,
    num_prompt_tokens: int,
    num_kept_tokens: int,
    num_output_tokens: float,
    tightest_tpot_s: float,
) -> Load:
    """One such request per second.

    Args:
        model: of a worker.
        num_prompt_tokens: whole prompt.
        num_kept_tokens: leading ones whose KV is there.
        num_output_tokens: expected.
        tightest_tpot_s: of its stages.
    """
    new = num_prompt_tokens - num_kept_tokens
    attention = new * (num_kept_tokens + 0.5 * new)
    context = num_prompt_tokens + 0.5 * num_output_tokens
    memory_s = num_output_tokens * (model.sequence_s + model.context_token_s * context)
    return Load(
        prefill_s=model.token_s * new + model.prefill_attention_s * attention + model.chunk_s,
        decode_compute_s=memory_s + num_output_tokens * model.token_s,
        decode_memory_s=memory_s,
        num_read_tokens=num_output_tokens * context,
        tightest_tpot_s=tightest_tpot_s,
    )


@dataclass(frozen=True, slots=True)
class Split:
    """Workers of each role, and what share of the load they could take this load is."""

    num_prefill: int
    num_decode: int
    prefill_ratio: float
    decode_ratio: float
    kv_ratio: float

    @property
    def worst_ratio(self) -> float:
        """Of the role that is nearest to its limit."""
        return max(self.prefill_ratio, self.decode_ratio, self.kv_ratio)


def split_of(
    load: Load, model: PerfModel, num_kv_tokens: int, num_prefill: int, num_decode: int
) -> Split:
    """How a load fares on so many workers, each of which has room for `num_kv_tokens`."""
    room_ratio = load.num_read_tokens / (num_decode * num_kv_tokens)
    sides = (
        (load.decode_compute_s / num_decode, model.fixed_s),
        (load.decode_memory_s / num_decode, model.floor_s),
    )
    return Split(
        num_prefill,
        num_decode,
        prefill_ratio=load.prefill_s / (PREFILL_SHARE * num_prefill),
        decode_ratio=max(_ratio(busy, own_s, load.tightest_tpot_s) for busy, own_s in sides),
        kv_ratio=max(room_ratio * own_s + busy for busy, own_s in sides),
    )


def _ratio(busy_ratio: float, own_s: float, tpot_s: float) -> float:
    """Share of the tokens that steps of at most `tpot_s`, `own_s` of it their own, can yield."""
    return busy_ratio / (1.0 - own_s / tpot_s) if own_s < tpot_s else math.inf


def best_split(load: Load, model: PerfModel, num_kv_tokens: int, num_workers: int) -> Split:
    """The split of at least two workers whose most loaded role has the most room left.

    Raises:
        ValueError: fewer than two workers.
    """
    if num_workers < 2:
        raise ValueError(f"two roles need two workers, not {num_workers}")
    splits = [
        split_of(load, model, num_kv_tokens, num_prefill, num_workers - num_prefill)
        for num_prefill in range(1, num_workers)
    ]
    return min(splits, key=lambda split: split.worst_ratio)


@dataclass(slots=True)
class LoadMeter:
    """The load of the last while: requests count 1 / e after `memory_s`."""

    memory_s: float = 20.0
    _sum: Load = field(default_factory=Load)
    _started_at_s: float | None = None
    _at_s: float = 0.0
    _seen_at_s: dict[float, float] = field(default_factory=dict)

    def observe(self, request: Load, now_s: float) -> None:
        """Count a request, of any tier and promised or not; `request` as of `load_of_request`."""
        self._age(now_s)
        self._sum = self._sum.plus(request)
        self._seen_at_s[request.tightest_tpot_s] = now_s

    def load(self, now_s: float) -> Load:
        """Per second; tpot bounds not asked for in twice `memory_s` do not count."""
        if self._started_at_s is None:
            return Load()
        self._age(now_s)
        watched_s = self.memory_s * -math.expm1((self._started_at_s - now_s) / self.memory_s)
        oldest_at_s = now_s - 2.0 * self.memory_s
        recent_s = [tpot_s for tpot_s, at_s in self._seen_at_s.items() if at_s >= oldest_at_s]
        tightest = Load(tightest_tpot_s=min(recent_s, default=math.inf))
        return tightest.plus(self._sum, 1.0 / max(watched_s, 1e-9))

    def _age(self, now_s: float) -> None:
        if self._started_at_s is None:
            self._started_at_s = self._at_s = now_s
        weight = math.exp((self._at_s - now_s) / self.memory_s)
        self._at_s = now_s
        # Which bounds were asked for does not fade, it ends: see `load`.
        self._sum = replace(Load().plus(self._sum, weight), tightest_tpot_s=math.inf)


@dataclass(slots=True)
class FlipRule:
    """When one worker should change its role.

    Attributes:
        comfort_ratio: nothing changes while every role has this much room.
        hysteresis_ratio: the worst ratio must fall by this factor,
        hold_s: for this long,
        horizon_s: and win, over this time, more worker seconds than draining the worker costs.
    """

    comfort_ratio: float = 0.7
    hysteresis_ratio: float = 1.1
    hold_s: float = 5.0
    horizon_s: float = 60.0
    _wanted: int = 0
    _since_s: float = 0.0

    def wants(self, now: Split, best: Split, drain_s: dict[int, float], now_s: float) -> int:
        """1 if a decode worker should prefill, -1 if a prefill worker should decode, else 0.

        Args:
            now: the roles as they are.
            best: as of `best_split`, for the same load.
            drain_s: by what would be returned, worker seconds that draining that worker costs.
            now_s: the present.
        """
        more = (best.num_prefill > now.num_prefill) - (best.num_prefill < now.num_prefill)
        won = now.worst_ratio - best.worst_ratio
        is_worth_it = (
            more != 0
            and now.worst_ratio > self.comfort_ratio
            and now.worst_ratio > self.hysteresis_ratio * best.worst_ratio
            and won * (now.num_prefill + now.num_decode) * self.horizon_s > drain_s[more]
        )
        wanted = more if is_worth_it else 0
        if wanted != self._wanted:
            self._wanted, self._since_s = wanted, now_s
        return wanted if wanted and now_s - self._since_s >= self.hold_s else 0

    def changed(self, now_s: float) -> None:
        """A worker changes its role; the question starts again."""
        self._wanted, self._since_s = 0, now_s
