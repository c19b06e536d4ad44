"""How many requests of one recorded stream no schedule of any kind can serve on time.

A linear programme over intervals of time: which share of each prompt is computed in which
interval of its window, how many tokens are decoded in which, and in how many steps. It knows
the whole stream in advance. Every row below is something that each schedule keeps; where a step
or a window sticks out of an interval, the work counts by share of time or as the kinder side
has it. So whatever the intervals, a schedule is a point of the programme, and what it serves
is at most the optimum; finer intervals only bring that closer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from headway.core.batch_state import Floats, Ints
from headway.core.slo import CHECKPOINT_INTERVAL
from headway.sim.bounds.demand import Demand, Gpu, context_read
from headway.sim.bounds.intervals import expanded, interval_edges
from headway.sim.bounds.lp import LinearProgram
from headway.sim.workload import Workload

_SCALE_TOLERANCE = 0.01
# No stream of interest is scaled beyond.
_MAX_SCALE = 2.0**20


def trace_bound(
    workload: Workload, ttft_s: Floats, gpu: Gpu, num_gpus: int, max_intervals: int
) -> float:
    """Requests that can be served on time by strict scoring, out of N.

    GPUs are pooled: `num_gpus` times the time of one, though no prompt is computed by two at
    once. A prefix that an earlier round left behind is taken to be found.

    Args:
        workload: N requests that follow none: of sessions, with the arrivals of some run.
        ttft_s: what each request was promised, (N,).
        gpu: one worker's steps and memory; without drafting.
        num_gpus: workers.
        max_intervals: of time; more are slower and tighter.

    Raises:
        ValueError: a request follows another, or the GPU drafts.
    """
    if (workload.follows >= 0).any():
        raise ValueError("arrivals of rounds depend on the schedule")
    if gpu.drafting.max_tokens:
        raise ValueError("the bound of a recorded stream knows no drafting")
    demand = Demand.of_workload(workload, ttft_s, gpu)
    program = _TraceProgram(workload.arrived_at_s, demand, gpu, num_gpus, max_intervals)
    return program.most_served()


def max_scale(
    workload: Workload,
    ttft_s: Floats,
    gpu: Gpu,
    num_gpus: int,
    attainment_ratio: float,
    max_intervals: int,
) -> float:
    """By how much the stream can be compressed before `attainment_ratio` is out of reach.

    Arrival times are divided by the scale; promises stay as they are. The result, correct to
    1 %, is itself out of reach, so it stays an upper bound; that all larger ones are too is
    taken for granted. 0.0 if no scale will do; infinite if any does.
    """
    needed = attainment_ratio * len(workload) * (1 - 1e-9)

    def in_reach(scale: float) -> bool:
        compressed = replace(workload, arrived_at_s=workload.arrived_at_s / scale)
        return trace_bound(compressed, ttft_s, gpu, num_gpus, max_intervals) >= needed

    low, high = 1.0, 1.0
    while in_reach(high):
        low, high = high, 2 * high
        if high > _MAX_SCALE:
            return np.inf
    while low == high or not in_reach(low):
        low, high = low / 2, low
        if low < 1 / _MAX_SCALE:
            return 0.0
    while high / low > 1 + _SCALE_TOLERANCE:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if in_reach(middle) else (low, middle)
    return high


@dataclass(frozen=True, slots=True)
class _Shares:
    """What part of each request's tokens concerns which interval; parallel arrays."""

    request: Ints
    interval: Ints
    num_tokens: Floats
    num_context: Floats


