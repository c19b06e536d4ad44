"""Which pairs of workers a request may use, before the planner chooses among them.

Decode workers must have a place. Workers that do not form their steps by deadline must pass the
closed-form tests of `core.planner.prediction`, in which all outputs reach max_tokens. So must,
for their memory, all that are to decode a best-effort request: nothing that is promised later
must wait for its blocks longer than it takes to preempt it. A decode worker that prefills is a
pair with itself, and with every prefill worker.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headway.core.batch_state import PREFILL, Floats, Records
from headway.core.cluster import WorkerRole
from headway.core.planner.interface import Constraint
from headway.core.planner.picture import WorkerPicture
from headway.core.planner.prediction import blocks_to_be_held, longest_step_s, prefill_queue
from headway.core.request import RequestSpec


@dataclass(frozen=True, slots=True)
class UsablePairs:
    """Attributes are those of the same names of ClusterView, and of admission's question."""

    allowed: NDArray[np.bool_]
    barred: Constraint | None


@dataclass(frozen=True, slots=True)
class Handovers:
    """What is predicted from the end of a prompt to the first token.

    Attributes:
        moved_s: on each decode worker for a prompt computed elsewhere, shape (W,).
        local_s: for one computed there, shape (W,).
    """

    moved_s: Floats
    local_s: Floats


def handovers(
    pictures: list[WorkerPicture], request: RequestSpec, record: Records, guard_ratio: float
) -> Handovers:
    """Predict the hand-over to each worker.

    A request that moves waits for the step that runs when its pages are complete, then for its
    own first one; the way of its pages and of its messages is as measured. Where prompts are
    computed too, the step that runs may be as long as the tightest pace promised there, or as
    an engine makes it that does not look at that. One that does not move has its first token
    with its last prompt token, and only messages come after that.

    Args:
        pictures: of all workers.
        request: the new one.
        record: its REQUEST record, shape (1,).
        guard_ratio: what is predicted is multiplied by it.
    """
    moved_s, local_s = np.zeros(len(pictures)), np.zeros(len(pictures))
    for number, picture in enumerate(pictures):
        snapshot = picture.snapshot
        if snapshot.spec.role is not WorkerRole.DECODE:
            continue
        if not snapshot.spec.forms_steps_by_deadline:
            running_s = own_s = longest_step_s(snapshot, request)
        else:
            running_s = own_s = picture.decode_step_s
            tightest_s = min(snapshot.requests["tpot_s"].min(initial=np.inf), record["tpot_s"][0])
            if snapshot.spec.prefills_locally and np.isfinite(tightest_s):
                running_s = max(own_s, float(tightest_s))
        moved_s[number] = snapshot.overhead_s + running_s + own_s
        local_s[number] = snapshot.local_overhead_s
    return Handovers(guard_ratio * moved_s, guard_ratio * local_s)


def usable_pairs(
    request: RequestSpec,
    record: Records,
    pictures: list[WorkerPicture],
    handovers_s: Handovers,
    now_s: float,
    guard_ratio: float,
) -> UsablePairs:
    """Test all pairs.

    Args:
        request: the new one.
        record: its REQUEST record, shape (1,).
        pictures: of all workers.
        handovers_s: as `handovers`.
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
        spec = picture.snapshot.spec
        is_decoder = spec.role is WorkerRole.DECODE
        if not spec.prefills or (is_decoder and number not in decoders):
            continue
        partners = [number] if is_decoder else decoders
        if spec.forms_steps_by_deadline:
            allowed[number, partners] = True
            continue
        limit = None if is_decoder else _prefill_room_limit(request, picture)
        if limit is not None:
            limits.append(limit)
            continue
        queue = prefill_queue(picture.snapshot, now_s, request)
        handover_s = handovers_s.local_s if is_decoder else handovers_s.moved_s
        for decoder in partners:
            allowed[number, decoder] = queue.keeps_promises(
                request.num_prompt_tokens, due_at_s - handover_s[decoder], guard_ratio
            )
        limits.append(Constraint.PREFILL_TIME)
    _bar_disturbed(request, pictures, allowed, now_s, guard_ratio)
    barred = None if allowed.any() else max(limits, key=_NEARNESS.index)
    return UsablePairs(allowed, barred)


def _bar_disturbed(
    request: RequestSpec,
    pictures: list[WorkerPicture],
    allowed: NDArray[np.bool_],
    now_s: float,
    guard_ratio: float,
) -> None:
    """Allow no pages to arrive where the new decode would make promised prompts late."""
    for number, picture in enumerate(pictures):
        spec = picture.snapshot.spec
        if not spec.prefills_locally or spec.forms_steps_by_deadline:
            continue
        queue = prefill_queue(picture.snapshot, now_s, request)
        # The last token of its prompt is computed here.
        if not queue.keeps_promises(1, np.inf, guard_ratio):
            allowed[np.arange(len(pictures)) != number, number] = False


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
        step_s = longest_step_s(snapshot, request)
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
