"""What one prefill looked like, for traces: predicted beside measured."""

from __future__ import annotations

import time

from headway.ports.engine import EngineInfo, PrefillResult
from headway.ports.telemetry import Telemetry


def trace_prefill(
    telemetry: Telemetry,
    info: EngineInfo,
    result: PrefillResult,
    num_prompt_tokens: int,
    parent: str,
) -> None:
    """Record how long a prompt waited and was computed, under `parent`; it has just ended."""
    ended_unix_ns = time.time_ns()
    started_unix_ns = ended_unix_ns - round(result.computed_s * 1e9)
    telemetry.add_span(
        "prefill.queue",
        parent=parent,
        start_unix_ns=started_unix_ns - round(result.queued_s * 1e9),
        end_unix_ns=started_unix_ns,
        attributes={"headway.actual_s": result.queued_s},
    )
    predicted_s = info.perf_model.prefill_s(
        num_prompt_tokens - result.num_cached_tokens,
        result.num_cached_tokens,
        info.max_step_tokens,
    )
    telemetry.add_span(
        "prefill.compute",
        parent=parent,
        start_unix_ns=started_unix_ns,
        end_unix_ns=ended_unix_ns,
        attributes={
            "headway.predicted_s": predicted_s,
            "headway.actual_s": result.computed_s,
            "headway.num_prompt_tokens": num_prompt_tokens,
        },
    )
