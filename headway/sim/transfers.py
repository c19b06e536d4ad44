"""KV transfers: pages that leave one worker and arrive at another, compiled.

A prompt that is decoded elsewhere has two rows: where it is computed, LEAVING in the end, and
where it is decoded, ARRIVING at first. Its pages are sent once the decode worker has set blocks
aside for all of them.
"""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import ARRIVING, DECODE, GONE, LEAVING, PREFILL, Record
from headway.core.batching import blocks_for
from headway.core.kernel import kernel
from headway.core.planner.baselines.codes import SLACK
from headway.core.planner.handover import may_join
from headway.sim.kept_kv import evict, keep
from headway.sim.world_state import PREFILL_EMITS, World


@kernel
def settle_transfers(world: World, w: int, now_s: float) -> None:
    """Start what has arrived, drop what has ended or left, make room for what waits to be sent."""
    num_requests = world.sim.shape[0]
    num_gone = 0
    num_without_room = 0
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
    if num_without_room > 0:
        _send_waiting(world, w, now_s)


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
def _send_waiting(world: World, w: int, now_s: float) -> None:
    """Send pages that wait on their prefill workers for room here: first come, first served."""
    num_requests = world.sim.shape[0]
    next_order = np.int64(-1)
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
        send(world, first - num_requests, now_s)
        if world.sim[first - num_requests].room_made == 0:
            return


@kernel
def send(world: World, row: int, now_s: float) -> None:
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
def _has_slot(world: World, w: int) -> bool:
    """Whether one more request may hold blocks on this worker."""
    num_holding = 0
    for k in range(world.counts[w]):
        num_holding += int(world.requests[world.ids[w, k]].num_blocks > 0)
    return bool(num_holding < world.workers[w].max_running)


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
def next_arrival(world: World, w: int, now_s: float) -> float:
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


@kernel
def _is_planned(world: World, w: int, arriving: Record) -> bool:
    """Whether other promises on decode worker `w` count on when these pages join its batch."""
    return bool(world.formers[w] == SLACK and arriving.guaranteed == 1)
