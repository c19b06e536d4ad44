"""What both workers demand of what the controller sends: they trust nobody's arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headway.errors import FieldViolation

_MAX_REQUEST_ID_BYTES = 128


def check_request(
    request_id: str, prompt_token_ids: Sequence[int], priority: int, max_model_len: int
) -> Iterator[FieldViolation]:
    """Yield what is wrong with the fields that both requests have."""
    if not 1 <= len(request_id.encode()) <= _MAX_REQUEST_ID_BYTES:
        yield FieldViolation("request_id", f"must have 1 to {_MAX_REQUEST_ID_BYTES} bytes")
    if not 1 <= len(prompt_token_ids) <= max_model_len:
        yield FieldViolation(
            "prompt_token_ids",
            f"must be 1 to {max_model_len} tokens, got {len(prompt_token_ids)}",
        )
    if priority not in {0, 1}:
        yield FieldViolation("priority", f"must be 0 or 1, got {priority}")
