"""The compiled loop of the simulator: steps, tokens, KV blocks and transfers of all workers."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import ARRIVING, DECODE, GONE, LEAVING, PREEMPT, PREFILL, Record
from headway.core.batching import blocks_for
from headway.core.kernel import kernel
from headway.core.planner.acceptance import acceptance_of, observe_decode
from headway.core.planner.baselines.codes import SLACK
from headway.core.planner.formers import form
from headway.core.planner.grants import shape_of, take_blocks
from headway.core.planner.handover import may_join
from headway.core.planner.step_time import step_s
from headway.core.residual import DEVIATIONS_99, guard_ratio, time_ratio, update_residual
from headway.sim.kept_kv import evict, keep, take_over
from headway.sim.truth import true_step_s, uniform
from headway.sim.world_state import (
    LEARN,
    LEARN_ACCEPTANCE,
    LOG,
    NUM_FINISHED,
    NUM_STEPS_LOGGED,
    NUM_TOKENS_LOGGED,
    PREFILL_EMITS,
    SERVED,
    STOP_ON_FINISH,
    World,
)

# A promise spans some tens of steps; the guard covers the error of their sum.
_GUARD_STEPS = 20.0

TIME_REACHED, REQUEST_FINISHED, LOG_FULL = range(3)


@kernel
def advance(world: World, until_s: float) -> int:
    """Run all workers up to `until_s`, or until there is something for the caller to do.

    Returns:
        TIME_REACHED, REQUEST_FINISHED or LOG_FULL.
    """
    num_workers = world.wake_at_s.shape[0]
    while True:
        w = 0
        for other in range(1, num_workers):
            if world.wake_at_s[other] < world.wake_at_s[w]:
                w = other
        at_s = world.wake_at_s[w]
        if at_s >= until_s:
            return TIME_REACHED
        if world.running[w] == 1:
            _end_step(world, w, at_s)
        begin_step(world, w, at_s)
        if world.options[STOP_ON_FINISH] == 1 and world.counters[NUM_FINISHED] > 0:
            return REQUEST_FINISHED
        if world.options[LOG] == 1 and (
            world.counters[NUM_STEPS_LOGGED] + 2 * num_workers > world.step_log.shape[0]
            or 2 * world.counters[NUM_TOKENS_LOGGED] > world.token_log.shape[0]
        ):
            return LOG_FULL


@kernel
def begin_step(world: World, w: int, now_s: float) -> None:
    """Start the next step of an idle worker, or let it sleep until something arrives."""
    worker = world.workers[w]
    world.running[w] = 0
    _settle_transfers(world, w, now_s)
    n = world.counts[w]
    grants = world.grants[w]
    ids = world.ids[w]
    if worker.max_draft_tokens > 0:
        _believe_acceptance(world, w)
    form(world.formers[w], now_s, world.requests, ids, n, worker, grants)
    for k in range(n):
        if grants[k] == PREEMPT:
            _preempt(world, w, ids[k])
    take_over(world, w)
    take_blocks(world.requests, ids, n, worker, grants)
    evict(world, w)
    shape = shape_of(world.requests, ids, n, grants)
    num_tokens = shape[0]
    assert worker.num_free_blocks >= 0
    assert num_tokens <= worker.max_step_tokens
    if num_tokens == 0:
        world.wake_at_s[w] = _next_arrival(world, w, now_s)
        return
    predicted_s = step_s(worker, *shape)
    duration_s = true_step_s(
        world.truths[w], world.knots[w], world.times[w], worker, w, world.step_numbers[w], *shape
    )
    world.step_numbers[w] += 1
    world.running[w] = 1
    world.wake_at_s[w] = now_s + duration_s
    worker.busy_until_s = now_s + predicted_s
    if world.options[LEARN] == 1:
        # It counts from the next step on, as a worker's report would.
        residual = world.residuals[w]
        update_residual(residual, predicted_s / worker.time_ratio, duration_s)
        worker.time_ratio = time_ratio(residual)
        worker.guard_ratio = guard_ratio(residual, _GUARD_STEPS, DEVIATIONS_99)
        worker.step_guard_ratio = guard_ratio(residual, 1.0, DEVIATIONS_99)
    if world.options[LOG] == 1:
        _log_step(world, w, now_s, duration_s, predicted_s, shape)


@kernel
def _log_step(
    world: World,
    w: int,
    now_s: float,
    duration_s: float,
    predicted_s: float,
    shape: tuple[int, int, int, float, int, int, int],
) -> None:
    entry = world.step_log[world.counters[NUM_STEPS_LOGGED]]
    world.counters[NUM_STEPS_LOGGED] += 1
    entry.worker = w
    entry.start_s = now_s
    entry.duration_s = duration_s
    entry.predicted_s = predicted_s
    entry.num_tokens = shape[0]
    entry.num_decodes = shape[1]
    entry.num_context_tokens = shape[2]
    entry.attention = shape[3]
    entry.num_chunks = shape[4]
    entry.num_draft_rounds = shape[5]
    entry.num_drafted = shape[6]


@kernel
def _end_step(world: World, w: int, now_s: float) -> None:  # noqa: C901 - compiled
    """Hand out what a step produced; what has ended stays listed until the next one begins."""
    num_requests = world.sim.shape[0]
    ids = world.ids[w]
    for k in range(world.counts[w]):
        grant = world.grants[w, k]
        if grant <= 0:
            continue
        row = ids[k]
        r = world.requests[row]
        if r.phase == PREFILL:
            r.num_computed_tokens += grant
            is_complete = r.num_computed_tokens == r.num_prompt_tokens
            if r.leaves_after_prefill == 1:
                if is_complete:
                    r.phase = LEAVING
                    if world.options[PREFILL_EMITS] == 1:
                        _emit(world, row, num_requests + row, now_s)
                _send(world, row, now_s)
            elif is_complete:
                r.phase = DECODE
                _emit(world, row, row, now_s)
        elif r.phase == DECODE:
            num_new = 1 + _num_accepted(world, w, row, grant - 1)
            if world.options[LEARN_ACCEPTANCE] == 1:
                observe_decode(world.acceptances[r.tier], grant - 1, num_new - 1)
            for _ in range(num_new):
                if r.phase != DECODE:
                    break
                r.num_computed_tokens += 1
                _emit(world, row, row, now_s)


@kernel
def _believe_acceptance(world: World, w: int) -> None:
    """Tell the former what has been learned of the tiers on this worker."""
    for k in range(world.counts[w]):
        r = world.requests[world.ids[w, k]]
        r.acceptance = acceptance_of(world.acceptances[r.tier])


@kernel
def _num_accepted(world: World, w: int, row: int, num_drafted: int) -> int:
    """How many drafted tokens are kept: each only if all before it were."""
    acceptance = world.sim[row % world.sim.shape[0]].acceptance
    num_kept = 0
    while num_kept < num_drafted and (
        uniform(world.truths[w].seed, row, world.step_numbers[w] * 16 + num_kept) < acceptance
    ):
        num_kept += 1
    return num_kept


@kernel
def _emit(world: World, holder: int, row: int, now_s: float) -> None:
    """One output token leaves. `holder`: row that holds the blocks; `row`: that of the decode."""
    num_requests = world.sim.shape[0]
    index = row if row < num_requests else row - num_requests
    r = world.requests[row]
    sim = world.sim[index]
    r.num_output_tokens += 1
    late = now_s > r.next_due_at_s
    if r.num_output_tokens == 1:
        sim.first_token_at_s = now_s
        r.lead_s = max(0.0, r.next_due_at_s - now_s)
    is_last = r.num_output_tokens == sim.num_output_tokens
    is_checkpoint = r.num_output_tokens == 1 or r.num_output_tokens % 10 == 0 or is_last
    if late:
        sim.num_late_tokens += 1
        if is_checkpoint and r.guaranteed == 0:
            # It has missed what it asked for; nobody needs to hurry any more.
            r.next_due_at_s = np.inf
        sim.num_checkpoints_missed += int(is_checkpoint)
    if world.options[LOG] == 1 and is_checkpoint:
        entry = world.token_log[world.counters[NUM_TOKENS_LOGGED]]
        world.counters[NUM_TOKENS_LOGGED] += 1
        entry.request = index
        entry.index = r.num_output_tokens - 1
        entry.at_s = now_s
    r.num_stage_tokens_left -= 1
    if r.num_stage_tokens_left == 0:
        r.tpot_s = r.later_tpot_s
    r.next_due_at_s += r.tpot_s
    if is_last:
        sim.last_token_at_s = now_s
        sim.outcome = SERVED
        world.finished[world.counters[NUM_FINISHED]] = index
        world.counters[NUM_FINISHED] += 1
        r.phase = GONE
        world.requests[holder].phase = GONE
    elif r.num_output_tokens >= r.num_output_bound:
        # The plan was too low; half as much again is what it counts on from here.
        r.num_output_bound = r.num_output_tokens + max(1, r.num_output_tokens // 2)


@kernel
def _compact(world: World, w: int) -> None:
    """Drop what has ended from a worker's list, and free its blocks."""
    n = world.counts[w]
    ids = world.ids[w]
    kept = 0
    for k in range(n):
        r = world.requests[ids[k]]
        if r.phase == GONE:
            world.workers[w].num_free_blocks += r.num_blocks
            r.num_blocks = 0
            keep(world, w, ids[k])
        else:
            ids[kept] = ids[k]
            kept += 1
    world.counts[w] = kept


