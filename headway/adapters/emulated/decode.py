"""The decode role: pages arrive and are checked, or prompts are computed; then tokens come."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import secrets
import time
from collections.abc import AsyncGenerator

from headway.adapters.emulated import content
from headway.adapters.emulated.batch import Batch
from headway.adapters.emulated.sequence import Sequence
from headway.adapters.emulated.steps import BlockPool, StepLoop
from headway.adapters.kv_grpc.layout import PageLayout
from headway.adapters.kv_grpc.numpy_store import NumpyPageStore
from headway.adapters.kv_grpc.receiver import KvReceiver, TransferOutcome
from headway.adapters.kv_grpc.tickets import TicketMint
from headway.config import EmulatedConfig
from headway.core.batch_state import ARRIVING, DECODE, PREFILL
from headway.core.perf_model import PerfModel, StepShape
from headway.core.request_table import demand_fields
from headway.core.slo import DemandLine
from headway.errors import EngineFailed, KvTransferFailed
from headway.ports.engine import DecodeItem, DecodeJob, EngineFinished, EngineTokens, KvTarget


class DecodeWork:
    """Implements `steps.StepWork`.

    A sequence gets KV blocks for its prompt, in order of (priority, arrival), then waits for
    its pages; from then on the planner's batch former says in which steps it takes part. One
    whose prompt is computed here is the former's from the start. One that loses its blocks to
    another computes its prompt and its output so far again.
    """

    def __init__(
        self,
        engine: EmulatedConfig,
        layout: PageLayout,
        perf_model: PerfModel,
        guard_ratio: float,
        host: str,
    ) -> None:
        self._engine = engine
        self._layout = layout
        self._store = NumpyPageStore(engine.num_kv_blocks, layout)
        self.blocks = BlockPool(engine.num_kv_blocks)
        secret = secrets.token_bytes(32)
        self._mint = TicketMint(secret)
        self.transport = KvReceiver(host, layout, self._store, secret)
        self.steps = StepLoop(self, perf_model, engine.step_time_ratio)
        self.batch = Batch(engine, perf_model, guard_ratio, self.blocks)
        self._arrivals = itertools.count()
        self._waiting: list[Sequence] = []
        self._loading: dict[str, Sequence] = {}
        self._running: dict[str, Sequence] = {}

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._loading) + self._num_unstarted

    @property
    def num_running(self) -> int:
        return len(self._running) - self._num_unstarted

    @property
    def _num_unstarted(self) -> int:
        return sum(sequence.is_unstarted_prompt for sequence in self._running.values())

    @property
    def awaits_transfers(self) -> bool:
        return bool(self._loading)

    def mint_target(self, request_id: str) -> KvTarget:
        """As `ports.Engine.mint_target`."""
        transfer_id, ticket = self._mint.mint(request_id)
        return KvTarget(self.transport.address, transfer_id, ticket)

    async def decode(self, job: DecodeJob) -> AsyncGenerator[DecodeItem]:
        """As `ports.Engine.decode`."""
        sequence = self._submit(job)
        # Blocks are reserved in time or not at all; from then on the receiver keeps the time.
        # For a prompt that is computed here they are taken step by step.
        timer = asyncio.get_running_loop().call_later(job.kv_timeout_s, self._expire, sequence)
        output = sequence.output
        try:
            num_taken = 0
            while num_taken < len(output.token_ids):
                await sequence.progress.wait()
                sequence.progress.clear()
                if sequence.failure is not None:
                    raise sequence.failure
                if sequence.prefill is not None:
                    result, sequence.prefill = sequence.prefill, None
                    yield result
                new = slice(num_taken, sequence.num_ready)
                num_taken = sequence.num_ready
                yield EngineTokens(tuple(output.token_ids[new]), output.text[new])
            yield EngineFinished(
                output.finish_reason, sequence.num_recomputed, sequence.kv_transfer
            )
        finally:
            timer.cancel()
            self._forget(sequence)

    def begin_step(self) -> StepShape | None:
        for outcome in self.transport.poll() if self._loading else ():
            self._transfer_ended(outcome)
        self._reserve_blocks()
        now_s = time.monotonic()
        shape = self.batch.form(now_s, self.steps.step_time_ratio)
        for request_id in self.batch.grants:
            if self._running[request_id].is_unstarted_prompt:
                self._running[request_id].started_at_s = now_s
        return shape

    def end_step(self) -> None:
        now_s = time.monotonic()
        for request_id, num_outputs in self.batch.compute():
            sequence = self._running[request_id]
            if num_outputs == sequence.num_ready:
                continue  # a part of its prompt, or of what it computes again
            if sequence.num_ready == 0 and sequence.job.target is None:
                sequence.prompt_computed(now_s)
            if sequence.demand is not None:
                sequence.demand.token(sequence.output.token_ids[sequence.num_ready], now_s)
                record = self.batch.requests[request_id]
                for name, value in demand_fields(sequence.demand).items():
                    record[name] = value
                record["lead_s"] = sequence.demand.lead_s
            sequence.num_ready = num_outputs
            sequence.progress.set()
            if sequence.num_ready == len(sequence.output.token_ids):
                self._finish(sequence)

    def fail(self, message: str) -> None:
        """End all requests, because no more steps will run."""
        for sequence in (*self._waiting, *self._loading.values(), *self._running.values()):
            sequence.fail(EngineFailed(message))

    def _submit(self, job: DecodeJob) -> Sequence:
        hashes = content.block_hashes(
            job.prompt_token_ids, self._engine.kv_block_size, self._engine.seed
        )
        now_s = time.monotonic()
        sequence = Sequence(
            job.priority,
            next(self._arrivals),
            job,
            now_s,
            hashes,
            content.output(hashes[-1], job.sampling),
            DemandLine(job.promise, now_s) if job.promise is not None else None,
        )
        if job.target is None:
            self._begin_here(sequence)
        else:
            heapq.heappush(self._waiting, sequence)
        self.batch.cap_steps(job.step_cap_s)
        self.steps.work_arrived()
        return sequence

    def _reserve_blocks(self) -> None:
        while (
            self._waiting and len(self._running) + len(self._loading) < self._engine.max_num_running
        ):
            sequence = self._waiting[0]
            num_missing = sequence.num_prompt_blocks - self.blocks.num_free
            if num_missing > 0 and not self._make_room(sequence, num_missing):
                return
            heapq.heappop(self._waiting)
            assert sequence.job.target is not None
            self._expect(sequence, sequence.job.target.transfer_id)

    def _make_room(self, sequence: Sequence, num_blocks: int) -> bool:
        """Preempt best effort, the last that came first, if that frees so many blocks."""
        if sequence.demand is None:
            return False
        victims = sorted(
            (
                other
                for other in self._running.values()
                if other.demand is None and other.job.request_id in self.batch.block_ids
            ),
            key=lambda other: other.arrival,
        )
        held = [len(self.batch.block_ids[victim.job.request_id]) for victim in victims]
        if sum(held) < num_blocks:
            return False
        while num_blocks > 0:
            num_blocks -= held.pop()
            self.batch.preempt(victims.pop().job.request_id)
        return True

    def _begin_here(self, sequence: Sequence) -> None:
        """Let the former compute a prompt."""
        due_s = sequence.job.prefill_due_s
        due_at_s = math.inf if due_s is None else sequence.submitted_at_s + due_s
        # Until it is computed, nothing else is due.
        self._add_record(sequence, PREFILL, prefill_due_at_s=due_at_s, next_due_at_s=due_at_s)
        self._running[sequence.job.request_id] = sequence

    def _add_record(self, sequence: Sequence, phase: int, **due_at_s: float) -> None:
        job = sequence.job
        self.batch.requests.add(
            job.request_id,
            {
                "order": sequence.arrival,
                "phase": phase,
                "num_prompt_tokens": len(job.prompt_token_ids),
                "num_output_bound": job.sampling.max_tokens,
                **demand_fields(sequence.demand),
                **due_at_s,
            },
        )

    def _expect(self, sequence: Sequence, transfer_id: str) -> None:
        """Take the blocks of a prompt and let its pages come."""
        job = sequence.job
        self._add_record(sequence, ARRIVING, prefill_due_at_s=math.inf)
        self.batch.hold_blocks_for(job.request_id, len(job.prompt_token_ids))
        self._loading[transfer_id] = sequence
        kv_due_at_s = sequence.submitted_at_s + job.kv_timeout_s
        self.transport.expect(
            transfer_id,
            self.batch.block_ids[job.request_id],
            first_block=0,
            timeout_s=max(0.0, kv_due_at_s - time.monotonic()),
        )

    def _transfer_ended(self, outcome: TransferOutcome) -> None:
        sequence = self._loading.pop(outcome.transfer_id, None)
        if sequence is None:
            # Its consumer went away after the transfer had ended, and before this step.
            return
        if outcome.record is None:
            sequence.fail(KvTransferFailed(outcome.error))
        elif not self._pages_are_right(sequence):
            sequence.fail(KvTransferFailed("the pages that arrived are not those of the prompt"))
        else:
            self._running[sequence.job.request_id] = sequence
            record = self.batch.requests[sequence.job.request_id]
            record["phase"] = DECODE
            # The last prompt token is what the first step computes from.
            record["num_computed_tokens"] = record["num_prompt_tokens"] - 1
            sequence.kv_transfer = outcome.record
            return
        self._release_blocks(sequence)

    def _pages_are_right(self, sequence: Sequence) -> bool:
        block_ids = self.batch.block_ids[sequence.job.request_id]
        return all(
            b"".join(self._store.read(range(layer, layer + 1), block_ids))
            == content.pages(sequence.block_hashes, layer, self._layout.page_bytes)
            for layer in range(self._layout.num_layers)
        )

    def _expire(self, sequence: Sequence) -> None:
        if sequence in self._waiting:
            sequence.fail(KvTransferFailed("no KV blocks became free in time"))

    def _finish(self, sequence: Sequence) -> None:
        request_id = sequence.job.request_id
        del self._running[request_id]
        num_times = self.batch.num_preemptions[request_id]
        num_again = num_times * len(sequence.job.prompt_token_ids)
        sequence.num_recomputed = num_again + int(sequence.job.target is not None)
        self._release_blocks(sequence)

    def _forget(self, sequence: Sequence) -> None:
        """Free what is left of a request whose consumer has gone, at whatever stage it is."""
        if sequence.job.request_id in self._running:
            self._finish(sequence)
            return
        if sequence.job.target is None:
            return
        transfer_id = sequence.job.target.transfer_id
        is_waiting = sequence in self._waiting
        if is_waiting:
            self._waiting.remove(sequence)
            heapq.heapify(self._waiting)
        if is_waiting or self._loading.pop(transfer_id, None) is not None:
            try:
                self.transport.abort(transfer_id)
            finally:
                # Not before the abort: until then pages may be written to them.
                self._release_blocks(sequence)

    def _release_blocks(self, sequence: Sequence) -> None:
        self.batch.remove(sequence.job.request_id)
        # They may be what the next request waits for.
        self.steps.work_arrived()
