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

    def read(self, layer: int, block_ids: Sequence[int]) -> list[memoryview]:
        """One contiguous view of `page_bytes` for each block; valid until the next engine step."""
        ...

    def write(self, layer: int, block_ids: Sequence[int], payload: memoryview) -> None:
        """Copy `payload`, the pages of `block_ids` one after the other, into place.

        Called from the receiver's thread.
        """
        ...


@dataclass(frozen=True, slots=True)
class StagedPageCounters:
    """Pages since the start that were in the transport's hands; at rest both are equal."""

    num_created: int
    num_released: int
