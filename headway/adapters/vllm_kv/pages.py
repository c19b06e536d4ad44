"""vLLM's KV tensors as rows of bytes: one row is one page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from headway.adapters.kv_grpc.checksums import copy_with_checksum
from headway.adapters.kv_grpc.layout import PageLayout
from headway.adapters.kv_grpc.numpy_store import stretches, write_rows
from headway.errors import ConfigError


def _rows(layer: str, tensor: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """The tensor as (num_blocks, page bytes), sharing its memory.

    A page is moved as it lies in memory, whatever order vLLM gives to heads, tokens, keys
    and values inside it; all that is needed is that it lies in one piece.
    """
    if tensor.shape[0] != num_blocks:
        raise ConfigError(
            f"KV transfer needs the block as first dimension, but {layer} is "
            f"{tuple(tensor.shape)} with {num_blocks} blocks"
        )
    inner = sorted(zip(tensor.stride()[1:], tensor.shape[1:], strict=True))
    num_values = 1
    for stride, size in inner:
        if size > 1 and stride != num_values:
            raise ConfigError(f"KV transfer needs pages in one piece, but {layer} is scattered")
        num_values *= size
    flat = torch.as_strided(
        tensor, (num_blocks, num_values), (tensor.stride(0), 1), tensor.storage_offset()
    )
    return flat.view(torch.uint8)


class TorchPageStore:
    """Implements `kv_grpc.layout.PageStore` over the tensors vLLM registers, in layer order.

    On a CPU pages are read and written in place. On a GPU they pass through pinned host
    memory; that path follows the same rows and has not been run yet.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], num_blocks: int) -> None:
        self._rows = [_rows(name, tensor, num_blocks) for name, tensor in tensors.items()]
        sizes = {rows.shape[1] for rows in self._rows}
        if len(sizes) != 1:
            raise ConfigError(f"KV transfer needs pages of one size, but there are {sorted(sizes)}")
        (self.page_bytes,) = sizes
        self._on_gpu = self._rows[0].is_cuda
        # Of CPU tensors, whose memory is read and written directly.
        self._cpu_rows = [] if self._on_gpu else [rows.numpy() for rows in self._rows]
        # Copies to the device go beside the engine's own work, not behind it.
        self._write_stream = torch.cuda.Stream() if self._on_gpu else None

    @property
    def num_layers(self) -> int:
        return len(self._rows)

    def read(self, layers: range, block_ids: Sequence[int]) -> list[memoryview]:
        """See `PageStore`."""
        if not self._on_gpu:
            cpu_rows = self._cpu_rows[layers.start : layers.stop]
            return [pages.data for pages in stretches(cpu_rows, block_ids)]
        return [self._read_from_gpu(self._rows[layer], block_ids) for layer in layers]

    def write(self, layers: range, block_ids: Sequence[int], payload: memoryview) -> int:
        """See `PageStore`."""
        if not self._on_gpu:
            return write_rows(self._cpu_rows[layers.start : layers.stop], block_ids, payload)
        crc32c = 0
        layer_bytes = len(block_ids) * self.page_bytes
        for index, layer in enumerate(layers):
            pages = payload[index * layer_bytes : (index + 1) * layer_bytes]
            crc32c = self._write_to_gpu(self._rows[layer], block_ids, pages, crc32c)
        return crc32c

    def _read_from_gpu(self, rows: torch.Tensor, block_ids: Sequence[int]) -> memoryview:
        gathered = rows.index_select(0, torch.tensor(block_ids, device=rows.device))
        host = torch.empty(gathered.shape, dtype=torch.uint8, pin_memory=True)
        # On the engine's own stream, so behind the kernels that write these pages.
        host.copy_(gathered, non_blocking=True)
        torch.cuda.current_stream(rows.device).synchronize()
        pages: memoryview = host.numpy().reshape(-1).data
        return pages

    def _write_to_gpu(
        self, rows: torch.Tensor, block_ids: Sequence[int], pages: memoryview, crc32c: int
    ) -> int:
        shape = (len(block_ids), self.page_bytes)
        host = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        crc32c = copy_with_checksum(host.numpy().reshape(-1), pages, crc32c)
        with torch.cuda.stream(self._write_stream):
            index = torch.tensor(block_ids, device=rows.device)
            rows.index_copy_(0, index, host.to(rows.device, non_blocking=True))
            # The page counts as received, and `host` is given back, once it is there.
            torch.cuda.current_stream(rows.device).synchronize()
        return crc32c


def layout_of(
    store: TorchPageStore, tensors: Mapping[str, torch.Tensor], vllm_config: Any
) -> PageLayout:
    """The layout, with a digest of all that gives a page's bytes their meaning."""
    hf_config = vllm_config.model_config.hf_config.to_dict()
    # Where the files lay on this machine, and which library wrote them, change nothing.
    for key in ("_name_or_path", "transformers_version"):
        hf_config.pop(key, None)
    facts = {
        "model": hf_config,
        "kv_dtype": vllm_config.cache_config.cache_dtype,
        "block_size": vllm_config.cache_config.block_size,
        "layers": [
            # The number of blocks, shape[0], may differ between engines.
            [name, str(tensor.dtype), list(tensor.shape[1:]), list(tensor.stride()[1:])]
            for name, tensor in tensors.items()
        ],
        "device": next(iter(tensors.values())).device.type,
        "packing": _cpu_packing(tensors, vllm_config),
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return PageLayout(
        num_layers=store.num_layers,
        page_bytes=store.page_bytes,
        digest=hashlib.sha256(text.encode()).digest(),
    )


def _cpu_packing(tensors: Mapping[str, torch.Tensor], vllm_config: Any) -> str:
    """Name of the instruction set for which vLLM packs K and V inside a CPU page."""
    tensor = next(iter(tensors.values()))
    if tensor.device.type != "cpu":
        return ""
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa  # noqa: PLC0415

    model_config = vllm_config.model_config
    packing: str = _get_attn_isa(
        model_config.dtype, vllm_config.cache_config.block_size, model_config.get_head_size()
    )
    return packing
