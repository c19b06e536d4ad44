"""KV that a session's last round left on a worker, kept for the next round as long as room lasts.

As in vLLM, blocks that are kept count as free: whoever needs one takes it, so that nobody is
preempted for them. Those left behind longest go first, each session's from its end. Only whole
blocks are kept, and a session keeps one prefix per worker: its latest there.
"""

from __future__ import annotations

import numpy as np

from headway.core.kernel import kernel
from headway.sim.world_state import World

# In `World.kept_for`: no request waits for these blocks.
NOBODY = -1


@kernel
def keep(world: World, w: int, row: int) -> None:
    """Keep the blocks that a request which ends gives back, if its session goes on."""
    sim = world.sim[row % world.sim.shape[0]]
    worker = world.workers[w]
    # Nothing is found where no prompt is computed.
    if sim.is_followed == 0 or worker.prefills == 0:
        return
    _set_kept(world, w, sim.session, world.requests[row].num_computed_tokens // worker.block_size)
    world.kept_since[w, sim.session] = world.kept_clock[0]
    world.kept_clock[0] += 1


@kernel
def drop(world: World, w: int, session: int) -> None:
    """The blocks are in use again, or will not be needed any more."""
    _set_kept(world, w, session, 0)
    world.kept_for[w, session] = NOBODY


@kernel
def take_over(world: World, w: int) -> None:
    """What starts with the step that was just formed holds the blocks kept for it from now on."""
    for k in range(world.counts[w]):
        row = world.ids[w, k]
        if world.grants[w, k] <= 0 or row >= world.sim.shape[0]:
            continue
        session = world.sim[row].session
        if session >= 0 and world.kept_for[w, session] == row:
            drop(world, w, session)


@kernel
def evict(world: World, w: int) -> None:
    """Give up kept blocks that others hold now: those left behind longest first."""
    worker = world.workers[w]
    while world.num_kept[w] > worker.num_free_blocks:
        oldest = -1
        for session in range(world.kept.shape[1]):
            if world.kept[w, session] > 0 and (
                oldest < 0 or world.kept_since[w, session] < world.kept_since[w, oldest]
            ):
                oldest = session
        num_missing = world.num_kept[w] - worker.num_free_blocks
        _set_kept(world, w, oldest, max(0, world.kept[w, oldest] - num_missing))
        row = world.kept_for[w, oldest]
        if row != NOBODY:
            # It will compute what it no longer finds.
            r = world.requests[row]
            num_found = min(r.num_computed_tokens, world.kept[w, oldest] * worker.block_size)
            r.num_computed_tokens = r.num_unsent_tokens = num_found
            world.sim[row].num_cached_tokens = num_found


@kernel
def _set_kept(world: World, w: int, session: int, num_blocks: int) -> None:
    world.num_kept[w] += num_blocks - world.kept[w, session]
    world.kept[w, session] = num_blocks


@kernel
def place_on_kept(world: World, w: int, row: int, num_tokens: int, holds_at_once: bool) -> None:
    """Let a prompt that was placed on a worker begin with tokens whose KV is kept there.

    Args:
        world: the world.
        w: the worker.
        row: of `requests`, below N.
        num_tokens: whole blocks, at most what is kept.
        holds_at_once: whether it holds the blocks from now on. Otherwise from its first step on,
            if nobody has taken them by then.
    """
    r = world.requests[row]
    worker = world.workers[w]
    r.num_computed_tokens = r.num_unsent_tokens = num_tokens
    world.sim[row].num_cached_tokens = num_tokens
    session = world.sim[row].session
    if holds_at_once:
        r.num_blocks = num_tokens // worker.block_size
        worker.num_free_blocks -= r.num_blocks
        drop(world, w, session)
    else:
        world.kept_for[w, session] = row


@kernel
def find_kept(world: World, row: int, num_prefix_tokens: int, found: np.ndarray) -> None:
    """Set `found[w]` to the leading tokens of a prompt whose KV worker w keeps: whole blocks."""
    session = world.sim[row].session
    for w in range(world.kept.shape[0]):
        found[w] = 0
        if session >= 0 and world.workers[w].prefills == 1:
            block_size = world.workers[w].block_size
            # The last token of a prompt is always computed: its output is needed.
            num_blocks = min(num_prefix_tokens, world.requests[row].num_prompt_tokens - 1)
            found[w] = min(num_blocks // block_size, world.kept[w, session]) * block_size
