"""KV memory in plain RAM, for engines that are not vLLM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headway.adapters.kv_grpc.layout import PageLayout


class NumpyPageStore:
    """Implements `PageStore`.

    Attributes:
        pages: (num_layers, num_blocks, page_bytes), uint8.
    """

    def __init__(self, num_blocks: int, layout: PageLayout) -> None:
        self.pages = np.zeros((layout.num_layers, num_blocks, layout.page_bytes), np.uint8)

    def read(self, layer: int, block_ids: Sequence[int]) -> list[memoryview]:
        return [self.pages[layer, block_id].data for block_id in block_ids]

    def write(self, layer: int, block_ids: Sequence[int], payload: memoryview) -> None:
        rows = np.frombuffer(payload, np.uint8).reshape(len(block_ids), self.pages.shape[2])
        self.pages[layer, block_ids] = rows
