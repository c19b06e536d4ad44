"""The prefill role: prompts in chunks, pages sent after each step."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from headway.adapters.emulated import content
from headway.adapters.emulated.steps import BlockPool, StepLoop
from headway.adapters.kv_grpc.layout import PageLayout
from headway.adapters.kv_grpc.numpy_store import NumpyPageStore
from headway.adapters.kv_grpc.sender import KvSender
from headway.config import EmulatedConfig
from headway.core.perf_model import PerfModel, PrefillChunk, StepShape
from headway.errors import EngineFailed
from headway.ports import PrefillJob, PrefillResult


@dataclass(slots=True, order=True)
class _Waiting:
    priority: int
    arrival: int
    job: PrefillJob = field(compare=False)
    computed: asyncio.Future[PrefillResult] = field(compare=False)
    submitted_at_s: float = field(compare=False)


@dataclass(slots=True)
class _Running:
    waiting: _Waiting
    block_ids: list[int]
    block_hashes: list[bytes]
    started_at_s: float
    num_computed_tokens: int = 0
    num_sent_blocks: int = 0

    @property
    def job(self) -> PrefillJob:
        return self.waiting.job


class PrefillWork:
    """Implements `steps.StepWork`.

    As vLLM does, a step goes on with the prompts that are under way, in the order in which
    they started, before it starts new ones by (priority, arrival). A prompt starts when there
    are KV blocks for all of it, and those behind it wait with it.
    """

    def __init__(self, engine: EmulatedConfig, layout: PageLayout, perf_model: PerfModel) -> None:
        self._engine = engine
        self._layout = layout
        self._store = NumpyPageStore(engine.num_kv_blocks, layout)
        self.blocks = BlockPool(engine.num_kv_blocks)
        self.transport = KvSender(layout, self._store)
        self.steps = StepLoop(self, perf_model)
        self._arrivals = itertools.count()
        self._waiting: list[_Waiting] = []
        self._running: dict[str, _Running] = {}
        self._batch: list[tuple[str, int]] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def awaits_transfers(self) -> bool:
        return False

    async def prefill(self, job: PrefillJob) -> PrefillResult:
        """As `ports.Engine.prefill`."""
        waiting = _Waiting(
            job.priority,
            next(self._arrivals),
            job,
            asyncio.get_running_loop().create_future(),
            time.monotonic(),
        )
        heapq.heappush(self._waiting, waiting)
        self.steps.work_arrived()
        delivered = False
        try:
            result = await waiting.computed
            delivered = True
            return result
        finally:
            if not delivered:
                self._forget(waiting)

    def begin_step(self) -> StepShape | None:
        num_tokens_left = self._engine.max_step_tokens
        chunks = []
        self._batch = []
        for request in itertools.chain(list(self._running.values()), self._start_new()):
            num_prompt_tokens = len(request.job.prompt_token_ids)
            num_tokens = min(num_prompt_tokens - request.num_computed_tokens, num_tokens_left)
            chunks.append(PrefillChunk(num_tokens, request.num_computed_tokens))
            self._batch.append((request.job.request_id, num_tokens))
            num_tokens_left -= num_tokens
            if num_tokens_left == 0:
                break
        return StepShape(chunks=tuple(chunks)) if chunks else None

    def end_step(self) -> None:
        for request_id, num_tokens in self._batch:
            request = self._running.get(request_id)
            if request is None:
                continue
            request.num_computed_tokens += num_tokens
            self._send_new_pages(request)
            if request.num_computed_tokens == len(request.job.prompt_token_ids):
                self._finish(request)

    def fail(self, message: str) -> None:
        """End all requests, because no more steps will run."""
        for waiting in [*self._waiting, *(request.waiting for request in self._running.values())]:
            if not waiting.computed.done():
                waiting.computed.set_exception(EngineFailed(message))

    def _start_new(self) -> Iterator[_Running]:
        while self._waiting and len(self._running) < self._engine.max_num_running:
            job = self._waiting[0].job
            num_blocks = -(-len(job.prompt_token_ids) // self._engine.kv_block_size)
            if num_blocks > self.blocks.num_free:
                return
            hashes = content.block_hashes(
                job.prompt_token_ids, self._engine.kv_block_size, self._engine.seed
            )
            request = _Running(
                heapq.heappop(self._waiting),
                self.blocks.allocate(num_blocks),
                hashes,
                time.monotonic(),
            )
            self._running[job.request_id] = request
            self.transport.open(job.target, num_blocks, job.traceparent)
            yield request

    def _send_new_pages(self, request: _Running) -> None:
        is_whole = request.num_computed_tokens == len(request.job.prompt_token_ids)
        num_complete_blocks = (
            len(request.block_ids)
            if is_whole
            else request.num_computed_tokens // self._engine.kv_block_size
        )
        first = request.num_sent_blocks
        if num_complete_blocks == first:
            return
        block_ids = request.block_ids[first:num_complete_blocks]
        for layer in range(self._layout.num_layers):
            new_pages = content.pages(
                request.block_hashes[first:num_complete_blocks], layer, self._layout.page_bytes
            )
            self._store.write(layer, block_ids, memoryview(new_pages))
        self.transport.push_pages(request.job.target.transfer_id, first, block_ids)
        request.num_sent_blocks = num_complete_blocks

    def _finish(self, request: _Running) -> None:
        self.transport.prompt_computed(request.job.target.transfer_id)
        self._end(request)
        computed = request.waiting.computed
        if not computed.done():
            computed.set_result(
                PrefillResult(
                    queued_s=request.started_at_s - request.waiting.submitted_at_s,
                    computed_s=time.monotonic() - request.started_at_s,
                    num_cached_tokens=0,
                )
            )

    def _end(self, request: _Running) -> None:
        del self._running[request.job.request_id]
        self.blocks.release(request.block_ids)

    def _forget(self, waiting: _Waiting) -> None:
        self.transport.abort(waiting.job.target.transfer_id)
        request = self._running.get(waiting.job.request_id)
        if request is not None:
            self._end(request)
        elif waiting in self._waiting:
            self._waiting.remove(waiting)
            heapq.heapify(self._waiting)
        # The blocks may be what the next request waits for.
        self.steps.work_arrived()
