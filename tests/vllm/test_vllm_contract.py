"""What our adapter rests on inside vLLM. Fails with a name when a vLLM release moves it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.metrics.stats import RequestStateStats
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request, RequestStatus

from headway.adapters.vllm_kv import messages
from headway.adapters.vllm_kv.connector import HeadwayKvConnector


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (Scheduler, ["get_request_counts", "schedule", "update_from_output"]),
        (BlockPool, ["get_num_free_blocks"]),
        (AsyncMPClient, ["call_utility_async"]),
        (AsyncLLM, ["from_engine_args", "generate", "abort", "shutdown", "errored"]),
        (AsyncLLM, ["reset_prefix_cache"]),
        (LLMEngine, ["from_engine_args", "add_request", "abort_request", "step"]),
        (LLMEngine, ["has_unfinished_requests", "get_num_unfinished_requests"]),
        (KVConnectorFactory, ["get_connector_class"]),
        (RequestStatus, ["FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED"]),
        (EngineCore, ["collective_rpc"]),
    ],
)
def test_vllm_still_has_what_we_call(owner: Any, names: list[str]) -> None:
    assert [name for name in names if not hasattr(owner, name)] == []


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (NewRequestData, ["req_id", "block_ids", "num_computed_tokens"]),
        (
            CachedRequestData,
            ["req_ids", "resumed_req_ids", "new_block_ids", "num_computed_tokens"],
        ),
        (
            SchedulerOutput,
            ["scheduled_new_reqs", "scheduled_cached_reqs", "num_scheduled_tokens"],
        ),
        (KVConnectorOutput, ["finished_recving", "invalid_block_ids", "kv_connector_worker_meta"]),
        (RequestStateStats, ["queued_ts", "scheduled_ts", "first_token_ts"]),
        (
            AsyncEngineArgs,
            ["kv_cache_memory_bytes", "scheduling_policy", "otlp_traces_endpoint", "block_size"],
        ),
        (EngineArgs, ["async_scheduling", "speculative_config", "load_format"]),
    ],
)
def test_vllm_still_has_the_fields_we_read(owner: Any, names: list[str]) -> None:
    assert [name for name in names if name not in owner.__dataclass_fields__] == []


def test_a_request_still_carries_what_we_read() -> None:
    source = inspect.getsource(Request.__init__)
    for name in (
        *("request_id", "kv_transfer_params", "num_prompt_tokens", "status"),
        # Set by `headway profile`.
        "spec_token_ids",
    ):
        assert f"self.{name}" in source


def test_the_scheduler_still_tells_the_connector_of_each_step_and_of_its_block_pool() -> None:
    source = inspect.getsource(Scheduler)
    for name in (
        "build_connector_meta",
        "update_connector_output",
        "update_state_after_alloc",
        "get_num_new_matched_tokens",
    ):
        assert f"connector.{name}(" in source
    assert HeadwayKvConnector.bind_gpu_block_pool is not KVConnectorBase_V1.bind_gpu_block_pool
    assert "block_pool" in parameters(KVConnectorBase_V1.bind_gpu_block_pool)[1]


def test_our_connector_overrides_only_hooks_that_vllm_calls() -> None:
    own = {
        name
        for name, value in vars(HeadwayKvConnector).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    hooks = set(dir(KVConnectorBase_V1)) | set(dir(SupportsHMA))
    assert own <= hooks
    for name in own - {"build_connector_worker_meta"}:
        base = getattr(KVConnectorBase_V1, name, None) or getattr(SupportsHMA, name)
        assert parameters(getattr(HeadwayKvConnector, name)) == parameters(base), name


def test_our_messages_are_of_the_kinds_vllm_carries() -> None:
    assert issubclass(messages.StepTransfers, KVConnectorMetadata)
    assert issubclass(messages.StepOutcomes, KVConnectorWorkerMetadata)
    assert issubclass(HeadwayKvConnector, SupportsHMA)
