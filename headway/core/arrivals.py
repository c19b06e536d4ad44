"""Which requests get KV blocks for pages on their way, and who gives way to them."""

from __future__ import annotations

import numpy as np

from headway.core.batch_state import ARRIVING, DECODE, PREFILL, Ints, Records


def next_arrivals(
    requests: Records, granted: Ints, num_free_blocks: int, block_size: int
) -> tuple[list[int], list[int]]:
    """Reserve room for whole prompts: promised ones first, then in the order they came.

    Best effort gives way to a promised one, the last that came first, if that makes enough room.
    The first for which there is none keeps the others waiting.

    Args:
        requests: REQUEST records of one worker; in ARRIVING without blocks, they wait for some.
        granted: tokens that each of them gets from the next step; those with some stay.
        num_free_blocks: before that step takes its own.
        block_size: token slots of a block.

    Returns:
        Rows of those that get blocks now, in order, and rows to be preempted for them.
    """
    ends = requests["num_computed_tokens"] + np.maximum(granted, 0)
    needed = np.maximum(0, -(-ends // block_size) - requests["num_blocks"])
    num_free = num_free_blocks - int(needed[granted > 0].sum())
    waiting = np.flatnonzero((requests["phase"] == ARRIVING) & (requests["num_blocks"] == 0))
    waiting = waiting[np.lexsort((requests["order"][waiting], -requests["guaranteed"][waiting]))]
    yielding = np.flatnonzero(
        (requests["guaranteed"] == 0)
        & ((requests["phase"] == DECODE) | (requests["phase"] == PREFILL))
        & (requests["num_blocks"] > 0)
        & (granted == 0)
    )
    # The last that came is at the end.
    candidates = yielding[np.argsort(requests["order"][yielding])].tolist()
    arriving: list[int] = []
    victims: list[int] = []
    for row in waiting.tolist():
        missing = -(-int(requests["num_prompt_tokens"][row]) // block_size) - num_free
        held = requests["num_blocks"][candidates]
        if missing > 0 and not (requests["guaranteed"][row] and held.sum() >= missing):
            break
        while missing > 0:
            victim = candidates.pop()
            victims.append(victim)
            missing -= int(requests["num_blocks"][victim])
        num_free = -missing
        arriving.append(row)
    return arriving, victims
