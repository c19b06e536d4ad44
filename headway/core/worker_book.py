"""What the controller knows of one worker: what it gave to it, and what it reported."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from headway.core.batch_state import ARRIVING, DECODE, LEAVING, PREFILL
from headway.core.cluster import WorkerLoad, WorkerRole, WorkerSnapshot, WorkerSpec
from headway.core.progress import Progress
from headway.core.request_table import RequestTable, copy_records, demand_fields


@dataclass(slots=True)
class OverheadEstimate:
    """An upper estimate of a noisy duration: its mean plus four mean deviations.

    Source: the round-trip estimator of RFC 6298, section 2, with its gains of 1/8 and 1/4.
    """

    _mean_s: float = 0.0
    _deviation_s: float = 0.0
    _num_samples: int = 0

    @property
    def upper_s(self) -> float:
        """Seconds; 0 before the first sample."""
        return self._mean_s + 4 * self._deviation_s

    def add(self, sample_s: float) -> None:
        if self._num_samples == 0:
            self._mean_s, self._deviation_s = sample_s, sample_s / 2
        else:
            self._deviation_s += (abs(sample_s - self._mean_s) - self._deviation_s) / 4
            self._mean_s += (sample_s - self._mean_s) / 8
        self._num_samples += 1


@dataclass(slots=True)
class WorkerBook:
    """Everything given to one worker and not ended; its snapshot is built when it is read."""

    spec: WorkerSpec
    load: WorkerLoad = field(default_factory=WorkerLoad)
    overhead: OverheadEstimate = field(default_factory=OverheadEstimate)
    local_overhead: OverheadEstimate = field(default_factory=OverheadEstimate)
    _table: RequestTable = field(default_factory=RequestTable)
    _with_new_tokens: dict[str, Progress] = field(default_factory=dict)
    _last_prefill_ended_at_s: float = -math.inf
    _step_cap_s: float = math.inf
    _snapshot: WorkerSnapshot | None = None

    def report(self, load: WorkerLoad) -> None:
        self.load = load
        self._snapshot = None

    def set_prefills_locally(self, prefills_locally: bool) -> None:
        """Note whether prompts may be placed on this decode worker."""
        self.spec = replace(self.spec, prefills_locally=prefills_locally)
        self._snapshot = None

    @property
    def has_prompts(self) -> bool:
        """Whether a prompt that is not computed yet was given to this worker."""
        return bool((self.snapshot().requests["phase"] == PREFILL).any())

    def give(self, request: Progress) -> None:
        """Note a request placed on this worker."""
        assert request.placement is not None
        leaves = self.spec.role is WorkerRole.PREFILL
        is_computed_here = leaves or request.prefills_locally
        if is_computed_here and request.placement.step_cap_s is not None:
            self._step_cap_s = request.placement.step_cap_s
        num_prompt_tokens = request.spec.num_prompt_tokens
        num_blocks = 0 if is_computed_here else self.spec.blocks_for(num_prompt_tokens)
        self._table.add(
            request.spec.request_id,
            {
                "order": request.number,
                "phase": PREFILL if is_computed_here else ARRIVING,
                "leaves_after_prefill": int(leaves),
                "arrived_at_s": request.arrived_at_s,
                "prefill_due_at_s": request.prefill_due_at_s,
                "arrives_at_s": math.inf if is_computed_here else request.kv_arrives_at_s,
                "num_prompt_tokens": num_prompt_tokens,
                "num_output_bound": request.spec.sampling.max_tokens,
                "num_blocks": num_blocks,
                **demand_fields(request.demand_line),
            },
        )
        if is_computed_here:
            # Until then nothing is due but the prompt.
            self._table[request.spec.request_id]["next_due_at_s"] = request.prefill_due_at_s
        self._snapshot = None

    def prefill_sent(self, request_id: str, now_s: float) -> None:
        """Note that a prompt given to this worker was sent there."""
        self._table[request_id]["arrives_at_s"] = now_s
        self._snapshot = None

    def computed(self, request_id: str, now_s: float) -> None:
        """Note that a prompt is computed; pages that leave hold their blocks until `sent`.

        One that stays is a decode once its first token has come, which follows at once.
        """
        record = self._table[request_id]
        if record["leaves_after_prefill"]:
            record["phase"] = LEAVING
            record["num_computed_tokens"] = record["num_prompt_tokens"]
            record["num_blocks"] = self.spec.blocks_for(int(record["num_prompt_tokens"]))
        self._last_prefill_ended_at_s = now_s
        self._snapshot = None

    def sent(self, request_id: str) -> None:
        """Note that the pages of a computed prompt have arrived."""
        if self._table.remove(request_id):
            self._snapshot = None

    def decoded(self, request: Progress) -> None:
        """Note new tokens; they are looked at when the snapshot is built."""
        self._with_new_tokens[request.spec.request_id] = request
        self._snapshot = None

    def drop(self, request_id: str, now_s: float) -> None:
        """Forget a request that ended, whatever it was doing here."""
        is_here = request_id in self._table and request_id not in self._with_new_tokens
        if is_here and self._table[request_id]["phase"] == PREFILL:
            self._last_prefill_ended_at_s = now_s
        self._table.remove(request_id)
        self._with_new_tokens.pop(request_id, None)
        self._snapshot = None

    def works_on(self, request_id: str) -> bool:
        """Whether steps are taken here for a request: not if only its pages are left to send."""
        return request_id in self._table and self._table[request_id]["phase"] != LEAVING

    def request_ids(self) -> list[str]:
        """Requests that need this worker still; a prefill worker is needed until all is sent."""
        return list(self._table.ids)

    def snapshot(self) -> WorkerSnapshot:
        if self._snapshot is None:
            self._take_new_tokens()
            requests = copy_records(self._table.records)
            requests.flags.writeable = False
            self._snapshot = WorkerSnapshot(
                spec=self.spec,
                load=self.load,
                requests=requests,
                last_prefill_ended_at_s=self._last_prefill_ended_at_s,
                step_cap_s=self._step_cap_s,
                overhead_s=self.overhead.upper_s,
                local_overhead_s=self.local_overhead.upper_s,
            )
        return self._snapshot

    def _take_new_tokens(self) -> None:
        """Bring the records of all that decoded since the last snapshot up to date, by columns."""
        if not self._with_new_tokens:
            return
        rows = self._table.rows_of(list(self._with_new_tokens))
        changed = list(self._with_new_tokens.values())
        self._with_new_tokens.clear()
        records = self._table.records
        num_output_tokens = np.array([request.num_output_tokens for request in changed])
        # The last token of the prompt is computed in the step that yields the first token.
        num_computed_tokens = records["num_prompt_tokens"][rows] + num_output_tokens - 1
        records["phase"][rows] = DECODE
        records["num_output_tokens"][rows] = num_output_tokens
        records["num_computed_tokens"][rows] = num_computed_tokens
        records["num_blocks"][rows] = -(-num_computed_tokens // self.spec.kv_block_size)
        # A plan needs at least one token more.
        records["num_output_bound"][rows] = np.maximum(
            records["num_output_bound"][rows], num_output_tokens + 1
        )
        lines = [request.demand_line for request in changed]
        records["next_due_at_s"][rows] = [
            line.next_due_at_s if line is not None else math.inf for line in lines
        ]
        records["lead_s"][rows] = [line.lead_s if line is not None else 0.0 for line in lines]
        for row, line in zip(rows, lines, strict=True):
            if line is not None and len(line.promise.stages) > 1:
                tpot_s, num_left, later_tpot_s = line.pace
                records["tpot_s"][row] = tpot_s
                records["num_stage_tokens_left"][row] = num_left
                records["later_tpot_s"][row] = later_tpot_s
