"""The connector's parts that need no engine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from headway.adapters.vllm_kv.messages import Push
from headway.adapters.vllm_kv.pages import TorchPageStore
from headway.adapters.vllm_kv.scheduler_side import SchedulerSide
from headway.errors import ConfigError

REQUEST = SimpleNamespace(
    request_id="r",
    num_prompt_tokens=100,
    kv_transfer_params={
        "headway": "send",
        "transfer_id": "t",
        "address": "127.0.0.1:1",
        "ticket": b"",
        "traceparent": "",
    },
)


def step(
    num_tokens: int, num_computed: int, block_ids: list[int], kind: str = "running"
) -> SimpleNamespace:
    """One step of vLLM's scheduler with request r alone."""
    new = SimpleNamespace(req_id="r", block_ids=(block_ids,), num_computed_tokens=num_computed)
    cached = SimpleNamespace(
        req_ids=[] if kind == "new" else ["r"],
        new_block_ids=[(block_ids,)],
        num_computed_tokens=[num_computed],
        resumed_req_ids={"r"} if kind == "resumed" else set(),
    )
    return SimpleNamespace(
        num_scheduled_tokens={"r": num_tokens},
        scheduled_new_reqs=[new] if kind == "new" else [],
        scheduled_cached_reqs=cached,
    )


def test_blocks_are_sent_as_soon_as_they_are_full_and_the_last_one_partly_filled() -> None:
    side = SchedulerSide(block_size=16)
    side.blocks_allocated(REQUEST, [5, 6, 7, 8], 0)
    assert side.step_scheduled(step(40, 0, [5, 6, 7], "new")).pushes == [
        Push("t", 0, (5, 6), is_last=False)
    ]
    assert side.step_scheduled(step(5, 40, [])).pushes == []
    assert side.step_scheduled(step(55, 45, [8, 9, 1, 2])).pushes == [
        Push("t", 2, (7, 8, 9, 1, 2), is_last=True)
    ]


def test_blocks_from_the_prefix_cache_are_sent_too() -> None:
    side = SchedulerSide(block_size=16)
    side.blocks_allocated(REQUEST, [5, 6, 7, 8, 9, 1, 2], 0)
    assert side.step_scheduled(step(52, 48, [5, 6, 7, 8, 9, 1, 2], "new")).pushes == [
        Push("t", 0, (5, 6, 7, 8, 9, 1, 2), is_last=True)
    ]


@pytest.mark.parametrize("kind", ["resumed", "new"])
def test_after_a_preemption_only_unsent_blocks_are_sent_from_the_new_places(kind: str) -> None:
    side = SchedulerSide(block_size=16)
    side.blocks_allocated(REQUEST, [5, 6, 7], 0)
    side.step_scheduled(step(40, 0, [5, 6, 7], "new"))
    side.blocks_allocated(REQUEST, [10, 11, 12], 0)
    resumed = side.step_scheduled(step(20, 0, [10, 11], kind))
    assert resumed.pushes == []
    assert resumed.opens == []
    assert side.step_scheduled(step(80, 20, [12, 13, 14, 15, 16])).pushes == [
        Push("t", 2, (12, 13, 14, 15, 16), is_last=True)
    ]


def test_pages_keep_their_bytes_whatever_the_order_inside_them() -> None:
    shape = (6, 2, 4, 3)
    plain = torch.arange(144, dtype=torch.float32).reshape(shape)
    permuted = torch.empty((6, 4, 2, 3)).permute(0, 2, 1, 3).copy_(plain)
    for tensor in (plain, permuted):
        source = TorchPageStore({"a": tensor}, 6)
        target_tensor = torch.empty_like(tensor)
        target = TorchPageStore({"a": target_tensor}, 6)
        payload = b"".join(source.read(range(1), [4, 1]))
        target.write(range(1), [2, 5], memoryview(payload))
        assert torch.equal(target_tensor[2], tensor[4])
        assert torch.equal(target_tensor[5], tensor[1])


def test_layouts_whose_pages_are_in_pieces_are_refused() -> None:
    scattered = torch.zeros(3, 2, 5, 4).transpose(0, 1)
    with pytest.raises(ConfigError, match="scattered"):
        TorchPageStore({"a": torch.zeros(6, 2, 4, 6)[..., ::2]}, 6)
    with pytest.raises(ConfigError, match="first dimension"):
        TorchPageStore({"a": scattered}, 3)
