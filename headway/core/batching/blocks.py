"""KV blocks: how many it takes, and when they are scarce."""

from __future__ import annotations

from headway.core.kernel import kernel

# Below this share of free blocks every decode is urgent: the sooner they end, the sooner their
# blocks come back, and admission has made sure that all of them find room until then.
SCARCE_BLOCKS = 0.2


@kernel
def blocks_for(num_tokens: int, block_size: int) -> int:
    """KV blocks that hold so many tokens."""
    return (num_tokens + block_size - 1) // block_size