@kernel
def _preempt(world: World, w: int, row: int) -> None:
    r = world.requests[row]
    index = row % world.sim.shape[0]
    world.workers[w].num_free_blocks += r.num_blocks
    r.num_blocks = 0
    r.num_computed_tokens = 0
    r.num_prompt_tokens = world.sim[index].num_own_prompt_tokens + r.num_output_tokens
    r.prefill_due_at_s = r.next_due_at_s
    r.phase = PREFILL
    world.sim[index].num_preemptions += 1
    if r.leaves_after_prefill == 1:
        # Its pages are computed again, and sent again.
        world.sim[index].num_sent_tokens = 0


@kernel
def make_room(world: World, row: int) -> bool:
    """Set blocks aside on the decode worker for the pages of prompt `row`, if there is room."""
    sim = world.sim[row]
    decode_worker = world.workers[sim.decode_worker]
    needed = blocks_for(world.requests[row].num_prompt_tokens, decode_worker.block_size)
    if needed > decode_worker.num_free_blocks or not _has_slot(world, sim.decode_worker):
        return False
    decode_worker.num_free_blocks -= needed
    evict(world, sim.decode_worker)
    world.requests[world.sim.shape[0] + row].num_blocks = needed
    sim.room_made = 1
    return True


@kernel
def _send(world: World, row: int, now_s: float) -> None:
    """Send the KV pages of a leaving prompt that are computed and not sent, if there is room."""
    sim = world.sim[row]
    r = world.requests[row]
    target = world.requests[world.sim.shape[0] + row]
    if sim.room_made == 0 and not make_room(world, row):
        return
    num_new = r.num_computed_tokens - sim.num_sent_tokens
    p, d = sim.prefill_worker, sim.decode_worker
    sender = world.workers[p]
    sender.link_free_at_s = max(sender.link_free_at_s, now_s) + num_new * sender.send_token_s
    sim.num_sent_tokens = r.num_computed_tokens
    r.num_unsent_tokens = 0
    if r.phase == PREFILL:
        return
    sim.sent_at_s = sender.link_free_at_s
    arrives_at_s = sim.sent_at_s + world.link_latency_s[0]
    if not _is_planned(world, d, target):
        target.arrives_at_s = arrives_at_s
    elif sim.sent_at_s > r.prefill_due_at_s:
        target.arrives_at_s = max(target.arrives_at_s, arrives_at_s)
    if world.running[d] == 0:
        world.wake_at_s[d] = min(world.wake_at_s[d], arrives_at_s)
    if world.running[p] == 0:
        world.wake_at_s[p] = min(world.wake_at_s[p], sim.sent_at_s)


