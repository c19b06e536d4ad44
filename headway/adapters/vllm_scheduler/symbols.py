"""What the scheduler rests on inside vLLM, and whether the installed one has it.

Where releases differ there is more than one name; what exists decides, never a version.
"""

from __future__ import annotations

import inspect
from typing import Any

from headway.errors import ConfigError

# Methods of vLLM's Scheduler that are called or overridden, with the parameters relied on.
METHODS: dict[str, tuple[str, ...]] = {
    "schedule": ("self",),
    "update_from_output": ("self", "scheduler_output", "model_runner_output"),
    "add_request": ("self", "request"),
    "has_requests": ("self",),
    "has_finished_requests": ("self",),
    "shutdown": ("self",),
    "_mamba_block_aligned_split": ("self", "request", "num_new_tokens"),
    "_update_after_schedule": ("self", "scheduler_output"),
    "_preempt_request": ("self", "request", "timestamp"),
    "_free_request": ("self", "request"),
}

# Attributes that its constructor sets.
ATTRIBUTES = (
    "running",
    "waiting",
    "requests",
    "finished_recving_kv_req_ids",
    "kv_cache_manager",
    "cache_config",
    "max_model_len",
    "max_num_scheduled_tokens",
    "need_mamba_block_aligned_split",
    "scheduler_reserve_full_isl",
    "num_spec_tokens",
    "num_lookahead_tokens",
    "dynamic_sd_lookup",
    "_inflight_prefills",
)

# Queue of waiting requests that hold KV blocks; limit of requests in `running`.
HOLDING_QUEUES = ("kv_holding_waiting", "skipped_waiting")
RUNNING_LIMITS = ("max_num_active_reqs", "max_num_running_reqs")

REQUEST_ATTRIBUTES = (
    "request_id",
    "status",
    "num_computed_tokens",
    "num_output_placeholders",
    "num_preemptions",
    "output_token_ids",
    "sampling_params",
    "kv_transfer_params",
    "max_tokens",
)

STATUSES = ("RUNNING", "WAITING", "PREEMPTED", "WAITING_FOR_REMOTE_KVS")

OUTPUT_FIELDS = (
    "num_scheduled_tokens",
    "total_num_scheduled_tokens",
    "scheduled_spec_decode_tokens",
)


def check_symbols() -> None:
    """Raises ConfigError naming all that the installed vLLM lacks."""
    missing = missing_symbols()
    if missing:
        raise ConfigError(f"this vLLM cannot run Headway's scheduler; it lacks {missing}")


def missing_symbols() -> list[str]:
    """Names that are not there, or are something else."""
    from vllm.v1.core.kv_cache_manager import KVCacheManager  # noqa: PLC0415
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: PLC0415
    from vllm.v1.core.sched.output import SchedulerOutput  # noqa: PLC0415
    from vllm.v1.core.sched.request_queue import FCFSRequestQueue  # noqa: PLC0415
    from vllm.v1.core.sched.scheduler import Scheduler  # noqa: PLC0415
    from vllm.v1.engine import EngineCoreRequestType  # noqa: PLC0415
    from vllm.v1.request import Request, RequestStatus  # noqa: PLC0415

    missing = [f"Scheduler.{name}" for name in METHODS if not _has_method(Scheduler, name)]
    source = inspect.getsource(Scheduler.__init__)
    missing += [f"Scheduler.{name}" for name in ATTRIBUTES if f"self.{name}" not in source]
    for names in (HOLDING_QUEUES, RUNNING_LIMITS):
        if not any(f"self.{name}" in source for name in names):
            missing.append("Scheduler." + " or ".join(names))
    if not issubclass(AsyncScheduler, Scheduler):
        missing.append("AsyncScheduler as a Scheduler")
    source = inspect.getsource(Request)
    missing += [f"Request.{n}" for n in REQUEST_ATTRIBUTES if f"self.{n}" not in source]
    if not isinstance(getattr(Request, "num_tokens", None), property):
        missing.append("Request.num_tokens")
    missing += _not_on(RequestStatus, STATUSES)
    missing += [
        f"SchedulerOutput.{name}"
        for name in OUTPUT_FIELDS
        if name not in SchedulerOutput.__dataclass_fields__
    ]
    missing += _not_on(
        FCFSRequestQueue,
        ("add_request", "prepend_request", "remove_request", "remove_requests", "extend", "clear"),
    )
    missing += _not_on(KVCacheManager, ("free",))
    return missing + _not_on(EngineCoreRequestType, ("WAKEUP",))


def holding_queue_name(scheduler: Any) -> str:
    """Of the queue with waiting requests that hold KV blocks."""
    return _first_of(scheduler, HOLDING_QUEUES)


def running_limit_name(scheduler: Any) -> str:
    """Of the limit of requests that vLLM lets run."""
    return _first_of(scheduler, RUNNING_LIMITS)


def _first_of(scheduler: Any, names: tuple[str, ...]) -> str:
    return next(name for name in names if hasattr(scheduler, name))


def _has_method(owner: Any, name: str) -> bool:
    method = getattr(owner, name, None)
    if method is None:
        return False
    parameters = tuple(inspect.signature(method).parameters)
    return parameters[: len(METHODS[name])] == METHODS[name]


def _not_on(owner: Any, names: tuple[str, ...]) -> list[str]:
    return [f"{owner.__name__}.{name}" for name in names if not hasattr(owner, name)]
