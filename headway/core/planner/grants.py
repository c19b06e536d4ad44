"""What grants mean: the blocks they take, and the shape of the step they make."""

from __future__ import annotations

from headway.core.batch_state import PREFILL, Ints, Record, Records
from headway.core.batching import blocks_for
from headway.core.kernel import kernel


@kernel
def take_blocks(requests: Records, ids: Ints, n: int, worker: Record, grants: Ints) -> None:
    """Give each granted request the KV blocks for its new tokens."""
    for k in range(n):
        if grants[k] <= 0:
            continue
        r = requests[ids[k]]
        num_tokens = r.num_computed_tokens + grants[k]
        # Seldom more than it has; to multiply takes much less time than to divide.
        if num_tokens > r.num_blocks * worker.block_size:
            needed = blocks_for(num_tokens, worker.block_size) - r.num_blocks
            r.num_blocks += needed
            worker.num_free_blocks -= needed


@kernel
def shape_of(
    requests: Records, ids: Ints, n: int, grants: Ints
) -> tuple[int, int, int, float, int, int, int]:
    """The arguments of `step_s` and `true_step_s` after the worker, in their order."""
    num_tokens = 0
    num_decodes = 0
    context = 0
    attention = 0.0
    num_chunks = 0
    num_draft_rounds = 0
    num_drafted = 0
    for k in range(n):
        grant = grants[k]
        if grant <= 0:
            continue
        r = requests[ids[k]]
        num_tokens += grant
        if r.phase == PREFILL:
            num_chunks += 1
            attention += grant * (r.num_computed_tokens + 0.5 * grant)
        else:
            num_decodes += 1
            context += r.num_computed_tokens
            num_draft_rounds = max(num_draft_rounds, grant - 1)
            num_drafted += grant - 1
    return num_tokens, num_decodes, context, attention, num_chunks, num_draft_rounds, num_drafted
