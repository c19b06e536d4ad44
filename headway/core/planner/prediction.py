"""What the perf model expects of one worker, given what it already has to do.

Assumed of the engines: a step takes what the perf model says; prompts that share steps take
no longer than one after the other and one smallest step; guaranteed prompts run in the order
they came; a best-effort prompt that is on the worker already may be in the running batch, where
it is not overtaken, so all of it counts as ahead of every guaranteed prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headway.core.cluster import DecodeTask, PrefillTask, WorkerSnapshot
from headway.core.perf_model import PerfModel, PrefillChunk, StepShape


def current_perf_model(worker: WorkerSnapshot) -> PerfModel:
    """The worker's perf model, slowed down to what it measures.

    Never sped up: a promise made on a fast moment cannot be taken back in a slow one.
    """
    ratio = worker.load.step_time_ratio
    return worker.spec.perf_model.scaled(ratio) if ratio > 1 else worker.spec.perf_model


@dataclass(frozen=True, slots=True)
class PrefillOutlook:
    """When the prompts on one prefill worker are computed.

    Attributes:
        backlog_s: from now until all are.
        late: guaranteed prompts that will miss their `due_at_s`; those whose instant has
            passed are not among them, because nothing can be done for them any more.
    """

    backlog_s: float
    late: frozenset[str]


def prefill_outlook(
    worker: WorkerSnapshot, now_s: float, guard_ratio: float, added: Sequence[PrefillTask] = ()
) -> PrefillOutlook:
    """Predict the worker's prompts together with `added`, which are given to it now.

    A prompt is late if `guard_ratio` times its predicted remaining time ends after it is due.
    A prompt can share its last step with prompts behind it, which lengthens that step by at
    most the work behind, and by at most one full step.
    """
    model = current_perf_model(worker)
    max_step_tokens = worker.spec.max_step_tokens
    full_step_s = model.step_s(StepShape(chunks=(PrefillChunk(max_step_tokens, 0),)))

    def work_s(task: PrefillTask) -> float:
        return model.prefill_s(task.num_prompt_tokens, 0, max_step_tokens)

    ahead_s = -_work_done_s(worker, now_s, sum(map(work_s, worker.prefills)), full_step_s)
    tasks = [*worker.prefills, *added]
    if len(tasks) > 1:
        # Filling the last step of one prompt with the next one can leave a few tokens for a
        # step of their own, which costs at least what any step costs.
        ahead_s += model.step_s(StepShape(chunks=(PrefillChunk(1, 0),)))
    ahead_s += sum(work_s(task) for task in tasks if not task.guaranteed)
    guaranteed = [(task, work_s(task)) for task in tasks if task.guaranteed]
    behind_s = sum(own_s for _, own_s in guaranteed)
    late: list[str] = []
    for task, own_s in guaranteed:
        ahead_s += own_s
        behind_s -= own_s
        done_in_s = ahead_s + min(behind_s, full_step_s)
        if 0 <= task.due_at_s - now_s < guard_ratio * done_in_s:
            late.append(task.request_id)
    return PrefillOutlook(backlog_s=max(0.0, ahead_s), late=frozenset(late))


def _work_done_s(worker: WorkerSnapshot, now_s: float, total_s: float, full_step_s: float) -> float:
    """How much of the work given to the worker is done, as time; `total_s` is all of it.

    The worker was busy with it since the first of these prompts was sent, or since the last
    of the others ended. One that should be done but is not needs at least one more step.
    """
    first_sent_at_s = min((task.sent_at_s for task in worker.prefills), default=now_s)
    busy_since_s = max(first_sent_at_s, worker.last_prefill_ended_at_s)
    return max(0.0, min(now_s - busy_since_s, total_s - full_step_s))


def prefill_blocks(worker: WorkerSnapshot) -> int:
    """KV blocks that unfinished and unsent prompts hold, or will, on a prefill worker."""
    return worker.num_kv_blocks_sending + sum(
        worker.spec.blocks_for(task.num_prompt_tokens) for task in worker.prefills
    )


def decode_blocks(worker: WorkerSnapshot) -> int:
    """KV blocks the requests of a decode worker may grow to."""
    return sum(
        worker.spec.blocks_for(task.num_prompt_tokens + task.max_tokens) for task in worker.decodes
    )


def decode_step_s(worker: WorkerSnapshot, added: Sequence[DecodeTask] = ()) -> float:
    """Predicted time of a step of the decode worker with `added` requests beside its own.

    All contexts count at the longest they may become, and the step also computes the one
    prompt token with which a request joins, after the longest of these prompts: both times
    are too long rather than too short.
    """
    tasks = (*worker.decodes, *added)
    if not tasks:
        return current_perf_model(worker).step_s(StepShape(num_decodes=1))
    longest_prompt = max(task.num_prompt_tokens for task in tasks)
    return current_perf_model(worker).step_s(
        StepShape(
            chunks=(PrefillChunk(1, longest_prompt - 1),),
            num_decodes=len(tasks),
            num_decode_context_tokens=sum(t.num_prompt_tokens + t.max_tokens for t in tasks),
        )
    )
