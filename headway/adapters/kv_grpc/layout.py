"""How an engine's KV memory looks to the transport."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PageLayout:
    """What both engines must agree on before a page may move.

    Attributes:
        page_bytes: what one KV block holds for one layer.
        digest: SHA-256 over model, dtype, block size and the order of values in a page.
    """

    num_layers: int
    page_bytes: int
    digest: bytes

    def __post_init__(self) -> None:
        if self.num_layers < 1 or self.page_bytes < 1:
            raise ValueError(f"a layout needs layers and bytes, got {self}")


class PageStore(Protocol):
    """The KV memory of one engine. Block ids are the engine's own."""

    def read(self, layers: range, block_ids: Sequence[int]) -> list[memoryview]:
        """The pages of these blocks, by layer, then by block, as contiguous views.

        Few long views are copied faster than many short ones. Valid until the next engine
        step.
        """
        ...

    def write(self, layers: range, block_ids: Sequence[int], payload: memoryview) -> int:
        """Copy `payload`, the pages of these blocks, by layer, then by block, into place.

        Called from the receiver's thread.

        Returns:
            CRC-32C of a copy that nobody else writes to: `payload` may change meanwhile.
        """
        ...


@dataclass(frozen=True, slots=True)
class StagedPageCounters:
    """Pages since the start that were in the transport's hands; at rest both are equal."""

    num_created: int
    num_released: int


def runs(block_ids: Sequence[int]) -> list[slice]:
    """Cut block ids into stretches that lie one after the other in memory, in order."""
    stretches: list[slice] = []
    start = stop = None
    for block_id in block_ids:
        if block_id != stop:
            if start is not None:
                stretches.append(slice(start, stop))
            start = block_id
        stop = block_id + 1
    if start is not None:
        stretches.append(slice(start, stop))
    return stretches
