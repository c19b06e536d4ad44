"""Our jobs in vLLM's terms: sampling parameters that also carry the KV transfer and the demand.

`now_s` is this process's monotonic clock, which the engine's process reads too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headway.adapters.vllm_scheduler.demand import DEMAND_KEY, Demand
from headway.ports.engine import DecodeJob, PrefillJob, PrefillResult

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams


def prefill_params(job: PrefillJob, now_s: float) -> SamplingParams:
    """Compute the prompt and its first token, and send the pages to the job's target."""
    from vllm import SamplingParams  # noqa: PLC0415
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

    demand = Demand(
        job.request_id,
        now_s,
        due_at_s=None if job.due_s is None else now_s + job.due_s,
        step_cap_s=job.step_cap_s,
    )
    kv_transfer_params = {
        "headway": "send",
        "transfer_id": job.target.transfer_id,
        "address": job.target.address,
        "ticket": job.target.ticket,
        "traceparent": job.traceparent,
    }
    return SamplingParams(
        max_tokens=1,
        temperature=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={"kv_transfer_params": kv_transfer_params, DEMAND_KEY: demand.to_wire()},
    )


def decode_params(job: DecodeJob, now_s: float) -> SamplingParams:
    """Go on from the pages that come; where none do, vLLM computes the prompt by itself."""
    from vllm import SamplingParams  # noqa: PLC0415
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

    demand = Demand(
        job.request_id,
        now_s,
        due_at_s=None if job.prefill_due_s is None else now_s + job.prefill_due_s,
        promise=job.promise,
        tier=job.tier,
        step_cap_s=job.step_cap_s,
    )
    extra_args: dict[str, Any] = {DEMAND_KEY: demand.to_wire()}
    if job.target is not None:
        extra_args["kv_transfer_params"] = {
            "headway": "receive",
            "transfer_id": job.target.transfer_id,
            "expires_at_s": now_s + job.kv_timeout_s,
        }
    sampling = job.sampling
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        stop=list(sampling.stop),
        ignore_eos=sampling.ignore_eos,
        output_kind=RequestOutputKind.DELTA,
        extra_args=extra_args,
    )


def prefill_result(output: RequestOutput) -> PrefillResult:
    """What vLLM measured of a prompt whose first token has come."""
    stats: Any = output.metrics
    return PrefillResult(
        queued_s=stats.scheduled_ts - stats.queued_ts,
        computed_s=stats.first_token_ts - stats.scheduled_ts,
        num_cached_tokens=output.num_cached_tokens or 0,
    )
