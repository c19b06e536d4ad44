"""Where requests go, and whether, by predicted latency: SCORPIO's guard, and PolyServe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from headway.core.batch_state import DECODE, PREFILL, Floats, Ints, Records
from headway.core.batching import blocks_for
from headway.core.kernel import kernel
from headway.core.planner.arrival import Answer, ClusterView, Verdict
from headway.core.planner.baselines.blocks import is_runnable
from headway.core.planner.baselines.scorpio import add_begun, add_to_batch, is_within_tpot
from headway.core.planner.step_time import chunk_within, step_s


@kernel
def _prompts_before(
    requests: Records, ids: Ints, n: int, grants: Ints, new: int
) -> tuple[int, float]:
    """Tokens to compute until the new prompt is done, by deadline, and their attention.

    What the running step computes is left out: its end is counted otherwise.
    """
    own = requests[new]
    num_tokens = own.num_prompt_tokens - own.num_computed_tokens
    attention = num_tokens * (own.num_computed_tokens + 0.5 * num_tokens)
    for k in range(n):
        request = requests[ids[k]]
        if (
            request.phase != PREFILL
            or request.guaranteed < own.guaranteed
            or request.prefill_due_at_s > own.prefill_due_at_s
        ):
            continue
        num_computed = request.num_computed_tokens + max(0, grants[k])
        num_left = request.num_prompt_tokens - num_computed
        num_tokens += num_left
        attention += num_left * (num_computed + 0.5 * num_left)
    return num_tokens, attention


@kernel
def computed_at_s(  # type: ignore[no-untyped-def]
    now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    grants: Ints,
    worker,  # noqa: ANN001
    new: int,
) -> float:
    """When the new prompt is computed, if prompts run by deadline in steps of the token budget.

    All that decodes now decodes in every one of these steps.
    """
    num_tokens, attention = _prompts_before(requests, ids, n, grants, new)
    num_decodes = num_context = 0
    for k in range(n):
        if requests[ids[k]].phase == DECODE:
            num_decodes += 1
            num_context += requests[ids[k]].num_computed_tokens
    num_chunk_tokens = max(1, min(worker.token_budget, worker.max_step_tokens) - num_decodes)
    num_full, num_rest = num_tokens // num_chunk_tokens, num_tokens % num_chunk_tokens
    time_s = attention * worker.prefill_attention_s * worker.time_ratio
    num_step_tokens = num_chunk_tokens + num_decodes
    full_s = step_s(worker, num_step_tokens, num_decodes, num_context, 0.0, 1, 0, 0)
    time_s += num_full * full_s
    if num_rest > 0:
        num_step_tokens = num_rest + num_decodes
        time_s += step_s(worker, num_step_tokens, num_decodes, num_context, 0.0, 1, 0, 0)
    return max(now_s, worker.busy_until_s) + time_s  # type: ignore[no-any-return]


@kernel
def _joins_virtual_batch(  # type: ignore[no-untyped-def]
    requests: Records,
    ids: Ints,
    n: int,
    worker,  # noqa: ANN001
    new: int,
) -> tuple[bool, float]:
    """Whether the virtual batch with the new request keeps every TPOT, and its size."""
    batch = np.zeros(3)
    add_begun(batch, requests, ids, n, 1)
    add_to_batch(batch, requests, new)
    return is_within_tpot(worker, batch), batch[1] / max(batch[0], 1e-300)


@dataclass(slots=True)
class ScorpioGuard:
    """Refuses a prompt that would be late everywhere (SCORPIO, arXiv 2505.23022).

    Among the workers where it is in time, one whose virtual batch has room comes first, then
    the smaller virtual batch. Where none has room, the request waits on the worker: the batch
    former holds it back until its start keeps every TPOT.
    """

    former: int

    def decide(self, new: int, view: ClusterView, now_s: float) -> Answer:
        best = (math.inf, math.inf, -1)
        for w in np.flatnonzero(view.workers["prefills"] & view.workers["decodes"]):
            ids, n, worker = view.ids[w], view.counts[w], view.workers[w]
            at_s = computed_at_s(now_s, view.requests, ids, n, view.grants[w], worker, new)
            if at_s > view.requests["prefill_due_at_s"][new]:
                continue
            has_room, size = _joins_virtual_batch(view.requests, ids, n, worker, new)
            best = min(best, (0 if has_room else 1, size, int(w)))
        if best[2] < 0:
            return Answer(Verdict.REFUSE)
        return Answer(Verdict.SERVE, best[2], best[2])

    def place_deferred(self, waiting: int, view: ClusterView, now_s: float) -> Answer:
        return self.decide(waiting, view, now_s)


@kernel
def _tightest_s(requests: Records, request_id: int) -> float:
    """The shorter gap between tokens of the stages that are left."""
    request = requests[request_id]
    return min(request.tpot_s, request.later_tpot_s)  # type: ignore[no-any-return]


# Columns of `_appraise`.
_BIN_S, _LOAD_S, _WAIT_S, _FITS = range(4)


@kernel
def _appraise(  # type: ignore[no-untyped-def]
    now_s: float,
    requests: Records,
    ids: Ints,
    n: int,
    grants: Ints,
    worker,  # noqa: ANN001
    new: int,
) -> Floats:
    """The bin and the load of a worker, the new prompt's wait there, and whether it fits.

    Everything on the worker, the new request included, is taken to decode at once, each with
    half of its remaining output added to its context; prompts take what such a step leaves of
    the tightest TPOT. Blocks must suffice for all outputs at their full length.
    """
    bin_s = np.inf
    num_decodes, num_context, num_blocks = 1, 0, 0
    for k in range(n + 1):
        i = new if k == n else ids[k]
        request = requests[i]
        if k < n:
            if request.guaranteed == 0 or not is_runnable(requests, i):
                continue
            num_decodes += 1
            bin_s = min(bin_s, _tightest_s(requests, i))
        num_held = max(request.num_prompt_tokens, request.num_computed_tokens)
        num_more = max(0, request.num_output_bound - request.num_output_tokens)
        num_context += num_held + num_more // 2
        num_blocks += blocks_for(num_held + num_more, worker.block_size)
    result = np.empty(4)
    result[_BIN_S] = bin_s
    result[_LOAD_S] = step_s(worker, num_decodes, num_decodes, num_context, 0.0, 0, 0, 0)
    tpot_s = min(bin_s, _tightest_s(requests, new))
    left_s = tpot_s - worker.time_ratio * (
        worker.sequence_s * num_decodes + worker.context_token_s * num_context
    )
    num_tokens, _ = _prompts_before(requests, ids, n, grants, new)
    num_most = worker.max_step_tokens - num_decodes
    num_chunk_tokens = chunk_within(worker, left_s, num_decodes, 0, num_most)
    result[_WAIT_S] = max(0.0, worker.busy_until_s - now_s)
    if num_chunk_tokens > 0:
        result[_WAIT_S] += math.ceil(num_tokens / num_chunk_tokens) * tpot_s
    else:
        result[_WAIT_S] = np.inf
    fits = (
        result[_LOAD_S] <= tpot_s
        and now_s + result[_WAIT_S] <= requests[new].prefill_due_at_s
        and num_blocks <= worker.num_blocks
        and num_decodes <= worker.max_running
    )
    result[_FITS] = 1.0 if fits else 0.0
    return result


@dataclass(slots=True)
class BinRouter:
    """PolyServe (arXiv 2507.17769): requests of one TPOT share workers, packed densely.

    A worker belongs to the bin of the tightest TPOT on it; an idle one to none. A request goes
    to the fullest worker of its bin that can still meet its bounds, else to an idle worker, else
    to a worker of a tighter bin, the nearest first. Where nothing fits it waits where the wait
    is predicted shortest, in its own bin if that has workers.
    """

    former: int

    def decide(self, new: int, view: ClusterView, now_s: float) -> Answer:
        workers = np.flatnonzero(view.workers["prefills"] & view.workers["decodes"])
        appraisals = np.array([self._appraise(new, int(w), view, now_s) for w in workers])
        own_s = _tightest_s(view.requests, new)
        bins_s, loads_s, waits_s, fits = appraisals.T
        is_own = np.isclose(bins_s, own_s)
        is_idle = np.isinf(bins_s)
        is_tighter = ~is_own & (bins_s < own_s)
        fits = fits > 0
        for allowed, preference in (
            (is_own & fits, loads_s),
            (is_idle & fits, loads_s),
            (is_tighter & fits, bins_s + 1e-6 * loads_s),
        ):
            if allowed.any():
                return _serve(workers, np.where(allowed, preference, -np.inf))
        # Equal waits, as where none is in sight: the least loaded.
        allowed = is_own if is_own.any() else np.full(len(workers), True)
        shortest = allowed & (waits_s == waits_s[allowed].min())
        return _serve(workers, np.where(shortest, -loads_s, -np.inf))

    def place_deferred(self, waiting: int, view: ClusterView, now_s: float) -> Answer:
        return self.decide(waiting, view, now_s)

    @staticmethod
    def _appraise(new: int, w: int, view: ClusterView, now_s: float) -> Floats:
        return _appraise(
            now_s, view.requests, view.ids[w], view.counts[w], view.grants[w], view.workers[w], new
        )


def _serve(workers: Ints, preference: Floats) -> Answer:
    w = int(workers[np.argmax(preference)])
    return Answer(Verdict.SERVE, w, w)
