"""Steps formed as the planner forms them: the same batch former, over this engine's own books."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from headway.adapters.emulated.steps import BlockPool
from headway.config import EmulatedConfig
from headway.core.batch_state import DECODE, GONE, PREEMPT, PREFILL, REQUEST
from headway.core.batching import form_slack
from headway.core.numba_start import load_numba
from headway.core.perf_model import PerfModel, PrefillChunk, StepShape
from headway.core.request_table import RequestTable, worker_records


class Batch:
    """The requests in one engine, and which of them the next step computes.

    Attributes:
        requests: what the former sees; phases and counts are kept up to date by the owner.
        block_ids: held by each request, in order.
        num_preemptions: of each request that lost its blocks.
        grants: tokens that each request gets from the step that runs.
    """

    def __init__(
        self, engine: EmulatedConfig, perf_model: PerfModel, guard_ratio: float, blocks: BlockPool
    ) -> None:
        self.requests = RequestTable()
        self.block_ids: dict[str, list[int]] = {}
        self.grants: dict[str, int] = {}
        self.num_preemptions: Counter[str] = Counter()
        self._blocks = blocks
        self._worker = worker_records(
            perf_model,
            block_size=engine.kv_block_size,
            num_blocks=engine.num_kv_blocks,
            max_step_tokens=engine.max_step_tokens,
            max_running=engine.max_num_running,
            guard_ratio=guard_ratio,
        )

    def warm_up(self) -> None:
        """Load the former's compiled code, or make it, before a step waits for it."""
        load_numba()
        nobody = np.zeros(1, REQUEST)
        nobody["phase"] = GONE
        grants = np.zeros(1, np.int64)
        form_slack(0.0, nobody, np.arange(1), 1, self._worker[0], grants)

    def cap_steps(self, step_cap_s: float | None) -> None:
        """Bound steps from now on, while promised prompts wait; None changes nothing."""
        if step_cap_s is not None:
            self._worker["step_cap_s"] = step_cap_s

    def form(self, now_s: float, time_ratio: float) -> StepShape | None:
        """Choose the next step, and take the blocks for it; None if nothing can be computed.

        Args:
            now_s: the step's start, on the clock of the due times.
            time_ratio: measured / predicted step time; 0 if not known.
        """
        records, ids = self.requests.records, list(self.requests.ids)
        self.grants = {}
        if not ids:
            return None
        self._worker["num_free_blocks"] = self._blocks.num_free
        # As the planner: never sped up.
        self._worker["time_ratio"] = max(1.0, time_ratio)
        grants = np.zeros(len(ids), np.int64)
        form_slack(now_s, records, np.arange(len(ids)), len(ids), self._worker[0], grants)
        chosen = dict(zip(ids, grants.tolist(), strict=True))
        for request_id, grant in chosen.items():
            if grant == PREEMPT:
                self.preempt(request_id)
        self.grants = {request_id: grant for request_id, grant in chosen.items() if grant > 0}
        for request_id, grant in self.grants.items():
            num_tokens = int(self.requests[request_id]["num_computed_tokens"]) + grant
            self.hold_blocks_for(request_id, num_tokens)
        return self._shape() if self.grants else None

    def hold_blocks_for(self, request_id: str, num_tokens: int) -> None:
        """Take the blocks that are missing for so many tokens; there must be enough."""
        held = self.block_ids.setdefault(request_id, [])
        block_size = int(self._worker["block_size"][0])
        held += self._blocks.allocate(max(0, -(-num_tokens // block_size) - len(held)))
        self.requests[request_id]["num_blocks"] = len(held)

    def preempt(self, request_id: str) -> None:
        """Free the request's blocks; what it had computed, output included, is a prompt again."""
        self._blocks.release(self.block_ids.pop(request_id, []))
        self.num_preemptions[request_id] += 1
        record = self.requests[request_id]
        if record["phase"] == DECODE:
            # All it has KV for, and the token that its next step would have started from.
            record["num_prompt_tokens"] = record["num_computed_tokens"] + 1
            record["prefill_due_at_s"] = record["next_due_at_s"]
            record["phase"] = PREFILL
        record["num_blocks"] = record["num_computed_tokens"] = 0

    def compute(self) -> Iterator[tuple[str, int]]:
        """Count what the step computed; yields each request in it that is here still.

        Yields:
            Request id, and how many output tokens it has now: of a prompt that is not complete
            0 more than before, else 1 more. A complete prompt becomes a decode.
        """
        for request_id, grant in self.grants.items():
            if request_id not in self.requests:
                continue
            record = self.requests[request_id]
            record["num_computed_tokens"] += grant
            is_complete = record["num_computed_tokens"] >= record["num_prompt_tokens"]
            if record["phase"] == DECODE or is_complete:
                record["phase"] = DECODE
                record["num_output_tokens"] += 1
            yield request_id, int(record["num_output_tokens"])

    def remove(self, request_id: str) -> None:
        """Forget a request and free its blocks."""
        self.requests.remove(request_id)
        self.num_preemptions.pop(request_id, None)
        self._blocks.release(self.block_ids.pop(request_id, []))

    def _shape(self) -> StepShape:
        chunks, num_decodes, num_context_tokens = [], 0, 0
        for request_id, grant in self.grants.items():
            record = self.requests[request_id]
            num_computed_tokens = int(record["num_computed_tokens"])
            if record["phase"] == PREFILL:
                chunks.append(PrefillChunk(grant, num_computed_tokens))
            else:
                num_decodes += 1
                num_context_tokens += num_computed_tokens
        return StepShape(tuple(chunks), num_decodes, num_context_tokens)
