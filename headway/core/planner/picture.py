"""One live worker as the planner sees it: what it was given, and where its steps have got to.

Of a prompt a worker says only that it is computed. In between, the picture runs the worker's own
batch former on the perf model's time, as the look-ahead does for the time to come. Then the books
say which requests are still here and which tokens came: only the progress of prompts is left of
what was worked out, and one that seems computed without the worker having said so keeps one
token. Before a prompt leaves the books the picture is brought up to date, so that none is taken
to have had the time that another one needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headway.core.batch_state import ARRIVING, DECODE, PREFILL, REQUEST, Ints, Records
from headway.core.batching import form_slack
from headway.core.cluster import WorkerRole, WorkerSnapshot
from headway.core.kernel import kernel
from headway.core.planner.baselines.codes import SLACK, VLLM_V1
from headway.core.planner.lookahead import begin_step, end_step
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
        self.record["prefills"] = int(spec.prefills)
        self.record["decodes"] = int(spec.role is WorkerRole.DECODE)
        self.requests = np.zeros(0, REQUEST)
        self.grants = np.zeros(0, np.int64)
        self._take(self.snapshot)

    def update(self, snapshot: WorkerSnapshot, now_s: float) -> None:
        """Bring the picture to `now_s`, which never goes back."""
        if snapshot.spec.prefills:
            self._follow(snapshot, now_s)
            return
        if snapshot is not self.snapshot:
            self._take(snapshot)
        if snapshot.spec.forms_steps_by_deadline:
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
        """Let the books be the picture; all decodes are in the step that runs."""
        spec, requests = snapshot.spec, snapshot.requests
        if spec.prefills or not spec.forms_steps_by_deadline:
            requests = copy_records(requests)
        decoding = requests["phase"] == DECODE
        if not spec.forms_steps_by_deadline:
            # It decodes all of them in every step, whenever they are due.
            requests["next_due_at_s"][decoding] = np.inf
        self._num_decodes = int(decoding.sum())
        self._num_context_tokens = int(requests["num_computed_tokens"][decoding].sum())
        self.requests, self.grants = requests, decoding.astype(np.int64)
        self._set_worker(snapshot)

    def _set_worker(self, snapshot: WorkerSnapshot) -> None:
        self.snapshot = snapshot
        # Never sped up: a promise made on a fast moment cannot be taken back in a slow one.
        self.record["time_ratio"] = max(1.0, snapshot.load.step_time_ratio)
        self.record["step_cap_s"] = (
            snapshot.step_cap_s if snapshot.spec.forms_steps_by_deadline else np.inf
        )
        held = self.requests["num_blocks"].sum()
        self.record["num_free_blocks"] = snapshot.spec.num_kv_blocks - held

    def _follow(self, snapshot: WorkerSnapshot, now_s: float) -> None:
        """Work out what a worker that prefills has done by `now_s`."""
        if snapshot is not self.snapshot:
            self._join(snapshot)
        follow(now_s, self.requests, len(self.requests), self.record, self.grants)
        worked_out, granted = self.requests, self.grants
        self._take(snapshot)
        self._carry_over(worked_out, granted)
        self._set_worker(snapshot)
        if self.record["busy_until_s"][0] <= now_s:
            # By what was worked out there is nothing to do; by the books there may be.
            self.record["busy_until_s"] = now_s
            self.grants[:] = 0
            follow(now_s, self.requests, len(self.requests), self.record, self.grants)

    def _join(self, snapshot: WorkerSnapshot) -> None:
        """Add what was given to the worker since, and note when it was sent there."""
        requests = snapshot.requests
        new, old = _same_rows(requests, self.requests)
        self.requests["arrives_at_s"][old] = requests["arrives_at_s"][new]
        if len(new) < len(requests):
            joined = requests[np.setdiff1d(np.arange(len(requests)), new, assume_unique=True)]
            both = [self.requests.view(np.uint64), joined.view(np.uint64)]
            self.requests = np.concatenate(both).view(REQUEST)
            self.grants = np.concatenate([self.grants, np.zeros(len(joined), np.int64)])
        self._set_worker(snapshot)

    def _carry_over(self, worked_out: Records, granted: Ints) -> None:
        """Keep the progress of prompts that are here still, and the step that runs."""
        requests, grants = self.requests, self.grants
        new, old = _same_rows(requests, worked_out)
        phases = requests["phase"][new]
        under_way = (worked_out["phase"][old] == PREFILL) & (
            worked_out["num_output_tokens"][old] == 0
        )
        is_prompt = phases == PREFILL
        keeps = is_prompt & under_way
        for name in ("num_computed_tokens", "num_blocks"):
            requests[name][new[keeps]] = worked_out[name][old[keeps]]
        grants[new[keeps]] = granted[old[keeps]]
        overdue = new[is_prompt & ~under_way]
        num_prompt_tokens = requests["num_prompt_tokens"][overdue]
        requests["num_computed_tokens"][overdue] = num_prompt_tokens - 1
        block_size = self.snapshot.spec.kv_block_size
        requests["num_blocks"][overdue] = -(-num_prompt_tokens // block_size)
        # A token that is worked out and has not come is taken to come from the step that runs.
        decodes = phases == DECODE
        num_came = requests["num_output_tokens"][new[decodes]]
        num_expected = worked_out["num_output_tokens"][old[decodes]]
        in_step = (num_came == num_expected) & (granted[old[decodes]] == 1)
        grants[new[decodes]] = (num_came < num_expected) | in_step


def _same_rows(first: Records, second: Records) -> tuple[Ints, Ints]:
    """Rows of the requests that are in both: in the first, and in the second."""
    _, in_first, in_second = np.intersect1d(
        first["order"], second["order"], assume_unique=True, return_indices=True
    )
    return in_first, in_second


@kernel
def follow(now_s: float, requests: Records, n: int, workers: Records, grants: Ints) -> None:
    """Run the steps of a worker that have begun by `now_s`.

    Args:
        now_s: the present.
        requests: REQUEST records; `arrives_at_s` of a prompt is when it was sent to the worker.
            Pages that arrive are left to the books.
        n: how many.
        workers: WORKER records, shape (1,); `busy_until_s` says how far they were run before.
        grants: of the step that runs; replaced by those of the step that runs at `now_s`.
    """
    worker = workers[0]
    ids = np.arange(n)
    unpromised = np.ones(n, np.bool_)
    unsent = np.zeros(n, np.bool_)
    worker.busy_until_s = max(worker.busy_until_s, now_s - _LONGEST_CATCH_UP_S)
    while worker.busy_until_s <= now_s:
        at_s = worker.busy_until_s
        end_step(at_s, requests, n, worker, grants, unpromised)
        next_sent_at_s = np.inf
        for k in range(n):
            r = requests[k]
            unsent[k] = r.phase == PREFILL and r.arrives_at_s > at_s
            if unsent[k]:
                r.phase = ARRIVING
                next_sent_at_s = min(next_sent_at_s, r.arrives_at_s)
        form_slack(at_s, requests, ids, n, worker, grants)
        for k in range(n):
            if unsent[k]:
                requests[k].phase = PREFILL
        duration_s = begin_step(requests, ids, n, worker, grants)
        if duration_s > 0.0:
            worker.busy_until_s = at_s + duration_s
        elif next_sent_at_s <= now_s:
            worker.busy_until_s = next_sent_at_s
        else:
            return
