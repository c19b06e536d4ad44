"""The check that a stack makes of itself before it says that it is ready."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headway.client import AsyncClient
from headway.errors import StackFailed
from headway.ports.engine import DecodeItem, DecodeJob, Engine, PrefillResult
from services.split_check import check_split
from tests.controller_stack import running_stack, stack_config


async def test_a_stack_whose_kv_moves_passes(tmp_path: Path) -> None:
    config = stack_config(tmp_path, costs={"floor_s": 0.002})
    async with running_stack(config) as stack, AsyncClient(stack.address) as client:
        await check_split(client)
        capacity = await stack.wait_at_rest()
    counters = {worker.worker_id: worker.load.resources for worker in capacity.workers}
    assert counters["prefill-0"].num_slots_created == counters["decode-0"].num_slots_created == 1
    assert counters["decode-0"].num_staged_pages_created > 0


def prefilling_silently(engine: Engine) -> Any:
    """`engine.decode`, but the prompt is computed where nobody placed it."""
    decode = engine.decode

    async def decode_here(job: DecodeJob) -> AsyncGenerator[DecodeItem]:
        async with aclosing(decode(replace(job, target=None))) as items:
            async for item in items:
                if not isinstance(item, PrefillResult):
                    yield item

    return decode_here


async def test_a_stack_that_prefills_on_the_decode_side_does_not(tmp_path: Path) -> None:
    config = stack_config(tmp_path, costs={"floor_s": 0.002})
    async with running_stack(config) as stack, AsyncClient(stack.address) as client:
        engine: Any = stack.workers["decode-0"].engine
        engine.decode = prefilling_silently(engine)
        with pytest.raises(StackFailed, match="0 bytes of KV moved from prefill-0 to decode-0"):
            await check_split(client)


async def test_a_stack_whose_worker_keeps_something_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.split_check._SETTLING_S", 0.3)
    config = stack_config(tmp_path, costs={"floor_s": 0.002})
    async with running_stack(config) as stack, AsyncClient(stack.address) as client:
        engine: Any = stack.workers["prefill-0"].engine
        engine._work.blocks.allocate(1)
        with pytest.raises(StackFailed, match="prefill-0 still hold"):
            await check_split(client)
