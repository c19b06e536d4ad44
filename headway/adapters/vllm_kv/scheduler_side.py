"""The connector's scheduler side: which blocks move in a step. No I/O.

Transfers are told by the request's `kv_transfer_params`:
    {"headway": "send", "transfer_id", "address", "ticket", "traceparent"}
    {"headway": "receive", "transfer_id", "expires_at_s"}     on the machine's monotonic clock
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.request import RequestStatus

from headway.adapters.vllm_kv.messages import (
    Expect,
    Open,
    Outcome,
    Push,
    StepOutcomes,
    StepTransfers,
)
from headway.ports.engine import KvTarget

# Reports of finished transfers that nobody asked for, because the caller went away.
_MAX_UNCLAIMED = 4096
_MAX_STEPS = 256


@dataclass(slots=True)
class _Sending:
    transfer_id: str
    num_prompt_tokens: int
    block_ids: list[int] = field(default_factory=list)
    num_blocks_sent: int = 0


@dataclass(slots=True)
class Receiving:
    """Books of one transfer into this engine."""

    transfer_id: str
    num_prompt_tokens: int
    has_blocks: bool = False
    num_prompt_tokens_computed: int = 0
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What one step computes for one request."""

    request_id: str
    num_tokens: int
    num_context_tokens: int


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """How long a step took, from schedule to output, and what it computed."""

    works: tuple[Work, ...]
    duration_s: float


