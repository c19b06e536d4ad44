"""Pages in plain RAM: all of an engine's KV memory that is not vLLM's, and rows of any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headway.adapters.kv_grpc.checksums import copy_with_checksum
from headway.adapters.kv_grpc.layout import PageLayout, runs

Rows = npt.NDArray[np.uint8]


def stretches(layers: Sequence[Rows], block_ids: Sequence[int]) -> list[Rows]:
    """The pages of these blocks, by layer, then by block; what lies in one piece is one array.

    Args:
        layers: (num_blocks, page_bytes) each, of which at least the rows lie in one piece.
        block_ids: which rows.

    Returns:
        One-dimensional arrays over the same memory.
    """
    slices = runs(block_ids)
    found: list[Rows] = []
    for rows in layers:
        if rows.flags.c_contiguous:
            found.extend(rows[one].reshape(-1) for one in slices)
        else:
            found.extend(rows[block_id] for block_id in block_ids)
    return found


def write_rows(layers: Sequence[Rows], block_ids: Sequence[int], payload: memoryview) -> int:
    """As `PageStore.write`; `layers` as for `stretches`."""
    end = crc32c = 0
    for target in stretches(layers, block_ids):
        start, end = end, end + target.nbytes
        crc32c = copy_with_checksum(target, payload[start:end], crc32c)
    return crc32c


class NumpyPageStore:
    """Implements `PageStore`.

    Attributes:
        pages: (num_layers, num_blocks, page_bytes), uint8.
    """

    def __init__(self, num_blocks: int, layout: PageLayout) -> None:
        self.pages = np.zeros((layout.num_layers, num_blocks, layout.page_bytes), np.uint8)

    def read(self, layers: range, block_ids: Sequence[int]) -> list[memoryview]:
        """See `PageStore`."""
        return [pages.data for pages in stretches(self._of(layers), block_ids)]

    def write(self, layers: range, block_ids: Sequence[int], payload: memoryview) -> int:
        """See `PageStore`."""
        return write_rows(self._of(layers), block_ids, payload)

    def _of(self, layers: range) -> list[Rows]:
        return list(self.pages[layers.start : layers.stop])
