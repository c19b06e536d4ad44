"""A step as the batch former made it, by the engine's own request ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headway.core.batch_state import DECODE, PREEMPT, PREFILL, Ints, Records


@dataclass(slots=True)
class FormedStep:
    """What each request gets from the next step.

    Attributes:
        grants: tokens by request id; requests that get none are left out.
        preempted: ids of requests that lose their KV blocks.
        predicted_s: how long the step will take, by the profile corrected with `time_ratio`.
        num_chunks: prompts that it computes a part of.
        num_held: requests that could be in it and wait.
        draft_length: what the former chose; not each decode has such a draft.
    """

    grants: dict[str, int]
    preempted: list[str]
    predicted_s: float
    num_chunks: int
    num_held: int
    draft_length: int


def formed_step(
    records: Records, ids: Sequence[str], grants: Ints, predicted_s: float, draft_length: int
) -> FormedStep:
    """What was granted to each of `records`; `ids` and `grants` are parallel to them."""
    phases = records["phase"]
    rows = np.flatnonzero(grants > 0)
    # The earliest due first: the engine makes room at the expense of the last.
    rows = rows[np.lexsort((records["order"][rows], records["next_due_at_s"][rows]))]
    is_prefill = phases == PREFILL
    return FormedStep(
        grants={
            ids[row]: grant for row, grant in zip(rows.tolist(), grants[rows].tolist(), strict=True)
        },
        preempted=[ids[row] for row in np.flatnonzero(grants == PREEMPT).tolist()],
        predicted_s=predicted_s,
        num_chunks=int(np.count_nonzero(is_prefill[rows])),
        num_held=int(np.count_nonzero((is_prefill | (phases == DECODE)) & (grants <= 0))),
        draft_length=draft_length,
    )
