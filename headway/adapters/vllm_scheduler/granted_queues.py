"""Carries out in vLLM what was granted, by what its scheduler finds in its queues.

Whatever is not granted is out of vLLM's queues while it makes a step; whatever is, is capped by
its grant in a hook that vLLM calls for each request. Then the queues are put together again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from vllm.v1.request import RequestStatus

from headway.adapters.vllm_scheduler.books import EngineBooks
from headway.adapters.vllm_scheduler.formed_step import FormedStep
from headway.adapters.vllm_scheduler.symbols import holding_queue_name, running_limit_name

# To the type checker the mixin is a scheduler; at run time it stands before either of the two.
_Base: Any = object


class GrantedQueues(_Base):  # type: ignore[misc]
    """To be put before one of vLLM's schedulers; changes nothing by itself."""

    # vLLM's own, which its scheduler sets and reads.
    running: list[Any]
    waiting: Any
    max_num_scheduled_tokens: int
    need_mamba_block_aligned_split: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limit_name = running_limit_name(self)
        self._holding_name = holding_queue_name(self)
        self._grants: dict[str, int] | None = None
        # vLLM asks `_mamba_block_aligned_split` only with this on; what it asks it for, it
        # still gets.
        self._splits_mamba = self.need_mamba_block_aligned_split

    def order_by_due_time(self, books: EngineBooks) -> None:
        """All that is known without forming a step: the earliest due goes first."""
        requests = self.requests
        ids = books.due_order([r.request_id for r in self.running])
        self.running[:] = [requests[request_id] for request_id in ids]
        ids = books.due_order([r.request_id for r in self.waiting])
        self.waiting.clear()
        self.waiting.extend(requests[request_id] for request_id in ids)

    def schedule_granted(
        self, books: EngineBooks, formed: FormedStep, args: Any, kwargs: Any
    ) -> Any:
        """One step of vLLM's with exactly what was granted.

        Whoever must give up its blocks for others besides is noted in `formed.preempted`.
        """
        for request_id in formed.preempted:
            self._take_blocks_of(books, self.requests[request_id])
        num_free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        wanting, victims = books.next_arrivals(num_free, formed)
        for request_id in victims:
            self._take_blocks_of(books, self.requests[request_id])
            formed.preempted.append(request_id)
        grants = formed.grants
        requests = [self.requests[request_id] for request_id in grants]
        granted_running = [r for r in requests if r.status is RequestStatus.RUNNING]
        held = [r for r in self.running if r.request_id not in grants]
        holding = getattr(self, self._holding_name)
        held_holding = [
            r for r in holding if r.request_id not in grants and not books.is_arriving(r.request_id)
        ]
        offered = [r for r in requests if _waits_without_blocks(r)]
        offered += [self.requests[request_id] for request_id in wanting]
        waiting, limit = self.waiting, getattr(self, self._limit_name)
        self.running = granted_running
        self.waiting = type(waiting)()
        self.waiting.extend(offered)
        if held_holding:
            holding.remove_requests(held_holding)
        setattr(self, self._limit_name, limit - len(held))
        if self.num_spec_tokens:
            self.dynamic_sd_lookup = [formed.draft_length] * (limit + 1)
        self._grants = grants
        try:
            output = super().schedule(*args, **kwargs)
        finally:
            self._grants = None
            left, self.waiting = self.waiting, waiting
            self._put_back(offered, left)
            self.running.extend(held)
            for request in held_holding:
                holding.add_request(request)
            setattr(self, self._limit_name, limit)
        return output

    def _mamba_block_aligned_split(
        self, request: Any, num_new_tokens: int, *args: Any, **kwargs: Any
    ) -> int:
        if self._grants is not None:
            grant = self._grants.get(request.request_id, num_new_tokens)
            num_new_tokens = min(num_new_tokens, grant)
        if self._splits_mamba:
            num_new_tokens = super()._mamba_block_aligned_split(
                request, num_new_tokens, *args, **kwargs
            )
        return num_new_tokens

    def _put_back(self, offered: list[Any], left: Iterable[Any]) -> None:
        """Make the queue of all waiting requests agree with what vLLM left of its part of it."""
        left = list(left)
        still_there = {request.request_id for request in left}
        taken = [r for r in offered if r.request_id not in still_there]
        if taken:
            self.waiting.remove_requests(taken)
        known = {request.request_id for request in offered}
        for request in left:
            # vLLM preempted it in this step.
            if request.request_id not in known:
                self.waiting.prepend_request(request)

    def _take_blocks_of(self, books: EngineBooks, request: Any) -> None:
        """Preempt; the request keeps its tokens and computes them again later."""
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
            self._preempt_request(request, time.monotonic())
            return
        # Its pages have arrived, and it has not been in a step since.
        getattr(self, self._holding_name).remove_request(request)
        self.finished_recving_kv_req_ids.discard(request.request_id)
        self._inflight_prefills.discard(request)
        self.kv_cache_manager.free(request)
        request.num_computed_tokens = 0
        was_preempted = request.num_preemptions > 0
        request.status = RequestStatus.PREEMPTED if was_preempted else RequestStatus.WAITING
        self.waiting.prepend_request(request)
        books.lost_blocks(request.request_id, request.num_tokens)


def _waits_without_blocks(request: Any) -> bool:
    return bool(
        request.status is not RequestStatus.RUNNING
        and request.status is not RequestStatus.WAITING_FOR_REMOTE_KVS
        and request.num_computed_tokens == 0
    )
