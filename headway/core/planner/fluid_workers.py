"""Workers as the dynamic program sees them: work flows there instead of coming in steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headway.core.batch_state import (
    DECODE,
    GONE,
    LEAVING,
    PREFILL,
    REQUEST,
    Flags,
    Floats,
    Ints,
    Record,
    Records,
)
from headway.core.planner.arrival import Answer, ClusterView, Verdict
from headway.core.planner.dp import DpInstance, DpPrompt, DpTier, DpWorker, plan
from headway.core.planner.step_length import StepLength
from headway.core.planner.step_time import step_s

# Work flows in the program; on the worker a prompt ends with the step of its last chunk, on average
# half a step later.
_STEPS_BEHIND = 0.5


class FluidWorkers:
    """One worker (`p == d`), or a prefill and a decode worker, as the program sees them.

    All is as it will be when the running step has ended. Forced are promised prompts that wait.
    Late ones are not, as nobody can save them, but their KV blocks stay taken.
    """

    def __init__(self, p: int, d: int, view: ClusterView, now_s: float) -> None:
        self.p, self.d, self.view, self.now_s = p, d, view, now_s
        self.prefiller, self.decoder = view.workers[p], view.workers[d]
        self.at_s = max(now_s, float(self.prefiller["busy_until_s"]))
        self.ids = view.ids[d, : view.counts[d]]
        self.here = _after_running_step(view, d)
        self.step_cap_s = StepLength(float(self.prefiller["floor_s"])).usual_s
        if p == d:
            tightest_s = _pace_s(self.here[_promised(self.here)]).min(initial=np.inf)
            self.step_cap_s = min(self.step_cap_s, float(tightest_s))

    def deferred(self) -> list[int]:
        """Rows that run on `d` to their end as best effort, and are in time so far."""
        due_at_s, phase = self.here["next_due_at_s"], self.here["phase"]
        in_time = (due_at_s >= self.now_s) & np.isfinite(due_at_s)
        in_time &= (self.here["guaranteed"] == 0) & (self.here["leaves_after_prefill"] == 0)
        in_time &= (phase == DECODE) | ((phase == PREFILL) & (self.p == self.d))
        rows: list[int] = self.ids[in_time].tolist()
        return rows

    def choose(self, news: Sequence[int], late: Sequence[int]) -> list[int]:
        """Which of the rows `news`, on no worker yet, and `late`, on `d`, can be promised."""
        is_late = np.isin(self.ids, late) if late else np.zeros(len(self.ids), np.bool_)
        rows = [*news, *self.ids[is_late].tolist()]
        if not rows:
            return []
        forced, decodes_here, running, num_held = self._admitted()
        first, end = len(forced), len(forced) + len(news)
        # numpy takes long to concatenate records.
        prompts = np.empty(first + len(rows), REQUEST)
        prompts[:first], prompts[end:] = forced, self.here[is_late]
        prompts[first:end] = self.view.requests[list(news)]
        due_at_s = prompts["prefill_due_at_s"] - _STEPS_BEHIND * self.step_cap_s
        due_at_s[first:end] -= [self._handover_s(new) for new in news]
        # What decodes already does so from now on.
        due_at_s[prompts["phase"] == DECODE] = self.at_s
        pace_s, num_blocks = _pace_s(prompts), self._blocks_at_end(prompts)
        elsewhere = np.flatnonzero(~decodes_here)
        pace_s[elsewhere], num_blocks[elsewhere] = np.inf, 0
        tiers, tier_of = self._tiers(running, prompts, pace_s)
        columns = (self._prefill_s(prompts), due_at_s, tier_of, num_blocks)
        waiting = [
            DpPrompt(*row) for row in zip(*(column.tolist() for column in columns), strict=True)
        ]
        found = plan(
            DpInstance(
                now_at_s=self.at_s,
                tiers=tiers,
                worker=self._dp_worker(self.decoder),
                num_free_blocks=int(self.decoder["num_blocks"]) - num_held,
                forced=tuple(waiting[:first]),
                new=tuple(waiting[first:]),
                prefill_worker=None if self.p == self.d else self._dp_worker(self.prefiller),
            )
        )
        return [rows[index] for index in found.chosen]

    def serve(self, served: Sequence[int]) -> dict[int, Answer]:
        """Answers for rows that were chosen; sets the length of the worker's steps."""
        if self.p == self.d:
            paces_s = _pace_s(self.view.requests[list(served)])
            self.prefiller["step_cap_s"] = min(self.step_cap_s, float(paces_s.min()))
            return {row: Answer(Verdict.SERVE, self.p, self.p) for row in served}
        self.prefiller["step_cap_s"] = self.step_cap_s
        answers = {}
        for row in served:
            handover_s = self._handover_s(row)
            computed_at_s = float(self.view.requests["prefill_due_at_s"][row]) - handover_s
            arrives_at_s = computed_at_s + self._transfer_s(row)
            answers[row] = Answer(
                Verdict.SERVE, self.p, self.d, arrives_at_s, handover_s, computed_at_s
            )
        return answers

    def _admitted(self) -> tuple[Records, Flags, Records, int]:
        """Forced prompts, which of them decode on `d`, and the decodes and blocks there besides."""
        is_here = self.p == self.d
        prompts = self.here if is_here else _after_running_step(self.view, self.p)
        waits = _promised(prompts) & (prompts["phase"] == PREFILL)
        waits &= prompts["num_computed_tokens"] < prompts["num_prompt_tokens"]
        is_forced = waits & (prompts["prefill_due_at_s"] >= self.now_s)
        forced, others = prompts[is_forced], _promised(self.here)
        if is_here:
            decodes_here = forced["leaves_after_prefill"] == 0
            runs, holds = others & ~waits, others & ~is_forced
        else:
            # What is prefilled on one and decoded on the other has the same number on both.
            order = self.here["order"]
            decodes_here = np.isin(forced["order"], order)
            runs = others & ~np.isin(order, prompts["order"][waits])
            holds = others & ~np.isin(order, forced["order"])
        num_held = int(self._blocks_at_end(self.here[holds]).sum())
        return forced, decodes_here, self.here[runs], num_held

    def _tiers(
        self, running: Records, prompts: Records, pace_s: Floats
    ) -> tuple[tuple[DpTier, ...], Ints]:
        """One tier per pace, and the tier of each prompt.

        Contexts count as half way to the output's end, and as the mean of all of that pace.
        """
        worker = self.decoder
        num_running = len(running)
        held = np.concatenate([running["num_computed_tokens"], prompts["num_prompt_tokens"]])
        left = np.concatenate([_num_output_left(running), _num_output_left(prompts)])
        contexts = held + 0.5 * left
        all_paces_s = np.concatenate([_pace_s(running), pace_s])
        paces_s, tier_of = np.unique(all_paces_s, return_inverse=True)
        mean_context = np.bincount(tier_of, contexts) / np.bincount(tier_of)
        ratio = worker["time_ratio"] * worker["step_guard_ratio"]
        decode_s = ratio * (
            worker["token_s"] + worker["sequence_s"] + worker["context_token_s"] * mean_context
        )
        num_decodes = np.bincount(tier_of[:num_running], minlength=len(paces_s))
        columns = (paces_s.tolist(), decode_s.tolist(), num_decodes.tolist())
        return tuple(DpTier(*row) for row in zip(*columns, strict=True)), tier_of[num_running:]

    def _prefill_s(self, prompts: Records) -> Floats:
        worker, computed = self.prefiller, prompts["num_computed_tokens"]
        left = np.where(prompts["phase"] == PREFILL, prompts["num_prompt_tokens"] - computed, 0)
        attention = left * (computed + 0.5 * left)
        work_s: Floats = worker["token_s"] * left + worker["prefill_attention_s"] * attention
        num_chunks = np.ceil(work_s / self.step_cap_s)
        scale = worker["time_ratio"] * worker["guard_ratio"]
        scaled_s: Floats = scale * (work_s + worker["chunk_s"] * num_chunks)
        return scaled_s

    def _dp_worker(self, worker: Record) -> DpWorker:
        ratio = float(worker["time_ratio"])
        return DpWorker(
            fixed_s=ratio * float(worker["guard_ratio"] * worker["fixed_s"]),
            floor_s=ratio * float(worker["step_guard_ratio"] * worker["floor_s"]),
            token_s=ratio * float(worker["step_guard_ratio"] * worker["token_s"]),
            step_cap_s=self.step_cap_s,
        )

    def _blocks_at_end(self, rows: Records) -> Ints:
        in_decode = rows["phase"] == DECODE
        held = np.where(in_decode, rows["num_computed_tokens"], rows["num_prompt_tokens"])
        num_blocks: Ints = -(-(held + _num_output_left(rows)) // self.decoder["block_size"])
        return num_blocks

    def _transfer_s(self, row: int) -> float:
        """From the prompt's last step to the arrival of its last page: that step's pages."""
        view = self.view
        num_last = min(
            float(view.requests["num_prompt_tokens"][row]),
            self.step_cap_s / max(float(self.prefiller["token_s"]), 1e-12),
        )
        queued_s = max(0.0, float(view.link_free_at_s[self.p]) - self.now_s)
        sending_s = num_last * view.kv_bytes_per_token / view.link_bytes_per_s
        return queued_s + sending_s + view.link_latency_s

    def _handover_s(self, row: int) -> float:
        """From the prompt's last step to the first token: the transfer and two decode steps."""
        if self.p == self.d:
            return 0.0
        if self.view.handover_s is not None:
            return float(self.view.handover_s[self.d])
        n, context = len(self.here), int(self.here["num_computed_tokens"].sum())
        return self._transfer_s(row) + 2.0 * step_s(
            self.decoder, n + 1, n + 1, context, 0.0, 0, 0, 0
        )


def _after_running_step(view: ClusterView, w: int) -> Records:
    """REQUEST records of a worker, with the tokens of the step that runs counted as computed."""
    n = view.counts[w]
    rows: Records = view.requests[view.ids[w, :n]]
    rows["num_computed_tokens"] += np.maximum(view.grants[w, :n], 0)
    return rows


def _promised(rows: Records) -> Flags:
    phase = rows["phase"]
    promised: Flags = (rows["guaranteed"] == 1) & (phase != GONE) & (phase != LEAVING)
    return promised


def _pace_s(rows: Records) -> Floats:
    """The tighter pace of what is left; the program knows one per request."""
    paces_s: Floats = np.minimum(rows["tpot_s"], rows["later_tpot_s"])
    return paces_s


def _num_output_left(rows: Records) -> Ints:
    left: Ints = rows["num_output_bound"] - rows["num_output_tokens"]
    return left
