"""What is demanded of each request, and how that moves on as its tokens come."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headway.adapters.vllm_scheduler.demand import Demand
from headway.core.batch_state import Record
from headway.core.request_table import demand_fields
from headway.core.slo import DemandLine, Promise


class DemandBook:
    """Demands by the engine's own ids. What follows from them is written into REQUEST records."""

    def __init__(self) -> None:
        self._demands: dict[str, Demand] = {}
        self._ids_by_caller: dict[str, str] = {}
        # Only of requests whose pace depends on which tokens come.
        self._lines: dict[str, DemandLine] = {}

    def __getitem__(self, request_id: str) -> Demand:
        return self._demands[request_id]

    def add(self, request_id: str, demand: Demand) -> None:
        line = demand.line()
        if line is not None and len(line.promise.stages) > 1:
            self._lines[request_id] = line
        self._demands[request_id] = demand
        self._ids_by_caller[demand.request_id] = request_id

    def remove(self, request_id: str) -> None:
        demand = self._demands.pop(request_id)
        # The caller may have used its id again.
        if self._ids_by_caller.get(demand.request_id) == request_id:
            del self._ids_by_caller[demand.request_id]
        self._lines.pop(request_id, None)

    def id_of(self, callers_id: str) -> str | None:
        """The engine's id of a request; None if it is not here."""
        return self._ids_by_caller.get(callers_id)

    @property
    def with_stages(self) -> list[str]:
        """Requests of which `tokens_came` must be told."""
        return list(self._lines)

    def change(self, request_id: str, due_at_s: float | None, promise: Promise | None) -> None:
        """Let a request be due otherwise; its record is to be written next."""
        old = self._demands[request_id]
        self._demands[request_id] = Demand(
            old.request_id, old.submitted_at_s, due_at_s, promise, old.tier
        )

    def write(self, request_id: str, record: Record, token_ids: Sequence[int]) -> None:
        """Write into its record what is due after the output `token_ids`."""
        demand = self._demands[request_id]
        self._lines.pop(request_id, None)
        fields = demand.fields()
        line = demand.line()
        if line is not None:
            for token_id in token_ids:
                line.token(token_id, -math.inf)
            if len(line.promise.stages) > 1:
                self._lines[request_id] = line
            fields |= _ahead(line, int(record["num_output_tokens"]) - line.num_tokens)
            if record["num_output_tokens"]:
                fields["prefill_due_at_s"] = fields["next_due_at_s"]
        for name, value in fields.items():
            record[name] = value

    def tokens_came(self, request_id: str, record: Record, token_ids: Sequence[int]) -> None:
        """All output tokens so far of a request whose stages may end with one."""
        line = self._lines[request_id]
        for token_id in token_ids[line.num_tokens :]:
            line.token(token_id, -math.inf)
        ahead = _ahead(line, int(record["num_output_tokens"]) - line.num_tokens)
        for name, value in ahead.items():
            record[name] = value


def _ahead(line: DemandLine, num_under_way: int) -> dict[str, float]:
    """The demand after tokens that are scheduled and not known yet."""
    fields = demand_fields(line)
    fields["next_due_at_s"] += num_under_way * fields["tpot_s"]
    return fields
