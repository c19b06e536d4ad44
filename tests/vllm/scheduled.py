"""One vLLM engine in this process with our scheduler, stepped by hand."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.engine.llm_engine import LLMEngine

from bench import tiny_llama
from bench.tiny_llama import write_tiny_llama
from headway.adapters.vllm_scheduler.demand import DEMAND_KEY, Demand
from headway.adapters.vllm_scheduler.scheduler import HeadwayAsyncScheduler, HeadwayScheduler
from headway.core.batch_state import DECODE, LEAVING, PREFILL
from headway.core.perf_model import PerfModel
from headway.core.slo import Promise, StageSlo
from headway.ports.engine import EngineStep
from tests.vllm.conftest import BLOCK_SIZE, KV_BYTES_PER_TOKEN
from tests.vllm.pair import prompt_of

# Slower than any machine, so that a step cap means the same number of tokens on all of them.
SLOW_MODEL = PerfModel(0.4, 0.02, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass
class Asked:
    """A prompt, how many tokens to make of it, and by when."""

    token_ids: Sequence[int]
    num_tokens: int
    promise: Promise | None = None
    tier: str = ""
    step_cap_s: float | None = None


def promise(ttft_s: float, tpot_s: float) -> Promise:
    return Promise(ttft_s, (StageSlo(tpot_s),))


# 30 tokens of `SLOW_MODEL`.
CAP_S = 0.6

LENGTHS = [1, 130, 31, 32, 33, 40, 64, 65, 97, 2]


def questions(*, step_cap_s: float | None = None) -> list[Asked]:
    """Every third one best effort, the others promised, some of them tightly."""
    return [
        Asked(
            prompt_of(length, seed=index),
            6 + index,
            None if index % 3 == 2 else promise(4.0 + 3.0 * index, 0.9 if index % 2 else 3.0),
            step_cap_s=step_cap_s,
        )
        for index, length in enumerate(LENGTHS)
    ]


def demanding(index: int, token_ids: list[int], num_tokens: int, num_asked: int) -> Asked:
    """One of many, with another demand than its neighbours, in one of two tiers."""
    ttft_s = 5.0 + 1.5 * (index % num_asked)
    promised = promise(ttft_s, 0.5 + index % 5) if index % 4 else None
    return Asked(token_ids, num_tokens, promised, f"tier-{index % 2}", CAP_S)


@dataclass
class ScheduledEngine:
    """One, and what it has done.

    Attributes:
        engine: vLLM's LLMEngine.
        expected: what it said before steps were formed.
        address: for plan updates.
        woken: instants at which the scheduler wanted it to look again.
    """

    engine: Any
    num_asked: int = 0
    outputs: dict[str, list[int]] = field(default_factory=dict)
    expected: list[list[int]] = field(default_factory=list)
    address: str = ""
    woken: list[float] = field(default_factory=list)

    def form_steps(self, perf_model: PerfModel = SLOW_MODEL) -> None:
        self.address = self.scheduler.form_steps(
            perf_model, 1.15, lambda: self.woken.append(time.monotonic())
        )

    @property
    def core(self) -> Any:
        return self.engine.engine_core.engine_core

    @property
    def scheduler(self) -> Any:
        return self.core.scheduler

    @contextmanager
    def not_forming(self) -> Iterator[None]:
        """vLLM's own scheduler meanwhile; nothing may be under way at either end."""
        scheduler = self.scheduler
        assert not scheduler.requests
        books, scheduler._books = scheduler._books, None
        yield
        assert not scheduler.requests
        scheduler._books = books

    def ask(self, asked: Asked) -> str:
        self.num_asked += 1
        request_id = f"request-{self.num_asked}"
        demand = Demand(
            request_id,
            time.monotonic(),
            promise=asked.promise,
            tier=asked.tier,
            step_cap_s=asked.step_cap_s,
        )
        self.engine.add_request(
            request_id,
            {"prompt_token_ids": list(asked.token_ids)},
            SamplingParams(
                max_tokens=asked.num_tokens,
                temperature=0,
                ignore_eos=True,
                detokenize=False,
                extra_args={DEMAND_KEY: demand.to_wire()},
            ),
        )
        return request_id

    def step(self) -> None:
        for output in self.engine.step():
            if output.finished:
                self.outputs[output.request_id] = list(output.outputs[0].token_ids)
        self.check_books()

    def run(
        self, asked: Sequence[Asked], after_step: Callable[[int], None] = lambda _: None
    ) -> list[list[int]]:
        """All of these at once; their outputs in order."""
        ids = [self.ask(one) for one in asked]
        num_steps = 0
        while self.engine.has_unfinished_requests():
            self.step()
            num_steps += 1
            assert num_steps < 20_000, "the engine does not get on"
            after_step(num_steps)
        return [self.outputs[request_id] for request_id in ids]

    def finish(self) -> None:
        """Let all that is here end."""
        while self.engine.has_unfinished_requests() or self.scheduler.requests:
            self.step()

    def take_steps(self) -> list[EngineStep]:
        steps: list[EngineStep] = self.scheduler.steps.take()
        return steps

    def internal(self, request_id: str) -> Any:
        """vLLM's own request."""
        return next(
            request
            for internal_id, request in self.scheduler.requests.items()
            if internal_id.startswith(f"{request_id}-") or internal_id == request_id
        )

    def check_books(self) -> None:
        """Our records say what vLLM knows of its requests."""
        scheduler = self.scheduler
        if scheduler.books is None:
            return
        records = scheduler.books.requests
        assert set(records.ids) == set(scheduler.requests)
        for request_id, request in scheduler.requests.items():
            record = records[request_id]
            num_blocks = len(scheduler.kv_cache_manager.get_block_ids(request_id)[0])
            assert record["num_computed_tokens"] == request.num_computed_tokens
            assert record["num_blocks"] == num_blocks
            under_way = request.num_output_placeholders
            if not getattr(request, "num_stale_output_tokens", 0):
                assert record["num_output_tokens"] == request.num_output_tokens + under_way
            is_decode = request.num_computed_tokens >= request.num_tokens + under_way - 1
            if is_decode and request.num_output_tokens + under_way:
                assert record["phase"] in (DECODE, LEAVING)
            elif not getattr(request, "num_stale_output_tokens", 0):
                assert record["phase"] == PREFILL
                assert record["num_prompt_tokens"] == request.num_tokens
            line = scheduler.books.demands[request_id].line()
            if line is None:
                assert math.isinf(record["next_due_at_s"])
            elif not getattr(request, "num_stale_output_tokens", 0):
                for token_id in request.output_token_ids:
                    line.token(token_id, 0.0)
                due_at_s = line.next_due_at_s + under_way * line.pace[0]
                assert record["next_due_at_s"] == pytest.approx(due_at_s)

    def close(self) -> None:
        self.engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def start_scheduled(
    model: Path, *, is_async: bool, num_blocks: int, kv_bytes_per_token: int, **options: Any
) -> ScheduledEngine:
    """float32, on this thread's core; it is vLLM's own scheduler until `form_steps`."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    configure = CpuPlatform.check_and_update_config.__func__

    def leave_async(cls: Any, vllm_config: Any) -> None:
        # vLLM switches asynchronous scheduling off on CPUs, where it gains nothing; it works.
        configure(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = is_async

    CpuPlatform.check_and_update_config = classmethod(leave_async)
    # vLLM looks through all modules for kernels, and trips over a value in this one, which numba
    # loads. In an engine's own process numba comes later.
    hidden = sys.modules.pop("llvmlite.binding.ffi", None)
    scheduler = HeadwayAsyncScheduler if is_async else HeadwayScheduler
    try:
        arguments: dict[str, Any] = {
            "model": str(model),
            "dtype": "float32",
            "enforce_eager": True,
            # vLLM wants room for one request of this length.
            "max_model_len": num_blocks * BLOCK_SIZE,
            "max_num_batched_tokens": 256,
            "max_num_seqs": 16,
            "enable_prefix_caching": False,
            "block_size": BLOCK_SIZE,
            "kv_cache_memory_bytes": (num_blocks + 1) * BLOCK_SIZE * kv_bytes_per_token,
            "async_scheduling": is_async,
            "skip_tokenizer_init": True,
            "scheduler_cls": f"{scheduler.__module__}.{scheduler.__name__}",
        }
        engine = LLMEngine.from_engine_args(
            EngineArgs(**(arguments | options)), enable_multiprocessing=False
        )
    finally:
        CpuPlatform.check_and_update_config = classmethod(configure)
        if hidden is not None:
            sys.modules["llvmlite.binding.ffi"] = hidden
    return ScheduledEngine(engine)


def start_smollm2(
    model: Path, *, is_async: bool, num_blocks: int = 40, **options: Any
) -> ScheduledEngine:
    return start_scheduled(
        model,
        is_async=is_async,
        num_blocks=num_blocks,
        kv_bytes_per_token=KV_BYTES_PER_TOKEN,
        **options,
    )


def start_tiny(folder: Path, *, is_async: bool, num_blocks: int) -> ScheduledEngine:
    """Fast; but what it says depends on little more than the last token."""
    write_tiny_llama(folder)
    return start_scheduled(
        folder,
        is_async=is_async,
        num_blocks=num_blocks,
        kv_bytes_per_token=tiny_llama.KV_BYTES_PER_TOKEN,
        load_format="dummy",
    )
