"""The questions a planner answers, and the forms of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from headway.core.cluster import ClusterSnapshot, WorkerSnapshot
from headway.core.request import RequestSpec
from headway.core.slo import Promise, Slo


class Constraint(StrEnum):
    """What stood against a promise, or against serving at all."""

    PREFILL_TIME = "PREFILL_TIME"
    DECODE_RATE = "DECODE_RATE"
    KV_BLOCKS = "KV_BLOCKS"
    TOO_COSTLY = "TOO_COSTLY"  # while there is too little room, it would cost others theirs
    NOT_ASKED = "NOT_ASKED"
    QUEUE_FULL = "QUEUE_FULL"
    NO_WORKER = "NO_WORKER"
    TOO_LARGE = "TOO_LARGE"  # for every worker, however long it waits


@dataclass(frozen=True, slots=True)
class PlannerParams:
    """What a deployment sets.

    Attributes:
        guard_ratio: predicted times are multiplied by this before they are promised.
        max_best_effort_queued: beyond it requests are refused.
        tiers: bounds by name, best-effort tiers left out.
    """

    guard_ratio: float
    max_best_effort_queued: int
    tiers: Mapping[str, Slo]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request runs, and what is expected of it there.

    Both workers are the same where the prompt is computed on the decode worker.

    Attributes:
        predicted_ttft_s: from arrival to the first token.
        predicted_tpot_s: time of a decode step at the lengths all requests may reach.
        predicted_kv_arrival_s: from arrival until the decode worker has all KV pages.
        handover_allowance_s: the prompt must be computed so long before the first token is due;
            guard included.
        step_cap_s: the longest step of the worker that prefills, while promised prompts wait;
            None leaves it as it is.
    """

    prefill_worker_id: str
    decode_worker_id: str
    predicted_ttft_s: float
    predicted_tpot_s: float
    predicted_kv_arrival_s: float
    handover_allowance_s: float
    step_cap_s: float | None = None

    @property
    def is_local(self) -> bool:
        """Whether no KV pages need to move."""
        return self.prefill_worker_id == self.decode_worker_id


@dataclass(frozen=True, slots=True)
class Guarantee:
    """The promise can be kept, at this place, together with all promises made before."""

    placement: Placement
    promise: Promise


@dataclass(frozen=True, slots=True)
class ServeBestEffort:
    """Serve it without a promise, after all promised work."""

    binding_constraint: Constraint


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not serve it now.

    Attributes:
        retry_after_s: when it is likely to fit.
        tier_that_fits: a tier that would be promised now; None if there is none.
    """

    binding_constraint: Constraint
    message: str
    retry_after_s: float
    tier_that_fits: str | None = None


Decision = Guarantee | ServeBestEffort | Refuse


class AdmissionPolicy(Protocol):
    """Decides what is promised, and what best-effort work may run beside the promises."""

    def observe(self, worker: WorkerSnapshot, now_s: float) -> None:
        """A request is about to leave this worker or one of its phases there.

        Until now the worker had all of these requests to work on.
        """
        ...

    def decide(
        self, request: RequestSpec, cluster: ClusterSnapshot, elapsed_s: float = 0.0
    ) -> Decision:
        """What to answer to a request that arrived `elapsed_s` before `cluster.now_s`."""
        ...

    def place_best_effort(
        self, request: RequestSpec, cluster: ClusterSnapshot, elapsed_s: float = 0.0
    ) -> Placement | None:
        """Where the first request of the best-effort queue may run now; None if it must wait.

        Args:
            request: the first of the queue.
            cluster: as it is now.
            elapsed_s: since the request arrived.
        """
        ...

    def is_too_large(self, request: RequestSpec, cluster: ClusterSnapshot) -> bool:
        """Whether there are workers for both phases, but none could hold it, even when idle."""
        ...
