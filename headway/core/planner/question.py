"""What live admission asks the planner: one request before the workers of one cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headway.core.batch_state import PREFILL, REQUEST, Records
from headway.core.cluster import ClusterSnapshot
from headway.core.planner.arrival import ClusterView
from headway.core.planner.interface import Constraint
from headway.core.request import RequestSpec
from headway.core.request_table import demand_fields
from headway.core.slo import DemandLine, Promise


@dataclass(frozen=True, slots=True)
class Question:
    """One request before the workers of one cluster.

    Attributes:
        barred: what stands against every pair of workers; None if nothing does.
    """

    request: RequestSpec
    cluster: ClusterSnapshot
    arrived_at_s: float
    view: ClusterView
    barred: Constraint | None

    @property
    def new(self) -> int:
        """The request's row in the view."""
        return len(self.view.requests) - 1

    def excess_s(self, computed_in_s: float) -> float:
        """By how much the first token is late if its prompt is computed so long from now."""
        cluster, view = self.cluster, self.view
        assert view.handover_s is not None
        assert view.local_handover_s is not None
        decodes = view.workers["decodes"] == 1
        is_both = decodes & (view.workers["prefills"] == 1)
        handover_s = float(view.local_handover_s[is_both].min(initial=np.inf))
        if cluster.prefill_workers:
            handover_s = min(handover_s, float(view.handover_s[decodes].min()))
        due_at_s = float(view.requests["next_due_at_s"][self.new])
        return computed_in_s + handover_s - (due_at_s - cluster.now_s)


def request_record(request: RequestSpec, promise: Promise | None, arrived_at_s: float) -> Records:
    """REQUEST record of a request that arrives, shape (1,)."""
    line = DemandLine(promise, arrived_at_s) if promise is not None else None
    records = np.zeros(1, REQUEST)
    for name, value in demand_fields(line).items():
        records[name] = value
    # After all that are on the workers.
    records["order"] = np.iinfo(np.int64).max
    records["phase"] = PREFILL
    records["arrived_at_s"] = arrived_at_s
    records["prefill_due_at_s"] = records["next_due_at_s"]
    records["num_prompt_tokens"] = request.num_prompt_tokens
    records["num_output_bound"] = request.sampling.max_tokens
    return records