@kernel
def _is_planned(world: World, w: int, arriving: Record) -> bool:
    """Whether other promises on decode worker `w` count on when these pages join its batch."""
    return bool(world.formers[w] == SLACK and arriving.guaranteed == 1)


@kernel
def _has_slot(world: World, w: int) -> bool:
    """Whether one more request may hold blocks on this worker."""
    num_holding = 0
    for k in range(world.counts[w]):
        num_holding += int(world.requests[world.ids[w, k]].num_blocks > 0)
    return bool(num_holding < world.workers[w].max_running)


@kernel
def _settle_transfers(  # noqa: C901, PLR0912 - compiled
    world: World, w: int, now_s: float
) -> None:
    """Start what has arrived, drop what has ended or left, make room for what waits to be sent."""
    num_requests = world.sim.shape[0]
    num_gone = 0
    num_without_room = 0
    next_order = np.int64(-1)
    for k in range(world.counts[w]):
        row = world.ids[w, k]
        r = world.requests[row]
        if r.phase == LEAVING:
            sim = world.sim[row]
            if sim.room_made == 1 and sim.sent_at_s <= now_s:
                r.phase = GONE
        if r.phase == GONE:
            num_gone += 1
        if r.phase == ARRIVING:
            sim = world.sim[row - num_requests]
            num_without_room += 1 - sim.room_made
            is_held = world.formers[w] == SLACK and r.guaranteed == 0
            is_here = sim.room_made == 1 and sim.sent_at_s <= now_s and r.arrives_at_s <= now_s
            if is_here and not is_held:
                _join(world, r)
    if num_gone > 0:
        _compact(world, w)
    if world.formers[w] == SLACK:
        _join_early(world, w, now_s)
    if num_without_room == 0:
        return
    # First come, first served: pages that wait on their prefill worker for room here.
    while True:
        first = np.int64(-1)
        for k in range(world.counts[w]):
            row = world.ids[w, k]
            r = world.requests[row]
            if r.phase != ARRIVING or world.sim[row - num_requests].room_made == 1:
                continue
            if world.requests[row - num_requests].num_computed_tokens == 0:
                continue
            if r.order > next_order and (first < 0 or r.order < world.requests[first].order):
                first = row
        if first < 0:
            return
        next_order = world.requests[first].order
        _send(world, first - num_requests, now_s)
        if world.sim[first - num_requests].room_made == 0:
            return


