"""The question asked at every arrival, and the forms of its answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from headway.core.batch_state import Floats, Ints, Records


class Verdict(IntEnum):
    """What becomes of a request."""

    SERVE = 0  # placed now; promised, if the policy promises at all
    DEFER = 1  # best effort: waits until `place_deferred` finds it a place
    REFUSE = 2


class Limit(StrEnum):
    """What stands against a promise."""

    NONE = "NONE"
    PREFILL_TIME = "PREFILL_TIME"
    DECODE_RATE = "DECODE_RATE"
    KV_BLOCKS = "KV_BLOCKS"
    TOO_COSTLY = "TOO_COSTLY"


@dataclass(frozen=True, slots=True)
class Answer:
    """`prefill_worker` and `decode_worker` are rows of `ClusterView.workers`; -1 for none.

    They are equal where the prompt is computed where it is decoded.

    Attributes:
        arrives_at_s: where they differ, when all KV pages are predicted to have arrived.
        handover_s: from the end of the prompt's computation to the first token, as predicted.
        computed_at_s: when the prompt is computed, guard included.
    """

    verdict: Verdict
    prefill_worker: int = -1
    decode_worker: int = -1
    arrives_at_s: float = 0.0
    handover_s: float = 0.0
    computed_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ClusterView:
    """All workers and all requests on them; W workers, R requests.

    A request that is prefilled on one worker and decoded on another has two rows: on the decode
    worker it is ARRIVING from the moment it is placed.

    Attributes:
        requests: REQUEST records, shape (R,), each of one request on one worker.
        ids: rows of `requests` that are on a worker, shape (W, any); in no particular order.
        counts: how many of a row of `ids` are valid, shape (W,).
        grants: what each of them gets from the step that runs now, shape of `ids`.
        workers: WORKER records, shape (W,).
        link_free_at_s: when a prefill worker's outgoing link has sent all it has, shape (W,).
        link_bytes_per_s, link_latency_s: of every link.
        kv_bytes_per_token: over all layers.
        handover_s: what to count on from the end of a prompt's computation to the first token on
            each decode worker, as measured, shape (W,); None where only the link is known.
        local_handover_s: the same where the prompt is computed on the decode worker.
        num_kept_tokens: leading tokens of the prompt that is asked about whose KV a worker has kept
            from its session, shape (W,); None where nobody knows. It can begin after them.
        allowed: whether a prompt may be prefilled here and decoded there, shape (W, W); None for
            all pairs.
    """

    requests: Records
    ids: Ints
    counts: Ints
    grants: Ints
    workers: Records
    link_free_at_s: Floats
    link_bytes_per_s: float
    link_latency_s: float
    kv_bytes_per_token: float
    handover_s: Floats | None = None
    local_handover_s: Floats | None = None
    num_kept_tokens: Ints | None = None
    allowed: NDArray[np.bool_] | None = None

    def record_on(self, new: int, w: int) -> Records:
        """The record of the request that is asked about as it would begin on worker `w`."""
        record: Records = self.requests[new : new + 1].copy()[0]
        if self.num_kept_tokens is not None:
            num_kept = self.num_kept_tokens[w]
            record["num_computed_tokens"] = record["num_unsent_tokens"] = num_kept
            record["num_blocks"] = num_kept // self.workers["block_size"][w]
        return record


class ArrivalPolicy(Protocol):
    """Decides where, and whether, a request runs. Deterministic; changes nothing in the view.

    Attributes:
        former: what its workers' batches are formed by; see core.planner.formers.
    """

    former: int

    def decide(self, new: int, view: ClusterView, now_s: float) -> Answer:
        """Args: new: row of `view.requests`; its record is filled, no worker lists it yet."""
        ...

    def place_deferred(self, waiting: int, view: ClusterView, now_s: float) -> Answer:
        """Whether the deferred request of this row can start now: SERVE, or DEFER again."""
        ...


@dataclass(frozen=True, slots=True)
class RoleChange:
    """Worker `worker` takes nothing new, and once it is empty, prefills or decodes as told."""

    worker: int
    prefills: bool
    decodes: bool


@runtime_checkable
class RoleChanges(Protocol):
    """A policy that also says which workers prefill and which decode."""

    def change_role(self, view: ClusterView, now_s: float) -> RoleChange | None:
        """Asked at every arrival. A worker that is being drained neither prefills nor decodes."""
        ...


@runtime_checkable
class LatePromises(Protocol):
    """A policy that may also promise what it deferred."""

    def promise_late(self, w: int, view: ClusterView, now_s: float) -> int:
        """A row on worker `w` that was deferred and is promised from now on; -1 for none."""
        ...


@runtime_checkable
class Ageing(Protocol):
    """A policy that also sees to it that best effort does not wait for ever."""

    def raise_aged(self, w: int, view: ClusterView, now_s: float) -> int:
        """Row on worker `w` for `core.planner.ageing.raise_pace`; -1 for none."""
        ...
