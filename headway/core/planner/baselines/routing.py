"""Where requests go without regard to promises, and the same after an admission test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from headway.core.batch_state import (
    ARRIVING,
    GONE,
    PREFILL,
    Floats,
    Ints,
    Records,
)
from headway.core.batching import blocks_for
from headway.core.kernel import kernel
from headway.core.planner.arrival import Answer, ArrivalPolicy, ClusterView, Verdict

# Columns of `loads`.
NUM_REQUESTS, NUM_PROMPT_TOKENS, NUM_KV_TOKENS = range(3)

# (row of the new request, rows of the workers to choose from, view) -> row of a worker.
Choice = Callable[[int, Ints, ClusterView], int]


@kernel
def loads(requests: Records, ids: Ints, counts: Ints) -> Ints:
    """What is on each worker, shape (W, 3).

    Requests; prompt tokens not computed yet; and KV tokens held or on their way here.
    """
    result = np.zeros((len(counts), 3), np.int64)
    for w in range(len(counts)):
        for k in range(counts[w]):
            request = requests[ids[w, k]]
            if request.phase == GONE:
                continue
            result[w, NUM_REQUESTS] += 1
            if request.phase == ARRIVING:
                result[w, NUM_KV_TOKENS] += request.num_prompt_tokens
                continue
            result[w, NUM_KV_TOKENS] += request.num_computed_tokens
            if request.phase == PREFILL:
                num_left = request.num_prompt_tokens - request.num_computed_tokens
                result[w, NUM_PROMPT_TOKENS] += num_left
    return result


def _least(candidates: Ints, load: Ints | Floats) -> int:
    """The candidate of the least load; the first of equal ones."""
    return int(candidates[np.argmin(load[candidates])])


def round_robin(new: int, candidates: Ints, view: ClusterView) -> int:
    """In turn, by the number of the request."""
    return int(candidates[view.requests["order"][new] % len(candidates)])


def least_requests(_new: int, candidates: Ints, view: ClusterView) -> int:
    """Join the shortest queue: the fewest requests, waiting or running."""
    return _least(candidates, loads(view.requests, view.ids, view.counts)[:, NUM_REQUESTS])


def least_tokens(_new: int, candidates: Ints, view: ClusterView) -> int:
    """The fewest prompt tokens to compute and KV tokens held, together."""
    load = loads(view.requests, view.ids, view.counts)
    return _least(candidates, load[:, NUM_PROMPT_TOKENS] + load[:, NUM_KV_TOKENS])


def least_prompt_tokens(_new: int, candidates: Ints, view: ClusterView) -> int:
    """The fewest prompt tokens to compute, waiting or running: DistServe's prefill side."""
    return _least(candidates, loads(view.requests, view.ids, view.counts)[:, NUM_PROMPT_TOKENS])


def least_kv_tokens(_new: int, candidates: Ints, view: ClusterView) -> int:
    """The fewest KV tokens held or on their way: DistServe's decode side."""
    return _least(candidates, loads(view.requests, view.ids, view.counts)[:, NUM_KV_TOKENS])


def power_of_two(new: int, candidates: Ints, view: ClusterView) -> int:
    """The shorter queue of two that a hash of the request's number draws."""
    num_candidates = len(candidates)
    if num_candidates == 1:
        return int(candidates[0])
    drawn = _hash(int(view.requests["order"][new]))
    first = drawn % num_candidates
    second = (first + 1 + (drawn >> 32) % (num_candidates - 1)) % num_candidates
    return least_requests(new, candidates[[first, second]], view)


def _hash(number: int) -> int:
    """SplitMix64 (Steele, Lea, Flood 2014) of one number."""
    mask = (1 << 64) - 1
    z = (number + 1) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


@dataclass(slots=True)
class Router:
    """Serves everything. A prompt stays where it is computed if that worker decodes.

    Attributes:
        former: see core.planner.formers.
        choose_prefill: among the workers that prefill.
        choose_decode: among those that decode, where the first choice does not.
    """

    former: int
    choose_prefill: Choice
    choose_decode: Choice

    def decide(self, new: int, view: ClusterView, now_s: float) -> Answer:  # noqa: ARG002
        prefill = self.choose_prefill(new, np.flatnonzero(view.workers["prefills"]), view)
        if view.workers["decodes"][prefill]:
            return Answer(Verdict.SERVE, prefill, prefill)
        decode = self.choose_decode(new, np.flatnonzero(view.workers["decodes"]), view)
        return Answer(Verdict.SERVE, prefill, decode)

    def place_deferred(self, waiting: int, view: ClusterView, now_s: float) -> Answer:
        return self.decide(waiting, view, now_s)


class AdmissionTest(Protocol):
    """Whether a promise can be kept on a worker that a router has chosen."""

    def fits(self, new: int, worker_index: int, view: ClusterView, now_s: float) -> bool:
        """Whether the request joins this worker with every promise on it kept, its own too.

        Args:
            new: row of `view.requests`; no worker lists it yet.
            worker_index: row of `view.workers`.
            view: the cluster.
            now_s: the arrival.
        """
        ...


@kernel
def _has_room(  # type: ignore[no-untyped-def]
    requests: Records,
    ids: Ints,
    n: int,
    worker,  # noqa: ANN001
    new: int,
) -> bool:
    """Whether a best-effort prompt has free blocks here and none of its kind waits before it."""
    num_holders = 0
    for k in range(n):
        request = requests[ids[k]]
        if request.num_blocks > 0:
            num_holders += 1
        has_begun = request.num_blocks > 0 and request.num_output_tokens > 0
        if request.guaranteed == 0 and request.phase != GONE and not has_begun:
            return False
    num_blocks = blocks_for(requests[new].num_prompt_tokens, worker.block_size)
    return num_blocks <= worker.num_free_blocks and num_holders < worker.max_running  # type: ignore[no-any-return]


@dataclass(slots=True)
class WithAdmission:
    """A policy whose placements are promised only where an admission test agrees.

    The others become best effort. Those start where the same router sends them, one prompt per
    worker at a time, when its blocks are free.
    """

    policy: ArrivalPolicy
    admission: AdmissionTest
    former: int = field(init=False)

    def __post_init__(self) -> None:
        self.former = self.policy.former

    def decide(self, new: int, view: ClusterView, now_s: float) -> Answer:
        answer = self.policy.decide(new, view, now_s)
        if answer.verdict is not Verdict.SERVE:
            return answer
        workers = {answer.prefill_worker, answer.decode_worker}
        if all(self.admission.fits(new, worker, view, now_s) for worker in sorted(workers)):
            return answer
        return Answer(Verdict.DEFER)

    def place_deferred(self, waiting: int, view: ClusterView, now_s: float) -> Answer:
        answer = self.policy.place_deferred(waiting, view, now_s)
        if answer.verdict is not Verdict.SERVE:
            return Answer(Verdict.DEFER)
        for w in sorted({answer.prefill_worker, answer.decode_worker}):
            if not _has_room(view.requests, view.ids[w], view.counts[w], view.workers[w], waiting):
                return Answer(Verdict.DEFER)
        return answer
