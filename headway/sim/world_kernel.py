"""The compiled loop of the simulator: the steps of all workers, one after another in time."""

from __future__ import annotations

from headway.core.batch_state import DECODE, LEAVING, PREEMPT, PREFILL
from headway.core.kernel import kernel
from headway.core.planner.acceptance import acceptance_of, observe_decode
from headway.core.planner.formers import form
from headway.core.planner.grants import shape_of, take_blocks
from headway.core.planner.step_time import step_s
from headway.core.residual import DEVIATIONS_99, guard_ratio, time_ratio, update_residual
from headway.sim.kept_kv import evict, take_over
from headway.sim.tokens import emit, num_accepted
from headway.sim.transfers import next_arrival, send, settle_transfers
from headway.sim.truth import true_step_s
from headway.sim.world_state import (
    LEARN,
    LEARN_ACCEPTANCE,
    LOG,
    NUM_FINISHED,
    NUM_STEPS_LOGGED,
    NUM_TOKENS_LOGGED,
    PREFILL_EMITS,
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
    settle_transfers(world, w, now_s)
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
        world.wake_at_s[w] = next_arrival(world, w, now_s)
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
def _believe_acceptance(world: World, w: int) -> None:
    """Tell the former what has been learned of the tiers on this worker."""
    for k in range(world.counts[w]):
        r = world.requests[world.ids[w, k]]
        r.acceptance = acceptance_of(world.acceptances[r.tier])


@kernel
def _preempt(world: World, w: int, row: int) -> None:
    r = world.requests[row]
    index = row % world.sim.shape[0]
    world.workers[w].num_free_blocks += r.num_blocks
    r.num_blocks = 0
    r.num_computed_tokens = r.num_unsent_tokens = 0
    r.num_prompt_tokens = world.sim[index].num_own_prompt_tokens + r.num_output_tokens
    r.prefill_due_at_s = r.next_due_at_s
    r.phase = PREFILL
    world.sim[index].num_preemptions += 1
    if r.leaves_after_prefill == 1:
        # Its pages are computed again, and sent again.
        world.sim[index].num_sent_tokens = 0


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
                        emit(world, row, num_requests + row, now_s)
                send(world, row, now_s)
            elif is_complete:
                r.phase = DECODE
                emit(world, row, row, now_s)
        elif r.phase == DECODE:
            num_new = 1 + num_accepted(world, w, row, grant - 1)
            if world.options[LEARN_ACCEPTANCE] == 1:
                observe_decode(world.acceptances[r.tier], grant - 1, num_new - 1)
            for _ in range(num_new):
                if r.phase != DECODE:
                    break
                r.num_computed_tokens += 1
                emit(world, row, row, now_s)
