"""One live worker as the planner sees it: what it was given, and where its steps have got to.

A prefill worker says only when a prompt is computed. In between, the picture runs the worker's
own batch former on the perf model's time, as the look-ahead does for the time to come. Each
word from the worker takes its error back: what is computed leaves the picture, and what seems
computed without the worker having said so keeps one token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headway.core.batch_state import (
    ARRIVING,
    DECODE,
    LEAVING,
    PREEMPT,
    PREFILL,
    REQUEST,
    Ints,
    Records,
)
from headway.core.batching import form_slack
from headway.core.cluster import WorkerRole, WorkerSnapshot
from headway.core.kernel import kernel
from headway.core.planner.baselines.codes import SLACK, VLLM_V1
from headway.core.planner.grants import shape_of, take_blocks
from headway.core.planner.step_time import step_s
from headway.core.request_table import copy_records, worker_records

# What a worker did longer ago than this, without a word of it, is not worked out step by step.
_LONGEST_CATCH_UP_S = 2.0


@dataclass(slots=True)
class WorkerPicture:
    """Follows one worker from snapshot to snapshot.

    Attributes:
        snapshot: the newest one.
        record: WORKER record, shape (1,).
        requests: REQUEST records of all that is on the worker, shape (R,).
        grants: what each of them is taken to get from the step that runs now, shape (R,).
    """

    snapshot: WorkerSnapshot
    guard_ratio: float
    record: Records = field(init=False)
    requests: Records = field(init=False)
    grants: Ints = field(init=False)
    _num_decodes: int = 0
    _num_context_tokens: int = 0

    def __post_init__(self) -> None:
        spec = self.snapshot.spec
        self.record = worker_records(
            spec.perf_model,
            block_size=spec.kv_block_size,
            num_blocks=spec.num_kv_blocks,
            max_step_tokens=spec.max_step_tokens,
            max_running=spec.max_num_running,
            guard_ratio=self.guard_ratio,
        )
        self.record["former"] = SLACK if spec.forms_steps_by_deadline else VLLM_V1
        is_prefill = spec.role is WorkerRole.PREFILL
        self.record["prefills" if is_prefill else "decodes"] = 1
        self.requests = np.zeros(0, REQUEST)
        self.grants = np.zeros(0, np.int64)
        self._take(self.snapshot)

    def update(self, snapshot: WorkerSnapshot, now_s: float) -> None:
        """Bring the picture to `now_s`, which never goes back."""
        if snapshot is not self.snapshot:
            self._take(snapshot)
        if snapshot.spec.role is WorkerRole.PREFILL:
            follow(now_s, self.requests, len(self.requests), self.record, self.grants)
        elif snapshot.spec.forms_steps_by_deadline:
            # A step is taken to be half done.
            self.record["busy_until_s"] = now_s + 0.5 * self.decode_step_s

    @property
    def decode_step_s(self) -> float:
        """A step of all that decode here now."""
        model = self.snapshot.spec.perf_model
        step_s = (
            model.floor_s
            + model.sequence_s * self._num_decodes
            + model.context_token_s * self._num_context_tokens
        )
        return float(self.record["time_ratio"][0]) * step_s

    def _take(self, snapshot: WorkerSnapshot) -> None:
        requests = snapshot.requests
        grants = np.zeros(len(requests), np.int64)
        if snapshot.spec.role is WorkerRole.PREFILL:
            requests = copy_records(requests)
            self._carry_over(requests, grants)
        else:
            decoding = requests["phase"] == DECODE
            grants[decoding] = 1
            if not snapshot.spec.forms_steps_by_deadline:
                # It decodes all of them in every step, whenever they are due.
                requests = copy_records(requests)
                requests["next_due_at_s"][decoding] = np.inf
            context = requests["num_computed_tokens"][decoding].sum()
            self._num_decodes, self._num_context_tokens = int(decoding.sum()), int(context)
        self.snapshot, self.requests, self.grants = snapshot, requests, grants
        # Never sped up: a promise made on a fast moment cannot be taken back in a slow one.
        self.record["time_ratio"] = max(1.0, snapshot.load.step_time_ratio)
        self.record["num_free_blocks"] = snapshot.spec.num_kv_blocks - requests["num_blocks"].sum()
        self.record["step_cap_s"] = (
            snapshot.step_cap_s if snapshot.spec.forms_steps_by_deadline else np.inf
        )

    def _carry_over(self, requests: Records, grants: Ints) -> None:
        """Keep what is known of the progress of prompts that are here still."""
        _, new, old = np.intersect1d(
            requests["order"], self.requests["order"], assume_unique=True, return_indices=True
        )
        still = requests["phase"][new] != LEAVING
        new, old = new[still], old[still]
        for name in ("num_computed_tokens", "num_blocks"):
            requests[name][new] = self.requests[name][old]
        grants[new] = self.grants[old]


@kernel
def follow(now_s: float, requests: Records, n: int, workers: Records, grants: Ints) -> None:
    """Run the steps of a prefill worker that have begun by `now_s`.

    Args:
        now_s: the present.
        requests: REQUEST records; `arrives_at_s` is when a prompt was sent to the worker.
        n: how many.
        workers: WORKER records, shape (1,); `busy_until_s` says how far they were run before.
        grants: of the step that runs; replaced by those of the step that runs at `now_s`.
    """
    worker = workers[0]
    ids = np.arange(n)
    worker.busy_until_s = max(worker.busy_until_s, now_s - _LONGEST_CATCH_UP_S)
    while worker.busy_until_s <= now_s:
        at_s = worker.busy_until_s
        next_sent_at_s = np.inf
        for k in range(n):
            r = requests[k]
            if r.phase == PREFILL and grants[k] > 0:
                r.num_computed_tokens = min(
                    r.num_computed_tokens + grants[k], r.num_prompt_tokens - 1
                )
            if r.phase == PREFILL and r.arrives_at_s > at_s:
                r.phase = ARRIVING
                next_sent_at_s = min(next_sent_at_s, r.arrives_at_s)
        form_slack(at_s, requests, ids, n, worker, grants)
        for k in range(n):
            r = requests[k]
            if grants[k] == PREEMPT:
                worker.num_free_blocks += r.num_blocks
                r.num_blocks = 0
                r.num_computed_tokens = 0
            if r.phase == ARRIVING:
                r.phase = PREFILL
        take_blocks(requests, ids, n, worker, grants)
        duration_s = step_s(worker, *shape_of(requests, ids, n, grants))
        if duration_s > 0.0:
            worker.busy_until_s = at_s + duration_s
        elif next_sent_at_s <= now_s:
            worker.busy_until_s = next_sent_at_s
        else:
            return
