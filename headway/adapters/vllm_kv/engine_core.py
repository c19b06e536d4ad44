"""What the worker process can ask of vLLM's EngineCore process, and how that one ends.

vLLM finds utility calls as attributes of EngineCore by name and runs them between two steps.
Answers consist of plain values, because they cross a process boundary.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.v1.engine.core import EngineCore

from headway.adapters.process import die_with_parent
from headway.adapters.vllm_scheduler.utilities import headway_steps


def headway_describe(core: Any) -> dict[str, Any]:
    """Fixed properties of the engine's KV memory; on a decode engine also its receiver's."""
    scheduler_side = core.scheduler.connector.scheduler_side
    side = get_kv_transfer_group().worker_side
    return {
        "num_kv_blocks": scheduler_side.num_blocks,
        "kv_block_size": core.vllm_config.cache_config.block_size,
        "kv_bytes_per_block": side.layout.page_bytes * side.layout.num_layers,
        "receiver_address": getattr(side, "address", ""),
        "ticket_secret": getattr(side, "secret", b""),
    }


def headway_load(core: Any) -> dict[str, Any]:
    """What the engine holds now, and the steps it made since the last call."""
    scheduler_side = core.scheduler.connector.scheduler_side
    num_running, num_waiting = core.scheduler.get_request_counts()
    staged = get_kv_transfer_group().worker_side.counters()
    steps = scheduler_side.take_steps()
    return {
        "num_running": num_running,
        "num_waiting": num_waiting,
        "num_free_kv_blocks": core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        "num_kv_blocks_created": scheduler_side.num_blocks_created,
        "num_kv_blocks_released": scheduler_side.num_blocks_released,
        "num_staged_pages_created": staged.num_created,
        "num_staged_pages_released": staged.num_released,
        "steps": [
            [step.duration_s, [[w.num_tokens, w.num_context_tokens] for w in step.works]]
            for step in steps
        ],
        **headway_steps(core),
    }


def headway_claim(core: Any, transfer_id: str) -> dict[str, Any]:
    """Take the books of a transfer whose request has ended."""
    receiving = core.scheduler.connector.scheduler_side.claim(transfer_id)
    if receiving is None:
        return {"num_prompt_tokens_computed": 0, "error": "", "record": None}
    outcome = receiving.outcome
    return {
        "num_prompt_tokens_computed": receiving.num_prompt_tokens_computed,
        "error": outcome.error if outcome else "",
        "record": asdict(outcome.record) if outcome and outcome.record else None,
    }


def headway_waits_for_blocks(core: Any, transfer_id: str) -> bool:
    """Whether the request has not been given KV blocks yet."""
    waits: bool = core.scheduler.connector.scheduler_side.is_waiting_for_blocks(transfer_id)
    return waits


def add_utilities() -> None:
    """Make the functions above callable in the EngineCore of this process."""
    for function in (headway_describe, headway_load, headway_claim, headway_waits_for_blocks):
        setattr(EngineCore, function.__name__, function)


class DiesWithParent:
    """Put into vLLM's config: the EngineCore process that unpickles it ends with its parent.

    Otherwise a worker that is killed leaves its engine behind. Unpickling comes before vLLM
    waits for its parent for the first time, so there is no moment at which it could be left.
    """

    def __init__(self) -> None:
        self._parent_pid = os.getpid()

    def __reduce__(self) -> tuple[Callable[[int], DiesWithParent], tuple[int]]:
        return _unpickle, (self._parent_pid,)


def _unpickle(parent_pid: int) -> DiesWithParent:
    # vLLM also copies its config within the parent.
    if os.getpid() != parent_pid:
        die_with_parent(parent_pid)
    return DiesWithParent()