class SchedulerSide:
    """One engine's books of transfers, steps and KV blocks."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._sending: dict[str, _Sending] = {}
        self._receiving: dict[str, Receiving] = {}
        self._claims: OrderedDict[str, Receiving] = OrderedDict()
        self._next = StepTransfers()
        self._steps_under_way: deque[tuple[tuple[Work, ...], float]] = deque()
        self._last_step_at_s = 0.0
        self._steps: deque[MeasuredStep] = deque(maxlen=_MAX_STEPS)
        self._num_free_blocks: Callable[[], int] = int
        self._num_free_before = 0
        self.num_blocks = 0
        self.num_blocks_created = 0
        self.num_blocks_released = 0

    def bind_block_pool(self, pool: Any) -> None:
        """Count blocks from now on. All are free, but for vLLM's own null block."""
        self._num_free_blocks = pool.get_num_free_blocks
        self.num_blocks = self._num_free_before = pool.get_num_free_blocks()

    # What vLLM's scheduler asks, in the order of a request's life.

    def num_tokens_to_receive(self, request: Any, num_computed_tokens: int) -> int:
        """Prompt tokens that will come from the prefill engine; 0 once they came."""
        params = request.kv_transfer_params or {}
        if params.get("headway") != "receive":
            return 0
        receiving = self._receiving.get(request.request_id)
        if receiving is None:
            receiving = Receiving(params["transfer_id"], request.num_prompt_tokens)
            self._receiving[request.request_id] = receiving
            self._claims[receiving.transfer_id] = receiving
            if len(self._claims) > _MAX_UNCLAIMED:
                self._claims.popitem(last=False)
        if receiving.has_blocks:
            # Preempted after the pages came: vLLM computes the prompt again.
            return 0
        num_tokens: int = request.num_prompt_tokens - num_computed_tokens
        return num_tokens

    def blocks_allocated(self, request: Any, block_ids: list[int], num_external: int) -> None:
        """Blocks were given to a request, `num_external` tokens of them to be received."""
        params = request.kv_transfer_params or {}
        request_id = request.request_id
        num_blocks = -(-request.num_prompt_tokens // self._block_size)
        match params.get("headway"):
            case "receive" if num_external > 0:
                self._receiving[request_id].has_blocks = True
                num_local_tokens = request.num_prompt_tokens - num_external
                self._next.expects.append(
                    Expect(
                        request_id,
                        params["transfer_id"],
                        tuple(block_ids[:num_blocks]),
                        num_local_tokens // self._block_size,
                        params["expires_at_s"],
                    )
                )
            case "send" if request_id not in self._sending:
                target = KvTarget(params["address"], params["transfer_id"], params["ticket"])
                self._sending[request_id] = _Sending(target.transfer_id, request.num_prompt_tokens)
                self._next.opens.append(Open(target, num_blocks, params["traceparent"]))

    def step_scheduled(self, scheduler_output: Any) -> StepTransfers:
        """Take what the worker side has to do in this step."""
        self._count_blocks()
        works = []
        for work, block_ids, replaces in _works(scheduler_output):
            works.append(work)
            self._count_prompt_tokens(work)
            self._push(work, block_ids, replaces=replaces)
        self._steps_under_way.append((tuple(works), time.monotonic()))
        step, self._next = self._next, StepTransfers()
        return step

    def step_done(self, outcomes: StepOutcomes | None) -> None:
        """The oldest step under way has its output."""
        now_s = time.monotonic()
        works, scheduled_at_s = self._steps_under_way.popleft()
        if works:
            # With asynchronous scheduling a step is scheduled while the one before it runs.
            started_at_s = max(scheduled_at_s, self._last_step_at_s)
            self._steps.append(MeasuredStep(works, now_s - started_at_s))
        self._last_step_at_s = now_s
        for transfer_id, outcome in outcomes.outcomes.items() if outcomes else ():
            if transfer_id in self._claims:
                self._claims[transfer_id].outcome = outcome

    def request_finished(self, request: Any) -> None:
        """The request ended in any way; its blocks are given back after this call."""
        sending = self._sending.pop(request.request_id, None)
        prompt_computed = request.status in (
            RequestStatus.FINISHED_STOPPED,
            RequestStatus.FINISHED_LENGTH_CAPPED,
        )
        if sending is not None and not prompt_computed:
            self._next.aborted_transfer_ids.append(sending.transfer_id)
        params = request.kv_transfer_params or {}
        if params.get("headway") == "receive":
            receiving = self._receiving.pop(request.request_id, None)
            if receiving is None or receiving.outcome is None:
                self._next.aborted_transfer_ids.append(params["transfer_id"])

    # What the worker process asks.

    def claim(self, transfer_id: str) -> Receiving | None:
        """Take the books of a transfer whose request has ended; None if there are none."""
        return self._claims.pop(transfer_id, None)

    def is_waiting_for_blocks(self, transfer_id: str) -> bool:
        receiving = self._claims.get(transfer_id)
        return receiving is None or not receiving.has_blocks

    def take_steps(self) -> list[MeasuredStep]:
        """Steps since the last call, but not more than the newest 256."""
        steps, self._steps = list(self._steps), deque(maxlen=_MAX_STEPS)
        self._count_blocks()
        return steps

    def _count_blocks(self) -> None:
        """Count what moved since the last look: blocks some request holds, shared ones once.

        Called after each step's allocations, so that only blocks which change hands within
        one step stay out of both counts.
        """
        num_free = self._num_free_blocks()
        self.num_blocks_created += max(0, self._num_free_before - num_free)
        self.num_blocks_released += max(0, num_free - self._num_free_before)
        self._num_free_before = num_free

    def _count_prompt_tokens(self, work: Work) -> None:
        receiving = self._receiving.get(work.request_id)
        if receiving is not None:
            end = min(work.num_context_tokens + work.num_tokens, receiving.num_prompt_tokens)
            receiving.num_prompt_tokens_computed += max(0, end - work.num_context_tokens)

    def _push(self, work: Work, block_ids: list[int], *, replaces: bool) -> None:
        """Send the blocks this step completes; the last one may be partly filled."""
        sending = self._sending.get(work.request_id)
        if sending is None:
            return
        if replaces:
            sending.block_ids = []
        sending.block_ids += block_ids
        num_tokens = work.num_context_tokens + work.num_tokens
        is_last = num_tokens >= sending.num_prompt_tokens
        num_blocks = (
            -(-sending.num_prompt_tokens // self._block_size)
            if is_last
            else num_tokens // self._block_size
        )
        # After a preemption blocks are computed again that were sent already.
        first_block = sending.num_blocks_sent
        if num_blocks > first_block or is_last:
            self._next.pushes.append(
                Push(
                    sending.transfer_id,
                    first_block,
                    tuple(sending.block_ids[first_block:num_blocks]),
                    is_last,
                )
            )
            sending.num_blocks_sent = max(first_block, num_blocks)


def _works(scheduler_output: Any) -> Iterator[tuple[Work, list[int], bool]]:
    """The step's work with each request's new block ids; True if they replace the old ones."""
    num_tokens = scheduler_output.num_scheduled_tokens
    for new in scheduler_output.scheduled_new_reqs:
        work = Work(new.req_id, num_tokens[new.req_id], new.num_computed_tokens)
        yield work, list(new.block_ids[0]), True
    cached = scheduler_output.scheduled_cached_reqs
    for index, request_id in enumerate(cached.req_ids):
        block_ids = cached.new_block_ids[index]
        yield (
            Work(request_id, num_tokens[request_id], cached.num_computed_tokens[index]),
            list(block_ids[0]) if block_ids else [],
            request_id in cached.resumed_req_ids,
        )
