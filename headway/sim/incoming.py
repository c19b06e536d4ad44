"""What is written down of a request when it arrives: what it asked for, and its hidden truth."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headway.core.batch_state import PREFILL, Floats
from headway.core.planner.output_lengths import OutputLengths
from headway.core.slo import Promise
from headway.sim.cluster import ClusterSpec
from headway.sim.options import RunOptions
from headway.sim.truth import uniform
from headway.sim.workload import Workload
from headway.sim.world_state import World

# Requests of one tier differ by so much in how often their drafts are accepted.
_ACCEPTANCE_RANGE = 0.2
# Of `truth.uniform`; below the workers' noise, and above all requests' numbers.
_ACCEPTANCE_STREAM = 1 << 39

# Tokens of output planned with while nothing is known.
_FIRST_LENGTH = 256


@dataclass(slots=True)
class Incoming:
    """Fills the records of requests that arrive.

    Attributes:
        ttft_bound_s: of each request, once it is filled; shape (N,).
    """

    workload: Workload
    cluster: ClusterSpec
    options: RunOptions
    world: World
    ttft_bound_s: Floats = field(init=False)
    _lengths: OutputLengths = field(default_factory=lambda: OutputLengths(_FIRST_LENGTH))
    _last_start_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.ttft_bound_s = np.zeros(len(self.workload))
        starts_s = self.workload.arrived_at_s[self.workload.follows < 0]
        self._last_start_s = float(starts_s.max(initial=0.0))

    def fill(self, index: int, now_s: float) -> None:
        """Write down a request that arrives now, as if it were promised what it asks for."""
        workload, cluster = self.workload, self.cluster
        slo = workload.tiers[workload.tier[index]].slo
        num_prompt_tokens = int(workload.num_prompt_tokens[index])
        promise = slo.promise(
            cluster.hardware.perf_model.prefill_s(num_prompt_tokens, 0, cluster.max_step_tokens)
        )
        self.ttft_bound_s[index] = promise.ttft_s
        num_thinking = int(workload.num_thinking_tokens[index])
        due_at_s = now_s + promise.ttft_s - cluster.first_token_overhead_s
        record = self.world.requests[index]
        record["order"] = index
        record["tier"] = workload.tier[index]
        record["phase"] = PREFILL
        record["guaranteed"] = 1
        record["arrived_at_s"] = now_s
        record["prefill_due_at_s"] = record["next_due_at_s"] = due_at_s
        record["tpot_s"], record["later_tpot_s"] = _gaps(promise, num_thinking)
        record["num_stage_tokens_left"] = num_thinking if num_thinking > 0 else -1
        record["num_prompt_tokens"] = num_prompt_tokens
        record["num_output_bound"] = (
            workload.num_output_tokens[index]
            if self.options.known_lengths
            else self._lengths.bound(int(workload.tier[index]))
        )
        record["acceptance"] = cluster.acceptance
        sim = self.world.sim[index]
        sim["first_due_at_s"] = due_at_s
        sim["num_own_prompt_tokens"] = num_prompt_tokens
        sim["sent_at_s"] = np.inf
        sim["acceptance"] = self._true_acceptance(index, now_s)

    def ended(self, index: int) -> None:
        """Learn the length of an output."""
        workload = self.workload
        self._lengths.ended(int(workload.tier[index]), int(workload.num_output_tokens[index]))

    def _true_acceptance(self, index: int, now_s: float) -> float:
        """How a request's drafts fare: about as its tier's do by then."""
        name = self.workload.tiers[self.workload.tier[index]].name
        ends = dict(self.cluster.true_acceptance).get(name)
        if ends is None:
            return self.cluster.acceptance
        mean = float(np.interp(now_s, (0.0, self._last_start_s), ends))
        spread = uniform(self.options.seed, _ACCEPTANCE_STREAM, index) - 0.5
        return float(np.clip(mean + _ACCEPTANCE_RANGE * spread, 0.0, 1.0))


def _gaps(promise: Promise, num_thinking_tokens: int) -> tuple[float, float]:
    """Gap between tokens in the first stage and after it."""
    first, last = promise.stages[0].tpot_s, promise.stages[-1].tpot_s
    return (first, last) if num_thinking_tokens > 0 else (last, last)