@kernel
def _join(world: World, r: Record) -> None:
    r.phase = DECODE
    r.num_computed_tokens = r.num_prompt_tokens - 1 + world.options[PREFILL_EMITS]


@kernel
def _join_early(world: World, w: int, now_s: float) -> None:
    """Let pages join that are here before they were planned, or unplanned, if that harms nobody."""
    num_requests = world.sim.shape[0]
    for k in range(world.counts[w]):
        row = world.ids[w, k]
        r = world.requests[row]
        if r.phase != ARRIVING:
            continue
        sim = world.sim[row - num_requests]
        if (
            sim.room_made == 1
            and sim.sent_at_s + world.link_latency_s[0] <= now_s
            and may_join(now_s, world.requests, world.ids[w], world.counts[w], world.workers[w], k)
        ):
            _join(world, r)


@kernel
def _next_arrival(world: World, w: int, now_s: float) -> float:
    """When an idle worker's next transfer comes in or goes out; infinite if none is under way."""
    num_requests = world.sim.shape[0]
    at_s = np.inf
    for k in range(world.counts[w]):
        row = world.ids[w, k]
        r = world.requests[row]
        if r.phase == ARRIVING:
            sim = world.sim[row - num_requests]
            here_at_s = sim.sent_at_s + world.link_latency_s[0]
            if here_at_s > now_s:
                at_s = min(at_s, here_at_s)
            if r.arrives_at_s > now_s and _is_planned(world, w, r):
                # It may be waiting for just these.
                at_s = min(at_s, r.arrives_at_s)
        elif r.phase == LEAVING and world.sim[row].room_made == 1:
            at_s = min(at_s, world.sim[row].sent_at_s)
    return at_s
