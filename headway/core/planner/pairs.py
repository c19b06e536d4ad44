"""Which pairs of workers a request may use, before the planner chooses among them.

Decode workers must have a place. Workers that do not form their steps by deadline must pass the
closed-form tests of `core.planner.prediction`, in which all outputs reach max_tokens. So must,
for their memory, all that are to decode a best-effort request: nothing that is promised later
must wait for its blocks longer than it takes to preempt it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.core.batch_state import PREFILL, Floats, Records
from headway.core.cluster import WorkerRole
from headway.core.planner.interface import Constraint
from headway.core.planner.picture import WorkerPicture
from headway.core.planner.prediction import blocks_to_be_held, decode_step_s, prefill_queue
from headway.core.request import RequestSpec


@dataclass(frozen=True, slots=True)
class UsablePairs:
    """Attributes are those of the same names of ClusterView, and of admission's question."""

    allowed: NDArray[np.bool_]
    barred: Constraint | None


def handovers(pictures: list[WorkerPicture], request: RequestSpec) -> Floats:
    """What is predicted from the end of a prompt to the first token, shape (W,); no guard.

    The request waits for the step that runs when its pages are complete, then for its own first
    one; the way of its pages and of its messages is as measured.
    """
    handovers_s = np.zeros(len(pictures))
    for number, picture in enumerate(pictures):
        snapshot = picture.snapshot
        if snapshot.spec.role is WorkerRole.DECODE:
            step_s = (
                picture.decode_step_s
                if snapshot.spec.forms_steps_by_deadline
                else decode_step_s(snapshot, request.num_prompt_tokens, request.sampling.max_tokens)
            )
            handovers_s[number] = snapshot.overhead_s + 2 * step_s
    return handovers_s


def usable_pairs(
    request: RequestSpec,
    record: Records,
    pictures: list[WorkerPicture],
    handovers_s: Floats,
    now_s: float,
    guard_ratio: float,
) -> UsablePairs:
    """Test all pairs.

    Args:
        request: the new one.
        record: its REQUEST record, shape (1,).
        pictures: of all workers.
        handovers_s: as `handovers`, guard included.
        now_s: the present.
        guard_ratio: predicted times are multiplied by it.
    """
    allowed = np.zeros((len(pictures), len(pictures)), np.bool_)
    limits: list[Constraint] = []
    decoders = []
    for number, picture in enumerate(pictures):
        if picture.snapshot.spec.role is WorkerRole.DECODE:
            limit = _decode_limit(request, record, picture, guard_ratio)
            if limit is None:
                decoders.append(number)
            else:
                limits.append(limit)
    if not decoders:
        # Where one has room and another has pace, pace is what a new worker would bring.
        return UsablePairs(allowed, max(limits, key=_NEARNESS.index))
    limits = []
    due_at_s = float(record["next_due_at_s"][0])
    for number, picture in enumerate(pictures):
        if picture.snapshot.spec.role is WorkerRole.DECODE:
            continue
        if picture.snapshot.spec.forms_steps_by_deadline:
            allowed[number, decoders] = True
            continue
        limit = _prefill_room_limit(request, picture)
        if limit is not None:
            limits.append(limit)
            continue
        queue = prefill_queue(picture.snapshot, now_s)
        for decoder in decoders:
            prefill_due_at_s = due_at_s - handovers_s[decoder]
            allowed[number, decoder] = queue.keeps_promises(
                request.num_prompt_tokens, prefill_due_at_s, guard_ratio
            )
        limits.append(Constraint.PREFILL_TIME)
    barred = None if allowed.any() else max(limits, key=_NEARNESS.index)
    return UsablePairs(allowed, barred)


# The later one is the nearer to fitting.
_NEARNESS = (Constraint.KV_BLOCKS, Constraint.DECODE_RATE, Constraint.PREFILL_TIME)


def _decode_limit(
    request: RequestSpec, record: Records, picture: WorkerPicture, guard_ratio: float
) -> Constraint | None:
    """What keeps the request from this decode worker, whatever its prefill worker; or None."""
    snapshot = picture.snapshot
    spec, requests = snapshot.spec, snapshot.requests
    if len(requests) >= spec.max_num_running:
        return Constraint.DECODE_RATE
    is_best_effort = record["guaranteed"][0] == 0
    if is_best_effort or not spec.forms_steps_by_deadline:
        num_tokens = request.num_prompt_tokens + request.sampling.max_tokens
        if blocks_to_be_held(snapshot) + spec.blocks_for(num_tokens) > spec.num_kv_blocks:
            return Constraint.KV_BLOCKS
    if not spec.forms_steps_by_deadline:
        step_s = decode_step_s(snapshot, request.num_prompt_tokens, request.sampling.max_tokens)
        paces_s = [requests["tpot_s"], requests["later_tpot_s"], record["tpot_s"]]
        tightest_s = min(float(pace_s.min(initial=np.inf)) for pace_s in paces_s)
        tightest_s = min(tightest_s, float(record["later_tpot_s"][0]))
        if step_s * guard_ratio > tightest_s:
            return Constraint.DECODE_RATE
    return None


def _prefill_room_limit(request: RequestSpec, picture: WorkerPicture) -> Constraint | None:
    snapshot = picture.snapshot
    spec = snapshot.spec
    num_blocks = blocks_to_be_held(snapshot) + spec.blocks_for(request.num_prompt_tokens)
    if num_blocks > spec.num_kv_blocks:
        return Constraint.KV_BLOCKS
    if (snapshot.requests["phase"] == PREFILL).sum() >= spec.max_num_running:
        return Constraint.PREFILL_TIME
    return None
