"""The classes that vLLM loads: a step is formed before vLLM makes its own.

vLLM's private names used here and in `granted_queues` are listed in `symbols`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from headway.adapters.vllm_scheduler.books import EngineBooks, EngineLimits
from headway.adapters.vllm_scheduler.demand import DEMAND_KEY, Demand
from headway.adapters.vllm_scheduler.formed_step import FormedStep
from headway.adapters.vllm_scheduler.granted_queues import GrantedQueues
from headway.adapters.vllm_scheduler.plan_socket import PlanReceiver
from headway.adapters.vllm_scheduler.step_log import ScheduledStep, StepLog
from headway.adapters.vllm_scheduler.utilities import add_utilities
from headway.adapters.vllm_scheduler.waker import Waker
from headway.core.perf_model import PerfModel

_log = logging.getLogger(__name__)

# An engine that holds everything back looks again at least this often.
_IDLE_LOOK_S = 0.1


class FormsStepsByDeadline(GrantedQueues):
    """To be put before one of vLLM's schedulers; that one alone until `form_steps`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        add_utilities()
        self._books: EngineBooks | None = None
        self._plans: PlanReceiver | None = None
        self._waker: Waker | None = None
        self.steps = StepLog()
        self._was_refused = False
        self._has_failed = False
        self._is_asleep = False
        # Preempted while a step with them was under way.
        self._unsettled: set[str] = set()

    def form_steps(
        self, perf_model: PerfModel, guard_ratio: float, wake: Callable[[], None] | None = None
    ) -> str:
        """Form steps by deadline from now on; returns the address for plan updates.

        Args:
            perf_model: how long steps take, in the mean.
            guard_ratio: factor on predicted times that measured ones hardly ever exceed.
            wake: makes an engine that found no work look again; None if it never sleeps.
        """
        pool = self.kv_cache_manager.block_pool
        limits = EngineLimits(
            block_size=self.cache_config.block_size,
            # One is vLLM's own.
            num_blocks=pool.num_gpu_blocks - 1,
            max_step_tokens=self.max_num_scheduled_tokens,
            max_running=getattr(self, self._limit_name),
            max_model_len=self.max_model_len,
            num_lookahead=self.num_lookahead_tokens,
            max_draft_tokens=self.num_spec_tokens,
        )
        books = EngineBooks(perf_model, limits, guard_ratio)
        books.warm_up()
        self.need_mamba_block_aligned_split = True
        # The former keeps room for what it has let in; vLLM would want room for whole prompts.
        self.scheduler_reserve_full_isl = False
        if wake is not None:
            self._waker = Waker(lambda: self._rouse(wake))
        self._plans = PlanReceiver(self._plan_came)
        self._books = books
        for request in self.requests.values():
            self._count_in(request)
        return self._plans.address

    @property
    def books(self) -> EngineBooks | None:
        """None until `form_steps`."""
        return self._books

    def follow_plans(self) -> None:
        """Take in the plan updates that came; each step does, and so does an idle engine's load."""
        books, plans = self._books, self._plans
        if books is None or plans is None:
            return
        for update in plans.take():
            books.cap_steps(update.step_cap_s)
            books.drafts.cap(update.draft_lengths)
            if update.time_ratio is not None:
                books.time_ratio_told = update.time_ratio
            for callers_id, (due_at_s, promise) in update.demands.items():
                request_id = books.demands.id_of(callers_id)
                if request_id is not None:
                    token_ids = self.requests[request_id].output_token_ids
                    books.change_demand(request_id, due_at_s, promise, token_ids)

    # What vLLM asks of its scheduler.

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        books = self._books
        if books is None:
            return super().schedule(*args, **kwargs)
        self.follow_plans()
        now_s = time.monotonic()
        formed = self._form(books, now_s)
        static_budget = self.max_num_scheduled_tokens
        try:
            if formed is None:
                self.order_by_due_time(books)
                self.max_num_scheduled_tokens = min(static_budget, books.step_budget)
                output = super().schedule(*args, **kwargs)
            else:
                output = self.schedule_granted(books, formed, args, kwargs)
        finally:
            self.max_num_scheduled_tokens = static_budget
        self._note_reservations(books)
        self._log_step(books, formed, output, now_s)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        result = super().update_from_output(scheduler_output, model_runner_output)
        if self._books is not None:
            self.steps.ended(time.monotonic())
            if self.num_spec_tokens:
                self._count_drafts(self._books, scheduler_output, model_runner_output)
            self._settle_preempted(self._books)
            for request_id in self._books.demands.with_stages:
                self._books.tokens_came(request_id, self.requests[request_id].output_token_ids)
        return result

    def add_request(self, request: Any) -> Any:
        result = super().add_request(request)
        self._is_asleep = False
        if self._books is not None and request.request_id not in self._books.requests:
            self._count_in(request)
        return result

    def has_requests(self) -> bool:
        if not super().has_requests():
            return False
        return not self._is_asleep or bool(self.has_finished_requests())

    def shutdown(self) -> None:
        if self._plans is not None:
            self._plans.close()
        if self._waker is not None:
            self._waker.close()
        super().shutdown()

    # What it asks of itself.

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        super()._update_after_schedule(scheduler_output)
        request_ids = list(scheduler_output.num_scheduled_tokens)
        if self._books is not None and request_ids:
            requests = self.requests
            self._books.count(request_ids, [requests[i].num_computed_tokens for i in request_ids])

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        num_under_way = request.num_output_placeholders
        super()._preempt_request(request, *args, **kwargs)
        if self._books is not None:
            self._books.lost_blocks(request.request_id, request.num_tokens + num_under_way)
            if num_under_way:
                self._unsettled.add(request.request_id)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        result = super()._free_request(request, *args, **kwargs)
        if self._books is not None:
            self._books.remove(request.request_id)
        return result

    # Ours.

    def _count_in(self, request: Any) -> None:
        assert self._books is not None
        sampling = request.sampling_params
        extra = (sampling.extra_args or {}) if sampling is not None else {}
        wire = extra.get(DEMAND_KEY)
        demand = (
            Demand.from_wire(wire)
            if wire is not None
            else Demand(request.request_id, time.monotonic())
        )
        self._books.add(
            request.request_id,
            demand,
            num_prompt_tokens=request.num_tokens,
            max_tokens=request.max_tokens,
        )
        if (request.kv_transfer_params or {}).get("headway") == "receive":
            self._books.awaits_pages(request.request_id, 0)

    def _form(self, books: EngineBooks, now_s: float) -> FormedStep | None:
        """What the next step is to be; None if this one is left to vLLM."""
        if self._was_refused:
            self._was_refused = False
            return None
        try:
            for request_id in self.finished_recving_kv_req_ids:
                request = self.requests[request_id]
                num_computed = min(request.num_computed_tokens, request.num_tokens - 1)
                books.pages_arrived(request_id, num_computed)
            return books.form(
                self.steps.next_start_at_s(now_s, books.time_ratio),
                self.kv_cache_manager.block_pool.get_num_free_blocks(),
                self.steps.time_ratio,
                # vLLM looks at waiting requests only while a step has tokens left.
                1 if books.ids_without_blocks else 0,
            )
        except Exception:  # noqa: BLE001 - an engine that serves without a plan is better than none
            if not self._has_failed:
                _log.exception("a step cannot be formed: vLLM makes this one, and all like it")
            self._has_failed = True
            return None

    def _note_reservations(self, books: EngineBooks) -> None:
        """Whatever waited for blocks and has them now, waits for pages."""
        for request_id in books.ids_without_blocks:
            request = self.requests[request_id]
            if request.status is RequestStatus.WAITING_FOR_REMOTE_KVS:
                num_blocks = -(-request.num_tokens // self.cache_config.block_size)
                books.awaits_pages(request_id, num_blocks)

    def _settle_preempted(self, books: EngineBooks) -> None:
        """Output that was under way when a request was preempted has come: count it exactly."""
        for request_id in list(self._unsettled):
            request = self.requests.get(request_id)
            # Not in each vLLM.
            num_stale_tokens: int = getattr(request, "num_stale_output_tokens", 0)
            if num_stale_tokens:
                continue
            self._unsettled.discard(request_id)
            if request is not None and request_id in books.requests:
                books.settled(request_id, request.num_tokens, request.output_token_ids)

    def _count_drafts(self, books: EngineBooks, scheduled: Any, model_output: Any) -> None:
        drafts: dict[str, tuple[int, int]] = {}
        num_computed: dict[str, int] = {}
        for request_id, token_ids in scheduled.scheduled_spec_decode_tokens.items():
            if request_id not in books.requests or request_id in self._unsettled:
                continue
            sampled = model_output.sampled_token_ids[model_output.req_id_to_index[request_id]]
            drafts[request_id] = (len(token_ids), max(0, len(sampled) - 1))
            num_computed[request_id] = self.requests[request_id].num_computed_tokens
        undrafted = [
            request_id
            for request_id, num_tokens in scheduled.num_scheduled_tokens.items()
            if num_tokens == 1 and request_id in books.requests
        ]
        books.drafts_verified(drafts, num_computed, undrafted)

    def _log_step(
        self, books: EngineBooks, formed: FormedStep | None, output: Any, now_s: float
    ) -> None:
        scheduled: Mapping[str, int] = output.num_scheduled_tokens
        as_formed = formed is not None and formed.grants == scheduled
        num_chunks = formed.num_chunks if formed and as_formed else 0
        self.steps.scheduled(
            ScheduledStep(
                scheduled_at_s=now_s,
                predicted_s=formed.predicted_s / books.time_ratio if formed and as_formed else 0.0,
                num_tokens=output.total_num_scheduled_tokens,
                num_decodes=len(scheduled) - num_chunks,
                num_chunks=num_chunks,
                num_held=formed.num_held if formed else 0,
                num_preempted=len(formed.preempted) if formed else 0,
            )
        )
        if scheduled:
            return
        self._was_refused = bool(formed and formed.grants)
        if not self._was_refused and not books.num_in_transfer:
            self._sleep(books, now_s)

    def _sleep(self, books: EngineBooks, now_s: float) -> None:
        """Nothing can be computed until something comes: vLLM need not ask a thousand times."""
        if self._waker is None or self._plans is None:
            return
        self._is_asleep = True
        due_in_s = min(_IDLE_LOOK_S, max(0.0, books.earliest_due_at_s() - now_s))
        self._waker.wake_at(now_s + due_in_s)
        if self._plans.has_updates:
            self._is_asleep = False

    def _plan_came(self) -> None:
        if self._waker is not None and self._is_asleep:
            self._waker.now()

    def _rouse(self, wake: Callable[[], None]) -> None:
        self._is_asleep = False
        wake()


class HeadwayScheduler(FormsStepsByDeadline, Scheduler):  # type: ignore[misc]
    """For engines whose steps follow one another."""


class HeadwayAsyncScheduler(FormsStepsByDeadline, AsyncScheduler):  # type: ignore[misc]
    """For engines that are told of the next step while one runs; right for others too."""
