"""REQUEST records of what an engine holds, and the steps that the batch former makes of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headway.adapters.vllm_scheduler.demand import Demand
from headway.adapters.vllm_scheduler.demand_book import DemandBook
from headway.adapters.vllm_scheduler.formed_step import FormedStep, formed_step
from headway.adapters.vllm_scheduler.tiers import TierDrafts
from headway.core.arrivals import next_arrivals
from headway.core.batch_state import ARRIVING, DECODE, PREFILL
from headway.core.perf_model import PerfModel
from headway.core.planner.live_steps import (
    count_accepted,
    count_step,
    form_step,
    predict_step,
    tokens_within_cap,
    warm_up,
)
from headway.core.request_table import RequestTable, worker_records
from headway.core.slo import Promise


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Fixed properties of the engine whose steps are formed.

    Attributes:
        num_lookahead: tokens beyond those of a step that it allocates blocks for.
        max_draft_tokens: 0 without speculation.
    """

    block_size: int
    num_blocks: int
    max_step_tokens: int
    max_running: int
    max_model_len: int
    num_lookahead: int = 0
    max_draft_tokens: int = 0


class EngineBooks:
    """Requests by the engine's own ids. Records are kept up to date, never made anew."""

    def __init__(self, perf_model: PerfModel, limits: EngineLimits, guard_ratio: float) -> None:
        self.requests = RequestTable()
        self.time_ratio_told: float | None = None
        self._limits = limits
        # Of the step that was formed last.
        self._ends_at_s = 0.0
        self._worker = worker_records(
            perf_model,
            block_size=limits.block_size,
            num_blocks=limits.num_blocks,
            max_step_tokens=limits.max_step_tokens,
            max_running=limits.max_running,
            guard_ratio=guard_ratio,
        )
        self._worker["max_draft_tokens"] = limits.max_draft_tokens
        self._rows = np.arange(0)
        self._grants = np.zeros(0, np.int64)
        self._arrivals = itertools.count()
        self.demands = DemandBook()
        self._without_blocks: set[str] = set()
        self.drafts = TierDrafts()

    def warm_up(self) -> None:
        """Load compiled code, or make it, before a step waits for it; forms no step."""
        warm_up(self._worker)

    @property
    def time_ratio(self) -> float:
        return float(self._worker["time_ratio"][0])

    @property
    def step_budget(self) -> int:
        """Tokens of a step that nobody forms; keeps about to the step cap."""
        return tokens_within_cap(self._worker[0])

    def add(
        self, request_id: str, demand: Demand, *, num_prompt_tokens: int, max_tokens: int
    ) -> None:
        """Count in a request whose prompt is to be computed here."""
        self.demands.add(request_id, demand)
        tier = self.drafts.number(demand.tier)
        self.requests.add(
            request_id,
            {
                "order": next(self._arrivals),
                "tier": tier,
                "phase": PREFILL,
                "arrived_at_s": demand.submitted_at_s,
                "num_prompt_tokens": num_prompt_tokens,
                "num_output_bound": max_tokens,
                "acceptance": self.drafts.probability(tier),
                **demand.fields(),
            },
        )
        self.cap_steps(demand.step_cap_s)

    def remove(self, request_id: str) -> None:
        """Forget a request, if it is known."""
        if not self.requests.remove(request_id):
            return
        self.demands.remove(request_id)
        self._without_blocks.discard(request_id)

    def awaits_pages(self, request_id: str, num_blocks: int) -> None:
        """Its prompt is computed elsewhere; `num_blocks` are reserved for the pages so far."""
        record = self.requests[request_id]
        record["phase"] = ARRIVING
        record["num_blocks"] = num_blocks
        if num_blocks:
            self._without_blocks.discard(request_id)
        else:
            self._without_blocks.add(request_id)

    def pages_arrived(self, request_id: str, num_computed: int) -> None:
        """All of its prompt that comes from elsewhere is here."""
        record = self.requests[request_id]
        if record["phase"] == ARRIVING:
            record["num_computed_tokens"] = num_computed
            record["phase"] = DECODE if num_computed + 1 >= record["num_prompt_tokens"] else PREFILL

    def lost_blocks(self, request_id: str, num_tokens: int) -> None:
        """It was preempted; what it has, output included, is a prompt of `num_tokens` again."""
        record = self.requests[request_id]
        record["num_prompt_tokens"] = num_tokens
        record["num_computed_tokens"] = record["num_blocks"] = 0
        if record["phase"] != PREFILL:
            record["prefill_due_at_s"] = record["next_due_at_s"]
            record["phase"] = PREFILL

    def is_arriving(self, request_id: str) -> bool:
        """Whether its pages, or blocks for them, are still to come."""
        return bool(self.requests[request_id]["phase"] == ARRIVING)

    @property
    def num_in_transfer(self) -> int:
        """Requests that hold blocks for pages on their way."""
        records = self.requests.records
        return int(np.count_nonzero((records["phase"] == ARRIVING) & (records["num_blocks"] > 0)))

    @property
    def ids_without_blocks(self) -> list[str]:
        """Requests whose pages cannot be sent here before blocks are reserved for them."""
        return list(self._without_blocks)

    def next_arrivals(
        self, num_free_blocks: int, formed: FormedStep
    ) -> tuple[list[str], list[str]]:
        """Requests to reserve blocks for now, and those that must be preempted for them.

        Args:
            num_free_blocks: before the step takes its own.
            formed: the step; who is in it stays in it.
        """
        if not self._without_blocks:
            return [], []
        records, ids = self.requests.records, self.requests.ids
        granted = np.zeros(len(ids), np.int64)
        granted[self.requests.rows_of(list(formed.grants))] = list(formed.grants.values())
        block_size = self._limits.block_size
        arriving, victims = next_arrivals(records, granted, num_free_blocks, block_size)
        return [ids[row] for row in arriving], [ids[row] for row in victims]

    def cap_steps(self, step_cap_s: float | None) -> None:
        """Bound steps from now on, while promised prompts wait; None changes nothing."""
        if step_cap_s is not None:
            self._worker["step_cap_s"] = step_cap_s

    def change_demand(
        self,
        request_id: str,
        due_at_s: float | None,
        promise: Promise | None,
        token_ids: Sequence[int],
    ) -> None:
        """Let a request be due otherwise; `token_ids` are its output so far."""
        self.demands.change(request_id, due_at_s, promise)
        self.demands.write(request_id, self.requests[request_id], token_ids)

    def settled(self, request_id: str, num_tokens: int, token_ids: Sequence[int]) -> None:
        """What was under way of a preempted request has come; `token_ids` is its output now."""
        record = self.requests[request_id]
        record["num_prompt_tokens"] = num_tokens
        record["num_output_tokens"] = len(token_ids)
        self.demands.write(request_id, record, token_ids)
        record["prefill_due_at_s"] = record["next_due_at_s"]

    def form(
        self, now_s: float, num_free_blocks: int, measured_ratio: float, num_kept_tokens: int
    ) -> FormedStep:
        """Choose what the next step computes.

        Args:
            now_s: the step's start.
            num_free_blocks: as the engine counts them.
            measured_ratio: measured / predicted step time.
            num_kept_tokens: of `max_step_tokens`, not to be granted.
        """
        n = len(self.requests)
        if n > len(self._rows):
            self._rows = np.arange(2 * n)
            self._grants = np.zeros(2 * n, np.int64)
        worker, grants = self._worker, self._grants
        worker["num_free_blocks"] = num_free_blocks
        worker["max_step_tokens"] = self._limits.max_step_tokens - num_kept_tokens
        # As the planner: never sped up.
        worker["time_ratio"] = max(1.0, self.time_ratio_told or measured_ratio)
        records = self.requests.records
        predicted_s = form_step(now_s, records, self._rows, n, worker[0], grants)
        chosen = grants[:n]
        draft_length = 0
        if self._limits.max_draft_tokens:
            draft_length = self.drafts.bound(records, chosen)
            predicted_s = predict_step(records, self._rows, n, worker[0], grants)
        self._ends_at_s = now_s + predicted_s
        return formed_step(records, self.requests.ids, chosen, predicted_s, draft_length)

    def count(self, request_ids: list[str], num_computed: list[int]) -> None:
        """A step with these was scheduled; at its end they have KV for so many tokens."""
        count_step(
            self.requests.records,
            np.array(self.requests.rows_of(request_ids), np.int64),
            np.array(num_computed, np.int64),
            len(request_ids),
            self._worker[0],
            self._limits.num_lookahead,
            self._limits.max_model_len,
            self._ends_at_s,
        )

    def drafts_verified(
        self,
        drafts: Mapping[str, tuple[int, int]],
        num_computed: Mapping[str, int],
        undrafted: Sequence[str],
    ) -> None:
        """A step's drafts, (drafted, accepted) by request id, and the KV tokens that are left.

        Args:
            drafts: by request id.
            num_computed: by request id.
            undrafted: ids of the other decodes of the step.
        """
        records, ids = self.requests.records, list(drafts)
        rows = self.requests.rows_of(ids)
        self.drafts.verified(
            records,
            dict(zip(rows, drafts.values(), strict=True)),
            self.requests.rows_of(list(undrafted)),
        )
        count_accepted(
            records,
            np.array(rows, np.int64),
            np.array([num_computed[request_id] for request_id in ids], np.int64),
            np.array([drafts[request_id][1] for request_id in ids], np.int64),
            len(ids),
        )

    def tokens_came(self, request_id: str, token_ids: Sequence[int]) -> None:
        """All output tokens so far of a request with stages; see `DemandBook.with_stages`."""
        self.demands.tokens_came(request_id, self.requests[request_id], token_ids)

    def earliest_due_at_s(self) -> float:
        """When the next token or prompt is due; infinite if nothing is promised."""
        records = self.requests.records
        if not len(records):
            return math.inf
        return float(min(records["next_due_at_s"].min(), records["prefill_due_at_s"].min()))

    def due_order(self, request_ids: Sequence[str]) -> list[str]:
        """The promised first, by when their next token is due, then others as they came."""
        rows = np.array(self.requests.rows_of(list(request_ids)), np.int64)
        records = self.requests.records
        order = np.lexsort((records["order"][rows], records["next_due_at_s"][rows]))
        return [request_ids[index] for index in order.tolist()]
