"""A request on its way: what it asks, and the states it passes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from headway.core.slo import Slo


class RequestState(StrEnum):
    QUEUED = "QUEUED"
    PREFILLING = "PREFILLING"
    TRANSFERRING = "TRANSFERRING"
    DECODING = "DECODING"
    SUCCEEDED = "SUCCEEDED"
    CANCELLED = "CANCELLED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    FAILED = "FAILED"


_ENDINGS = {
    RequestState.CANCELLED,
    RequestState.DEADLINE_EXCEEDED,
    RequestState.FAILED,
}

# The only place that says which state may follow which. PREFILLING can lead straight to DECODING:
# a prompt computed on the decode worker is not transferred, and a decode worker may send tokens
# before the prefill worker's answer arrives.
TRANSITIONS: dict[RequestState, frozenset[RequestState]] = {
    RequestState.QUEUED: frozenset({RequestState.PREFILLING, *_ENDINGS}),
    RequestState.PREFILLING: frozenset(
        {RequestState.TRANSFERRING, RequestState.DECODING, *_ENDINGS}
    ),
    RequestState.TRANSFERRING: frozenset({RequestState.DECODING, *_ENDINGS}),
    RequestState.DECODING: frozenset({RequestState.SUCCEEDED, *_ENDINGS}),
    RequestState.SUCCEEDED: frozenset(),
    RequestState.CANCELLED: frozenset(),
    RequestState.DEADLINE_EXCEEDED: frozenset(),
    RequestState.FAILED: frozenset(),
}


class FinishReason(StrEnum):
    STOP = "STOP"
    LENGTH = "LENGTH"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How output tokens are chosen. Field meanings: proto/headway/v1/generation.proto."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One request as it arrived, checked and tokenised.

    Attributes:
        slo: bounds asked for; None means best effort was asked for.
        tier: the tier they came from; empty when the request carried its own or none.
        refuse_if_not_promised: refuse instead of serving best effort.
        deadline_s: from arrival to the last token.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    slo: Slo | None
    tier: str
    refuse_if_not_promised: bool
    deadline_s: float

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)