class _TraceProgram:
    """All rows for N requests, M intervals and J tiers."""

    def __init__(
        self, arrived_at_s: Floats, demand: Demand, gpu: Gpu, num_gpus: int, max_intervals: int
    ) -> None:
        self._arrived_at_s, self._demand, self._gpu = arrived_at_s, demand, gpu
        self._prefill_s = gpu.prefill_s(demand)
        self._prefill_due_at_s = arrived_at_s + demand.ttft_s
        self._last_due_at_s = self._prefill_due_at_s + demand.decode_s
        self._edges_s = interval_edges(
            arrived_at_s, self._prefill_due_at_s, float(self._last_due_at_s.max()), max_intervals
        )
        self._num_intervals = len(self._edges_s) - 1
        self._program = LinearProgram()
        # Not even an idle GPU computes these prompts in time.
        in_time = (self._prefill_s <= demand.ttft_s).astype(np.float64)
        self._served = self._program.columns(len(arrived_at_s), upper=in_time, gain=1.0)
        # Steps of all GPUs that ended by the end of each interval.
        self._steps = self._program.columns(self._num_intervals)
        time_s = num_gpus * np.diff(self._edges_s)
        self._roofs = [self._program.rows(self._num_intervals, time_s) for _ in gpu.roofs]
        self._add_prefills()
        self._add_steps()
        due, released = self._due(), self._released()
        for tier in np.unique(demand.tier):
            self._add_decodes(due, released, demand.tier == tier)

    def most_served(self) -> float:
        x = self._program.solve()
        assert x is not None, "serving nothing keeps all rows"
        return float(x[self._served].sum())

    def _interval_at(self, at_s: Floats, side: str) -> Ints:
        """Interval that holds this instant; an edge counts to the left or the right of it."""
        found = np.searchsorted(self._edges_s, at_s, "left" if side == "left" else "right") - 1
        return np.asarray(found.clip(0, self._num_intervals - 1))

    def _add_prefills(self) -> None:
        """Each served prompt is computed in its window, by one GPU at a time.

        A share is one of the work that the steepest roof sees, attention included. A flatter
        roof sees fewer seconds per token, and is given only that part of the whole, because
        attention need not be spread over the chunks as tokens are.
        """
        program, demand = self._program, self._demand
        first = self._interval_at(self._arrived_at_s, "right")
        last = self._interval_at(self._prefill_due_at_s, "left")
        request, interval = expanded(first, np.maximum(last, first))
        steepest_s = max(roof.token_s for roof in self._gpu.roofs)
        work_s = steepest_s * demand.num_new_tokens + demand.prefill_extra_s
        overlap_s = np.minimum(
            self._edges_s[interval + 1], self._prefill_due_at_s[request]
        ) - np.maximum(self._edges_s[interval], self._arrived_at_s[request])
        with np.errstate(divide="ignore"):
            most = np.minimum(overlap_s.clip(0) / work_s[request], 1.0)
        shares = program.columns(len(request), upper=np.where(work_s[request] > 0, most, 1.0))
        rows = program.rows(len(self._served))
        program.add(rows, self._served, 1.0)
        program.add(rows[request], shares, -1.0)
        for roof, roof_rows in zip(self._gpu.roofs, self._roofs, strict=True):
            part = roof.token_s / steepest_s if steepest_s else 1.0
            program.add(roof_rows[interval], shares, part * work_s[request])

    def _add_steps(self) -> None:
        """Each step takes its fixed time, and decodes a request's tokens one after the other.

        From the earliest end of its prompt to the due time of its last token there are at
        least as many steps, of all GPUs together, as it decodes tokens. A step that sticks out
        of an interval counts there with its share of time, like all it computes.
        """
        program, demand = self._program, self._demand
        rows = program.rows(self._num_intervals - 1)
        program.add(rows, self._steps[:-1], 1.0)
        program.add(rows, self._steps[1:], -1.0)
        for roof, rows in zip(self._gpu.roofs, self._roofs, strict=True):
            self._add_per_step(rows, roof.fixed_s)
        num_tokens = demand.num_decode_tokens.sum(axis=1)
        request = np.flatnonzero(num_tokens)
        before = self._interval_at(self._arrived_at_s + self._prefill_s, "right")[request] - 1
        until = self._interval_at(self._last_due_at_s, "left")[request]
        rows = program.rows(len(request))
        program.add(rows, self._served[request], num_tokens[request])
        program.add(rows, self._steps[until], -1.0)
        later = before >= 0
        program.add(rows[later], self._steps[before[later]], 1.0)
        # Filled by each tier: what a step decodes and reads at most.
        self._slots = program.rows(self._num_intervals)
        self._add_per_step(self._slots, -self._gpu.max_running)
        self._memory = None
        if np.isfinite(self._gpu.num_kv_tokens):
            self._memory = program.rows(self._num_intervals)
            self._add_per_step(self._memory, -self._gpu.num_kv_tokens)

    def _add_per_step(self, rows: Ints, coefficient: float) -> None:
        """Add this times the number of steps in each interval."""
        self._program.add(rows, self._steps, coefficient)
        self._program.add(rows[1:], self._steps[:-1], -coefficient)

    def _due(self) -> _Shares:
        """Tokens that are first asked for by the end of an interval.

        Strict scoring looks at every 10th token and the last one only, so the others are asked
        for with the next of these; and at the start of the interval in which that is due, they
        might still all be missing.
        """
        demand = self._demand
        num_tokens = demand.num_decode_tokens.sum(axis=1)
        # Check-points are counted with the first token, which the prefill yields.
        num_before = num_tokens // CHECKPOINT_INTERVAL + 1
        request, number = expanded(np.zeros_like(num_before), num_before)
        tokens = ((number + 1) * CHECKPOINT_INTERVAL - 1).clip(max=num_tokens[request])
        before = (number * CHECKPOINT_INTERVAL - 1).clip(0, num_tokens[request])
        asked = tokens > before
        request, tokens, before = request[asked], tokens[asked], before[asked]
        thinking = np.minimum(tokens, demand.num_decode_tokens[request, 0])
        due_at_s = (
            self._prefill_due_at_s[request]
            + thinking * demand.tpot_s[request, 0]
            + (tokens - thinking) * demand.tpot_s[request, 1]
        )
        prompt = demand.num_prompt_tokens[request]
        return _Shares(
            request,
            # Rounding must not move a token that is due at an edge to the interval before.
            self._interval_at(due_at_s * (1 + 1e-12), "left"),
            (tokens - before).astype(np.float64),
            context_read(prompt, tokens) - context_read(prompt, before),
        )

    def _released(self) -> _Shares:
        """Tokens that can first be there by the end of an interval: one per shortest step."""
        demand = self._demand
        num_tokens = demand.num_decode_tokens.sum(axis=1)
        start_at_s = self._arrived_at_s + self._prefill_s
        step_s = self._gpu.min_step_s
        first = self._interval_at(start_at_s, "right")
        last = np.maximum(self._interval_at(start_at_s + num_tokens * step_s, "left"), first)
        request, interval = expanded(first, last)
        elapsed_s = np.stack([self._edges_s[interval], self._edges_s[interval + 1]])
        tokens = ((elapsed_s - start_at_s[request]) / step_s).clip(0, num_tokens[request])
        # The last interval that counts holds the end; what rounding left over goes there too.
        tokens[1][interval == last[request]] = num_tokens[request][interval == last[request]]
        # A token begun is read for in part; j(j - 1)/2 would be too little between integers.
        prompt = demand.num_prompt_tokens[request]
        total = demand.num_context_tokens.sum(axis=1)[request]
        context = np.minimum(tokens * (prompt + tokens / 2), total)
        context[1][interval == last[request]] = total[interval == last[request]]
        return _Shares(request, interval, tokens[1] - tokens[0], context[1] - context[0])

    def _add_decodes(self, due: _Shares, released: _Shares, in_tier: Ints) -> None:
        """Tokens of one tier: as a sum, never behind what is due nor ahead of what is released.

        Tokens and the KV they read are two quantities with the same rows each; which request
        a token belongs to is not kept.
        """
        tokens = self._add_flow(due, released, in_tier, "num_tokens")
        context = self._add_flow(due, released, in_tier, "num_context")
        program, gpu = self._program, self._gpu
        program.add(self._slots, tokens, 1.0)
        if self._memory is not None:
            program.add(self._memory, context, 1.0)
        for roof, rows in zip(gpu.roofs, self._roofs, strict=True):
            program.add(rows, tokens, roof.token_s + gpu.sequence_s)
            program.add(rows, context, gpu.context_token_s)

    def _add_flow(self, due: _Shares, released: _Shares, in_tier: Ints, amount: str) -> Ints:
        """Columns of the amount done in each interval."""
        program, num = self._program, self._num_intervals
        done, ahead, waiting = (program.columns(num) for _ in range(3))
        # ahead[i] <= ahead[i - 1] + done[i] - due[i], and it is never negative.
        # waiting[i] <= waiting[i - 1] + released[i] - done[i], likewise.
        for state, shares, sign in ((ahead, due, 1.0), (waiting, released, -1.0)):
            rows = program.rows(num)
            program.add(rows, state, 1.0)
            program.add(rows[1:], state[:-1], -1.0)
            program.add(rows, done, -sign)
            here = in_tier[shares.request]
            program.add(
                rows[shares.interval[here]],
                self._served[shares.request[here]],
                sign * getattr(shares, amount)[here],
            )
        return done
