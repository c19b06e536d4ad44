"""The prefill role: prompts in chunks, pages sent after each step."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from dataclasses import dataclass, field

from headway.adapters.emulated import content
from headway.adapters.emulated.batch import Batch
from headway.adapters.emulated.steps import BlockPool, StepLoop
from headway.adapters.kv_grpc.layout import PageLayout
from headway.adapters.kv_grpc.numpy_store import NumpyPageStore
from headway.adapters.kv_grpc.sender import KvSender
from headway.config import EmulatedConfig
from headway.core.batch_state import PREFILL
from headway.core.perf_model import PerfModel, StepShape
from headway.errors import EngineFailed
from headway.ports.engine import PrefillJob, PrefillResult


@dataclass(slots=True)
class _Prompt:
    """One request. `started_at_s` is None until its first step."""

    job: PrefillJob
    computed: asyncio.Future[PrefillResult]
    submitted_at_s: float
    started_at_s: float | None = None
    block_hashes: list[bytes] = field(default_factory=list)
    num_sent_blocks: int = 0


class PrefillWork:
    """Implements `steps.StepWork`: the planner's batch former over the prompts that are here."""

    def __init__(
        self, engine: EmulatedConfig, layout: PageLayout, perf_model: PerfModel, guard_ratio: float
    ) -> None:
        self._engine = engine
        self._layout = layout
        self._store = NumpyPageStore(engine.num_kv_blocks, layout)
        self.blocks = BlockPool(engine.num_kv_blocks)
        self.transport = KvSender(layout, self._store)
        self.steps = StepLoop(self, perf_model, engine.step_time_ratio)
        self.batch = Batch(engine, perf_model, guard_ratio, self.blocks)
        self._arrivals = itertools.count()
        self._prompts: dict[str, _Prompt] = {}

    @property
    def num_waiting(self) -> int:
        return sum(prompt.started_at_s is None for prompt in self._prompts.values())

    @property
    def num_running(self) -> int:
        return len(self._prompts) - self.num_waiting

    @property
    def awaits_transfers(self) -> bool:
        return False

    async def prefill(self, job: PrefillJob) -> PrefillResult:
        """As `ports.Engine.prefill`."""
        now_s = time.monotonic()
        prompt = _Prompt(job, asyncio.get_running_loop().create_future(), now_s)
        self._prompts[job.request_id] = prompt
        due_at_s = math.inf if job.due_s is None else now_s + job.due_s
        self.batch.requests.add(
            job.request_id,
            {
                "order": next(self._arrivals),
                "phase": PREFILL,
                "guaranteed": int(job.due_s is not None),
                "leaves_after_prefill": 1,
                "prefill_due_at_s": due_at_s,
                "next_due_at_s": due_at_s,
                "num_prompt_tokens": len(job.prompt_token_ids),
            },
        )
        self.batch.cap_steps(job.step_cap_s)
        self.steps.work_arrived()
        delivered = False
        try:
            result = await prompt.computed
            delivered = True
            return result
        finally:
            if not delivered:
                self._forget(prompt)

    def begin_step(self) -> StepShape | None:
        shape = self.batch.form(time.monotonic(), self.steps.step_time_ratio)
        for request_id in self.batch.grants:
            prompt = self._prompts[request_id]
            if prompt.started_at_s is None:
                self._start(prompt)
        return shape

    def end_step(self) -> None:
        for request_id, num_outputs in self.batch.compute():
            prompt = self._prompts[request_id]
            self._send_new_pages(prompt, is_whole=num_outputs > 0)
            if num_outputs > 0:
                self._finish(prompt)

    def fail(self, message: str) -> None:
        """End all requests, because no more steps will run."""
        for prompt in self._prompts.values():
            if not prompt.computed.done():
                prompt.computed.set_exception(EngineFailed(message))

    def _start(self, prompt: _Prompt) -> None:
        job = prompt.job
        prompt.started_at_s = time.monotonic()
        prompt.block_hashes = content.block_hashes(
            job.prompt_token_ids, self._engine.kv_block_size, self._engine.seed
        )
        self.transport.open(job.target, len(prompt.block_hashes), job.traceparent)

    def _send_new_pages(self, prompt: _Prompt, *, is_whole: bool) -> None:
        request_id = prompt.job.request_id
        num_computed_tokens = int(self.batch.requests[request_id]["num_computed_tokens"])
        num_complete_blocks = (
            len(prompt.block_hashes)
            if is_whole
            else num_computed_tokens // self._engine.kv_block_size
        )
        first = prompt.num_sent_blocks
        # Fewer than were sent: it was preempted, and computes them again.
        if num_complete_blocks <= first:
            return
        block_ids = self.batch.block_ids[request_id][first:num_complete_blocks]
        for layer in range(self._layout.num_layers):
            new_pages = content.pages(
                prompt.block_hashes[first:num_complete_blocks], layer, self._layout.page_bytes
            )
            self._store.write(range(layer, layer + 1), block_ids, memoryview(new_pages))
        self.transport.push_pages(prompt.job.target.transfer_id, first, block_ids)
        prompt.num_sent_blocks = num_complete_blocks

    def _finish(self, prompt: _Prompt) -> None:
        self.transport.prompt_computed(prompt.job.target.transfer_id)
        self._end(prompt)
        assert prompt.started_at_s is not None
        if not prompt.computed.done():
            prompt.computed.set_result(
                PrefillResult(
                    queued_s=prompt.started_at_s - prompt.submitted_at_s,
                    computed_s=time.monotonic() - prompt.started_at_s,
                    num_cached_tokens=0,
                )
            )

    def _end(self, prompt: _Prompt) -> None:
        del self._prompts[prompt.job.request_id]
        self.batch.remove(prompt.job.request_id)

    def _forget(self, prompt: _Prompt) -> None:
        self.transport.abort(prompt.job.target.transfer_id)
        if self._prompts.get(prompt.job.request_id) is prompt:
            self._end(prompt)
        # The blocks may be what the next request waits for.
        self.steps.work_arrived()
