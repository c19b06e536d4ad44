"""How many requests per second no steady schedule of any kind can exceed.

A linear programme over rates, as if requests were a fluid: how often steps of each length are
run, and what share of the work of each kind such steps carry. It knows every request in
advance, waits for nothing, and rejects what suits it least. Every row below is something that
each schedule keeps, so a schedule is a point of the programme and its rate at most the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headway.core.batch_state import Floats, Ints
from headway.sim.bounds.decode_classes import DecodeClasses
from headway.sim.bounds.demand import Demand, Gpu
from headway.sim.bounds.lp import LinearProgram
from headway.sim.workload import Workload

# Neighbouring step lengths of the grid; it matters for the pace rows only.
_GRID_RATIO = 1.1
# Steps this many times the slowest pace save nothing worth telling apart.
_LONGEST_STEP_RATIO = 4.0


@dataclass(frozen=True, slots=True)
class Split:
    """GPUs that only prefill, and GPUs that only decode."""

    num_prefill: int
    num_decode: int


def fluid_bound(
    workload: Workload,
    ttft_s: Floats,
    gpu: Gpu,
    attainment_ratio: float,
    *,
    even_pace: bool,
    split: Split | None = None,
) -> float:
    """Requests asked per second and GPU of which `attainment_ratio` can be served on time.

    With `even_pace`, each GPU decodes its sequences at their TPOT all the time: steps come at
    least every TPOT of the strictest sequence on it (evaluation, LP-1). That is how a steady
    engine runs, and mean TPOT is scored; but a schedule that decodes ahead of the demand line
    and then pauses is outside it. Without (LP-0), a request only has to get its tokens between
    arrival and the due time of its last one, which both ways of scoring ask; this is the value
    to hold a measured capacity against. Both describe an endless run: one that is short beside
    the longest request can exceed them by the work it still has left at its end.

    Requests are not averaged over buckets: each has a variable of its own for the share of it
    that is served, so the rejected ones are the best choice and not the best bucket. Why the
    programme is never tighter than a schedule is said at each group of rows.

    Args:
        workload: the sample that requests are drawn from; arrivals are not looked at.
        ttft_s: what each request was promised, (N,). Those whose prompt alone takes longer
            count as missed.
        gpu: one worker's steps and memory.
        attainment_ratio: served on time, of those asked.
        even_pace: see above.
        split: GPUs of either role; None: any GPU may do both.

    Returns:
        0.0 if the attainment is out of reach at any rate.
    """
    demand = Demand.of_workload(workload, ttft_s, gpu)
    program = _FluidProgram(demand, gpu, even_pace=even_pace, split=split)
    gpu_s = program.least_gpu_s(attainment_ratio)
    return len(workload) / gpu_s if gpu_s else 0.0


@dataclass(frozen=True, slots=True)
class _Steps:
    """S kinds of steps: on which type of GPU, between which lengths, with how long drafts."""

    gpu_type: Ints
    from_s: Floats
    to_s: Floats
    num_drafted: Ints

    @classmethod
    def of_grid(cls, num_types: int, edges_s: Floats, max_drafted: int) -> _Steps:
        gpu_type, at, num_drafted = (
            part.ravel()
            for part in np.meshgrid(
                np.arange(num_types),
                np.arange(len(edges_s) - 1),
                np.arange(max_drafted + 1),
                indexing="ij",
            )
        )
        return cls(gpu_type, edges_s[at], edges_s[at + 1], num_drafted)


class _FluidProgram:
    """Least GPU time in which N requests can be asked, with all rows but the attainment."""

    def __init__(self, demand: Demand, gpu: Gpu, *, even_pace: bool, split: Split | None) -> None:
        self._demand, self._gpu, self._even_pace = demand, gpu, even_pace
        self._classes = DecodeClasses.of_demand(demand)
        # Strictest pace on a GPU of each type; without even pace there is one type, of any pace.
        self._type_pace_s = np.unique(self._classes.tpot_s) if even_pace else np.zeros(1)
        self._program = LinearProgram()
        self._steps = _Steps.of_grid(
            len(self._type_pace_s), self._edges_s(), gpu.drafting.max_tokens
        )
        # Not even an idle GPU computes these prompts in time.
        in_time = gpu.prefill_s(demand) <= demand.ttft_s
        self._served = self._program.columns(len(demand.tier), upper=in_time.astype(np.float64))
        self._work = {
            name: self._program.columns(len(self._steps.from_s))
            for name in ("time", "count", "prefill", "prefill_extra", "context")
        }
        self._decode_step, self._decode_class = self._decode_pairs()
        self._decodes = self._program.columns(len(self._decode_step))
        self._add_steps()
        self._add_decode_coverage()
        self._add_pace()
        self._add_gpus(split)

    def least_gpu_s(self, attainment_ratio: float) -> float | None:
        """Seconds of GPU time per N requests asked; None if the attainment is out of reach."""
        num_requests = len(self._served)
        row = self._program.rows(1, at_most=-attainment_ratio * num_requests)
        self._program.add(row, self._served, -1.0)
        x = self._program.solve()
        return None if x is None else float(x[self._total])

    def _edges_s(self) -> Floats:
        """Grid of step lengths.

        With even pace none is longer than the slowest pace allows. Otherwise the last one is
        open-ended: also the steps of GPUs that only prefill for a while.
        """
        tokens = float(self._gpu.drafting.tokens_per_step(np.array(self._gpu.drafting.max_tokens)))
        shortest_s = max(roof.fixed_s for roof in self._gpu.roofs)
        longest_s = float(self._classes.tpot_s.max()) * tokens
        if not self._even_pace:
            longest_s = max(_LONGEST_STEP_RATIO * longest_s, 2 * shortest_s)
        longest_s = max(longest_s, shortest_s * _GRID_RATIO)
        start_s = max(shortest_s, longest_s * 1e-4)
        num = 1 + int(np.ceil(np.log(longest_s / start_s) / np.log(_GRID_RATIO)))
        edges_s = np.geomspace(start_s, longest_s, num + 1)
        edges_s[0] = shortest_s
        return edges_s if self._even_pace else np.append(edges_s, np.inf)

    def _decode_pairs(self) -> tuple[Ints, Ints]:
        """Which classes may be decoded in which kinds of steps."""
        slow_enough = (
            self._classes.tpot_s[np.newaxis, :]
            >= self._type_pace_s[self._steps.gpu_type][:, np.newaxis]
        )
        step, decode_class = np.nonzero(slow_enough & (self._classes.num_tokens > 0))
        return step, decode_class

    def _add_steps(self) -> None:
        """What fits in steps of one kind.

        Time, not count times length, is what roofs limit and GPUs provide, so that a step is
        charged what it takes whatever the grid. All rows are sums over steps of one kind of
        something each single step keeps.
        """
        program, steps, gpu, work = self._program, self._steps, self._gpu, self._work
        num_steps = len(steps.from_s)
        rows = program.rows(num_steps)
        program.add(rows, work["count"], steps.from_s)
        program.add(rows, work["time"], -1.0)
        closed = np.flatnonzero(np.isfinite(steps.to_s))
        rows = program.rows(len(closed))
        program.add(rows, work["time"][closed], 1.0)
        program.add(rows, work["count"][closed], -steps.to_s[closed])
        rows = program.rows(num_steps)
        program.add(rows[self._decode_step], self._decodes, 1.0)
        program.add(rows, work["count"], -gpu.max_running)
        if np.isfinite(gpu.num_kv_tokens):
            # The KV that a step reads is in memory: Little's law, step by step.
            rows = program.rows(num_steps)
            program.add(
                rows[self._decode_step], self._decodes, self._classes.context[self._decode_class]
            )
            program.add(rows, work["context"], 1.0)
            program.add(rows, work["count"], -gpu.num_kv_tokens)
        for roof in gpu.roofs:
            self._add_roof(roof.fixed_s, roof.token_s)

    def _add_roof(self, fixed_s: float, token_s: float) -> None:
        """One line under the time of a step. A chunk's attention may be paid in another step."""
        program, steps, gpu, work = self._program, self._steps, self._gpu, self._work
        rows = program.rows(len(steps.from_s))
        program.add(rows, work["count"], fixed_s + steps.num_drafted * gpu.drafting.floor_s)
        program.add(rows, work["prefill"], token_s)
        program.add(rows, work["prefill_extra"], 1.0)
        program.add(rows, work["context"], gpu.context_token_s)
        num_drafted = steps.num_drafted[self._decode_step]
        program.add(
            rows[self._decode_step],
            self._decodes,
            token_s * (1 + num_drafted)
            + gpu.sequence_s
            + num_drafted * gpu.drafting.sequence_s
            + gpu.context_token_s * self._classes.context[self._decode_class],
        )
        program.add(rows, work["time"], -1.0)

    def _add_decode_coverage(self) -> None:
        """Steps yield all tokens of what is served and read all their KV."""
        program, demand, classes = self._program, self._demand, self._classes
        tokens_per_step = self._gpu.drafting.tokens_per_step(self._steps.num_drafted)
        rows = program.rows(len(classes.context))
        program.add(rows[self._decode_class], self._decodes, -tokens_per_step[self._decode_step])
        row = program.rows(1)
        program.add(row, self._work["context"], -tokens_per_step)
        for stage in (0, 1):
            of_request = classes.of_request[:, stage]
            num_tokens = demand.num_decode_tokens[:, stage]
            program.add(rows[of_request], self._served, num_tokens)
            beyond = demand.num_context_tokens[:, stage] - num_tokens * classes.context[of_request]
            program.add(row, self._served, np.maximum(beyond, 0.0))

    def _add_pace(self) -> None:
        """The steps in which a request decodes fit, one after the other, in its time.

        Summed over a class, and each step counted as the shortest of its kind.
        """
        program, demand, classes = self._program, self._demand, self._classes
        length_s = self._steps.from_s[self._decode_step]
        rows = program.rows(len(classes.context))
        if self._even_pace:
            program.add(rows[self._decode_class], self._decodes, length_s)
            for stage in (0, 1):
                allowed_s = demand.num_decode_tokens[:, stage] * demand.tpot_s[:, stage]
                program.add(rows[classes.of_request[:, stage]], self._served, -allowed_s)
            return
        # Time that one stage leaves is the other's, so the second stage's row is the first's.
        row_of_class = np.arange(len(rows)) // 2 * 2
        program.add(rows[row_of_class[self._decode_class]], self._decodes, length_s)
        allowed_s = np.maximum(demand.ttft_s - self._gpu.prefill_s(demand) + demand.decode_s, 0.0)
        program.add(rows[classes.of_request[:, 0]], self._served, -allowed_s)

    def _add_gpus(self, split: Split | None) -> None:
        """Steps fit in the time of GPUs; with even pace, GPUs step often enough."""
        program, steps, work = self._program, self._steps, self._work
        num_types = len(self._type_pace_s)
        gpus = program.columns(num_types)
        self._total = int(program.columns(1, gain=-1.0)[0])
        rows = program.rows(num_types)
        program.add(rows[steps.gpu_type], work["time"], 1.0)
        program.add(rows, gpus, -1.0)
        if self._even_pace:
            rows = program.rows(num_types)
            program.add(rows, gpus, 1.0 / self._type_pace_s)
            tokens_per_step = self._gpu.drafting.tokens_per_step(steps.num_drafted)
            program.add(rows[steps.gpu_type], work["count"], -tokens_per_step)
        row = program.rows(1)
        program.add(row, gpus, 1.0)
        num_gpus = split.num_prefill + split.num_decode if split else 1
        program.add(row, self._total, -(split.num_decode / num_gpus if split else 1.0))
        if split:
            self._add_prefill_gpus(split.num_prefill / num_gpus)
        else:
            self._add_prefill_coverage()

    def _add_prefill_coverage(self) -> None:
        """Steps carry the prompts of what is served."""
        program, demand = self._program, self._demand
        for name, needed in (
            ("prefill", demand.num_new_tokens),
            ("prefill_extra", demand.prefill_extra_s),
        ):
            row = program.rows(1)
            program.add(row, self._served, needed)
            program.add(row, self._work[name], -1.0)

    def _add_prefill_gpus(self, ratio: float) -> None:
        """Prompts are computed on GPUs of their own, `ratio` of all.

        These pay for no step as such: long enough ones cost as good as nothing.
        """
        program, demand = self._program, self._demand
        token_s = max(roof.token_s for roof in self._gpu.roofs)
        row = program.rows(1)
        program.add(row, self._served, token_s * demand.num_new_tokens + demand.prefill_extra_s)
        program.add(row, self._total, -ratio)
