"""What the perf model says of one worker's work, in closed form.

For workers that form their steps themselves (`forms_steps_by_deadline` of WorkerSpec is off),
and for what is told of all. Assumed of such a prefill worker: a step takes what the perf model
says and has room for max_step_tokens; prompts under way go first and are not overtaken, those
that wait start in the order of their due times; prompts that share steps take no longer than
one after the other and one smallest step; a best-effort prompt that is there already may be
under way, so all of it counts as ahead of every promised prompt. A decode worker that prefills
also decodes, in each of its steps, all that it was given at the longest they may become.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from headway.core.batch_state import PREFILL
from headway.core.cluster import WorkerRole, WorkerSnapshot
from headway.core.perf_model import PerfModel, PrefillChunk, StepShape
from headway.core.request import RequestSpec


def current_perf_model(worker: WorkerSnapshot) -> PerfModel:
    """The worker's perf model, slowed down to what it measures.

    Never sped up: a promise made on a fast moment cannot be taken back in a slow one.
    """
    ratio = worker.load.step_time_ratio
    return worker.spec.perf_model.scaled(ratio) if ratio > 1 else worker.spec.perf_model


@dataclass(frozen=True, slots=True)
class _StepRoom:
    """What the steps of a worker leave for prompts.

    Attributes:
        num_tokens: of prompts, at most.
        decoding_s: by which decodes make each step longer.
    """

    model: PerfModel
    num_tokens: int
    decoding_s: float

    def work_s(self, num_prompt_tokens: int) -> float:
        """A prompt alone, in largest chunks."""
        num_steps = math.ceil(num_prompt_tokens / self.num_tokens)
        alone_s = self.model.prefill_s(num_prompt_tokens, 0, self.num_tokens)
        return alone_s + num_steps * self.decoding_s

    def step_s(self, num_prompt_tokens: int) -> float:
        """One step with the first so many tokens of a prompt."""
        shape = StepShape(chunks=(PrefillChunk(num_prompt_tokens, 0),))
        return self.model.step_s(shape) + self.decoding_s


@dataclass(frozen=True, slots=True)
class _Prompt:
    """`work_s`: alone, in largest chunks."""

    due_at_s: float
    work_s: float
    guaranteed: bool
    sent: bool


@dataclass(frozen=True, slots=True)
class PrefillQueue:
    """The prompts of one prefill worker at one instant.

    Attributes:
        done_s: how much of their work is done, as time.
        full_step_s, smallest_step_s: the longest and shortest a step takes.
    """

    now_s: float
    room: _StepRoom
    prompts: tuple[_Prompt, ...]
    done_s: float
    full_step_s: float
    smallest_step_s: float

    @property
    def backlog_s(self) -> float:
        """From now until all prompts are computed."""
        return max(0.0, sum(prompt.work_s for prompt in self.prompts) - self.done_s)

    def added_backlog_s(self, num_prompt_tokens: int) -> float:
        """The backlog if it had one prompt more."""
        return self.backlog_s + self.smallest_step_s + self.room.work_s(num_prompt_tokens)

    def keeps_promises(self, num_prompt_tokens: int, due_at_s: float, guard_ratio: float) -> bool:
        """Whether all promised prompts are in time if one is added now.

        A prompt is in time if `guard_ratio` times its predicted remaining time ends before it is
        due. One that was due before now is not among them: nothing can be done for it any more.
        One that seems late without the new one counts as late all the same: the prediction is on
        the safe side, so it may still be in time if nothing joins its last step.

        Args:
            num_prompt_tokens: of the new prompt.
            due_at_s: when it is due; infinite for best effort.
            guard_ratio: predicted times are multiplied by it.
        """
        promised = math.isfinite(due_at_s)
        new = _Prompt(due_at_s, self.room.work_s(num_prompt_tokens), promised, sent=False)
        if promised and due_at_s < self.now_s:
            return False
        prompts = [*self.prompts, new]
        in_order = sorted(
            (prompt for prompt in prompts if prompt.guaranteed), key=lambda prompt: prompt.due_at_s
        )
        best_effort = [prompt for prompt in prompts if not prompt.guaranteed]
        for position, prompt in enumerate(in_order):
            if prompt.due_at_s < self.now_s:
                continue
            ahead, behind = in_order[: position + 1], in_order[position + 1 :]
            done_in_s = self._done_in_s([*best_effort, *ahead], behind)
            if prompt.due_at_s - self.now_s < guard_ratio * done_in_s:
                return False
        return True

    def _done_in_s(self, ahead: list[_Prompt], behind: list[_Prompt]) -> float:
        """When `ahead` are computed at the latest, although some of `behind` may be under way.

        No prompt was completed since `done_s` ago. So one prompt had all steps since then to
        itself, but for the one that runs now, whose rest others may have: either it goes on
        after that step, or another one does that has all of its work before it. Which prompt it
        was is not known, only that it takes as long.
        """
        ahead_s = sum(prompt.work_s for prompt in ahead)
        sent = [prompt for prompt in (*ahead, *behind) if prompt.sent]
        # Its last step may have been longer than if it had been alone in it.
        long_enough = [p for p in sent if p.work_s + self.full_step_s >= self.done_s]
        done_in_s = ahead_s + max((prompt.work_s for prompt in behind), default=0.0)
        if sent:
            done_in_s = 0.0
        for first in long_enough or sent:
            left_s = max(0.0, first.work_s - self.done_s)
            next_s = max((prompt.work_s for prompt in behind if prompt is not first), default=0.0)
            others_s = ahead_s - sum(first.work_s for prompt in ahead if prompt is first)
            done_in_s = max(done_in_s, others_s + max(left_s, self.full_step_s + next_s))
        if len(ahead) + len(behind) > 1:
            # Filling the last step of one prompt with the next one can leave a few tokens for a
            # step of their own, which costs at least what any step costs.
            done_in_s += self.smallest_step_s
        # Its last step can be shared with prompts behind it.
        return done_in_s + min(sum(prompt.work_s for prompt in behind), self.full_step_s)


def prefill_queue(
    worker: WorkerSnapshot, now_s: float, new: RequestSpec | None = None
) -> PrefillQueue:
    """What a worker that prefills has to do at `now_s`.

    Args:
        worker: as it is now.
        now_s: the present.
        new: counts among those that a decode worker decodes.
    """
    room = _step_room(worker, new)
    full_step_s = room.step_s(room.num_tokens)
    waiting = worker.requests[worker.requests["phase"] == PREFILL]
    prompts = tuple(
        _Prompt(due_at_s, room.work_s(num_tokens), bool(promised), sent)
        for due_at_s, num_tokens, promised, sent in zip(
            waiting["prefill_due_at_s"].tolist(),
            waiting["num_prompt_tokens"].tolist(),
            waiting["guaranteed"].tolist(),
            (waiting["arrives_at_s"] <= now_s).tolist(),
            strict=True,
        )
    )
    # It was busy with them since the first of them was sent, or since the last of the others
    # ended. What should be done but is not needs at least one more step.
    first_sent_at_s = float(waiting["arrives_at_s"].min(initial=math.inf))
    busy_since_s = max(min(first_sent_at_s, now_s), worker.last_prefill_ended_at_s)
    total_s = sum(prompt.work_s for prompt in prompts)
    done_s = max(0.0, min(now_s - busy_since_s, total_s - full_step_s))
    if worker.spec.role is WorkerRole.DECODE:
        # How much of its steps went to decodes that have ended since is not known.
        done_s = 0.0
    return PrefillQueue(
        now_s=now_s,
        room=room,
        prompts=prompts,
        done_s=done_s,
        full_step_s=full_step_s,
        smallest_step_s=room.step_s(1),
    )


def _step_room(worker: WorkerSnapshot, new: RequestSpec | None) -> _StepRoom:
    model, spec, records = current_perf_model(worker), worker.spec, worker.requests
    if spec.role is WorkerRole.PREFILL:
        return _StepRoom(model, spec.max_step_tokens, 0.0)
    num_decodes = len(records)
    num_context_tokens = int((records["num_prompt_tokens"] + records["num_output_bound"]).sum())
    if new is not None:
        num_decodes += 1
        num_context_tokens += new.num_prompt_tokens + new.sampling.max_tokens
    return _StepRoom(
        model,
        max(1, spec.max_step_tokens - num_decodes),
        (model.token_s + model.sequence_s) * num_decodes
        + model.context_token_s * num_context_tokens,
    )


def blocks_to_be_held(worker: WorkerSnapshot) -> int:
    """KV blocks that all requests of a worker may grow to."""
    records = worker.requests
    num_tokens = records["num_prompt_tokens"].copy()
    decoding = records["leaves_after_prefill"] == 0
    num_tokens[decoding] += records["num_output_bound"][decoding]
    return int((-(-num_tokens // worker.spec.kv_block_size)).sum())


def decode_step_s(worker: WorkerSnapshot, num_prompt_tokens: int = 0, max_tokens: int = 0) -> float:
    """Predicted time of a step of the decode worker, with one more request if one is given.

    All contexts count at the longest they may become, and the step also computes the one
    prompt token with which a request joins, after the longest of these prompts: both times
    are too long rather than too short.
    """
    records, model = worker.requests, current_perf_model(worker)
    num_decodes = len(records) + (1 if num_prompt_tokens else 0)
    if num_decodes == 0:
        return model.step_s(StepShape(num_decodes=1))
    prompts, bounds = records["num_prompt_tokens"], records["num_output_bound"]
    longest_prompt = max(int(prompts.max(initial=0)), num_prompt_tokens)
    return model.step_s(
        StepShape(
            chunks=(PrefillChunk(1, longest_prompt - 1),),
            num_decodes=num_decodes,
            num_decode_context_tokens=int(prompts.sum() + bounds.sum())
            + num_prompt_tokens
            + max_tokens,
        )
    )


def longest_step_s(worker: WorkerSnapshot, new: RequestSpec) -> float:
    """Longest step of a decode worker with one more request, which looks at no deadlines.

    As `decode_step_s`; where prompts are computed, too, the step is full of them, and each of
    their tokens attends to all of the longest prompt.
    """
    max_tokens = new.sampling.max_tokens
    num_waiting = int((worker.requests["phase"] == PREFILL).sum())
    if not worker.spec.prefills_locally and num_waiting == 0:
        return decode_step_s(worker, new.num_prompt_tokens, max_tokens)
    room, records = _step_room(worker, new), worker.requests
    longest_prompt = max(int(records["num_prompt_tokens"].max(initial=0)), new.num_prompt_tokens)
    num_prompts = 1 + num_waiting
    attention = room.num_tokens * longest_prompt
    return (
        room.step_s(room.num_tokens)
        + room.model.prefill_attention_s * attention
        + room.model.chunk_s * (num_prompts - 1)
    )
