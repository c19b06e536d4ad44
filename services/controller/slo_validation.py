"""Checks the bounds that a request carries itself."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.duration_pb2 import Duration

from headway.errors import FieldViolation
from headway.rpc.convert import duration_from_pb
from headway.v1 import inference_service_pb2 as pb

MAX_STAGES = 8
# Longer than any deadline, so that a longer bound means nothing.
MAX_BOUND_S = 3600.0
MAX_SLOWDOWN = 1000.0


def check_duration(field: str, duration: Duration) -> FieldViolation | None:
    """What is wrong with the form of a duration that must not be negative."""
    if duration.seconds < 0 or not 0 <= duration.nanos < 1_000_000_000:
        return FieldViolation(field, "must be a positive duration with nanos below a second")
    return None


def check_slo(slo: pb.Slo, vocab_size: int) -> Iterator[FieldViolation]:
    """Everything that is wrong with the bounds of a request."""
    if not 1 <= len(slo.stages) <= MAX_STAGES:
        yield FieldViolation("slo.stages", f"must be 1 to {MAX_STAGES}, got {len(slo.stages)}")
        return
    last = len(slo.stages) - 1
    for index, stage in enumerate(slo.stages):
        field = f"slo.stages[{index}]"
        yield from _check_ttft(field, stage, is_first=index == 0)
        if stage.HasField("tpot"):
            yield from _check_bound(f"{field}.tpot", stage.tpot)
        else:
            yield FieldViolation(f"{field}.tpot", "is missing")
        yield from _check_end(field, stage, vocab_size, is_last=index == last)


def _check_ttft(field: str, stage: pb.StageSlo, *, is_first: bool) -> Iterator[FieldViolation]:
    match stage.WhichOneof("ttft_bound"):
        case None:
            if is_first:
                yield FieldViolation(f"{field}.ttft", "give ttft or ttft_slowdown")
        case name if not is_first:
            yield FieldViolation(f"{field}.{name}", "belongs in the first stage only")
        case "ttft":
            yield from _check_bound(f"{field}.ttft", stage.ttft)
        case "ttft_slowdown":
            # Written so that NaN fails it.
            if not 1 < stage.ttft_slowdown <= MAX_SLOWDOWN:
                yield FieldViolation(
                    f"{field}.ttft_slowdown",
                    f"must be above 1 and at most {MAX_SLOWDOWN:g}, got {stage.ttft_slowdown}",
                )


def _check_bound(field: str, bound: Duration) -> Iterator[FieldViolation]:
    if violation := check_duration(field, bound):
        yield violation
    elif not 0 < duration_from_pb(bound) <= MAX_BOUND_S:
        yield FieldViolation(field, "must be above 0 and at most 1 h")


def _check_end(
    field: str, stage: pb.StageSlo, vocab_size: int, *, is_last: bool
) -> Iterator[FieldViolation]:
    match stage.WhichOneof("end"):
        case None:
            if not is_last:
                yield FieldViolation(f"{field}.end_token_id", "every stage but the last must end")
        case name if is_last:
            yield FieldViolation(f"{field}.{name}", "the last stage has no end of its own")
        case "end_token_id" if stage.end_token_id >= vocab_size:
            yield FieldViolation(f"{field}.end_token_id", f"must be below {vocab_size}")
        case "end_after_tokens" if stage.end_after_tokens < 1:
            yield FieldViolation(f"{field}.end_after_tokens", "must be at least 1")
