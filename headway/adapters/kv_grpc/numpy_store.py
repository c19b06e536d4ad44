"""Pages in plain RAM: all of an engine's KV memory that is not vLLM's, and rows of any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headway.adapters.kv_grpc.checksums import copy_with_checksum
from headway.adapters.kv_grpc.layout import PageLayout, runs


def views_of_rows(rows: npt.NDArray[np.uint8], block_ids: Sequence[int]) -> list[memoryview]:
    """The rows of these blocks, each stretch that lies in one piece as one view.

    Args:
        rows: (num_blocks, page_bytes); each row lies in one piece.
        block_ids: in the order of the views.
    """
    if not rows.flags.c_contiguous:
        return [rows[block_id].data for block_id in block_ids]
    return [rows[run].reshape(-1).data for run in runs(block_ids)]


def write_rows(
    rows: npt.NDArray[np.uint8], block_ids: Sequence[int], payload: memoryview, crc32c: int
) -> int:
    """As `PageStore.write`; `rows` as for `views_of_rows`."""
    end = 0
    for target in views_of_rows(rows, block_ids):
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

    def read(self, layer: int, block_ids: Sequence[int]) -> list[memoryview]:
        """See `PageStore`."""
        return views_of_rows(self.pages[layer], block_ids)

    def write(
        self, layer: int, block_ids: Sequence[int], payload: memoryview, crc32c: int = 0
    ) -> int:
        """See `PageStore`."""
        return write_rows(self.pages[layer], block_ids, payload, crc32c)
