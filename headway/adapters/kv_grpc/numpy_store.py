"""KV memory in plain RAM, for engines that are not vLLM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headway.adapters.kv_grpc.layout import PageLayout, runs


class NumpyPageStore:
    """Implements `PageStore`.

    Attributes:
        pages: (num_layers, num_blocks, page_bytes), uint8.
    """

    def __init__(self, num_blocks: int, layout: PageLayout) -> None:
        self.pages = np.zeros((layout.num_layers, num_blocks, layout.page_bytes), np.uint8)

    def read(self, layer: int, block_ids: Sequence[int]) -> list[memoryview]:
        rows = self.pages[layer]
        return [rows[run].reshape(-1).data for run in runs(block_ids)]

    def write(self, layer: int, block_ids: Sequence[int], payload: memoryview) -> None:
        rows = self.pages[layer]
        end = 0
        for run in runs(block_ids):
            target = rows[run].reshape(-1).data
            start, end = end, end + target.nbytes
            target[:] = payload[start:end]
