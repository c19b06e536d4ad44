"""What both workers demand of what the controller sends: they trust nobody's arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headway.errors import FieldViolation
from headway.rpc.convert import optional_duration_from_pb
from headway.v1.decode_service_pb2 import DecodeRequest
from headway.v1.prefill_service_pb2 import PrefillRequest

_MAX_REQUEST_ID_BYTES = 128


def check_request(
    request_id: str, prompt_token_ids: Sequence[int], max_model_len: int
) -> Iterator[FieldViolation]:
    """Yield what is wrong with the fields that both requests have."""
    if not 1 <= len(request_id.encode()) <= _MAX_REQUEST_ID_BYTES:
        yield FieldViolation("request_id", f"must have 1 to {_MAX_REQUEST_ID_BYTES} bytes")
    if not 1 <= len(prompt_token_ids) <= max_model_len:
        yield FieldViolation(
            "prompt_token_ids",
            f"must be 1 to {max_model_len} tokens, got {len(prompt_token_ids)}",
        )


def check_step_cap(request: PrefillRequest | DecodeRequest) -> Iterator[FieldViolation]:
    """Yield what is wrong with the step cap, if one is given."""
    step_cap_s = optional_duration_from_pb(request, "step_cap")
    if step_cap_s is not None and step_cap_s <= 0:
        yield FieldViolation("step_cap", f"must be above 0, got {step_cap_s:g} s")
