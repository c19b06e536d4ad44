"""Everything that can go wrong on purpose.

    HeadwayError
    ├── InvalidRequest       never retry: the input can not be served
    ├── NotFound             no such request
    ├── Refused              no plan keeps the promise now, or a queue is full: come back later
    ├── Unavailable          nobody serves, or the worker drains: try elsewhere
    ├── PermissionDenied     a ticket or identity does not allow it
    ├── LayoutMismatch       the two engines cannot exchange KV
    ├── KvTransferFailed     the KV pages did not arrive whole
    ├── DeadlineExceeded     the request's own deadline passed
    ├── RequestCancelled     somebody cancelled the request
    ├── EngineFailed         the engine ended or refused the request
    ├── StackFailed          a deployment on this machine ended before it was ready
    └── ConfigError          the config file is wrong

`rpc/errors.py` maps each but the last two, which never cross a wire, to a gRPC status, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class HeadwayError(Exception):
    """Base of all. `reason` is a constant for programs, the message is for people."""

    reason = "INTERNAL"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing wrong with one field of a request; an empty `field` means the whole of it."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class InvalidRequest(HeadwayError):
    """Carries every violation found, so that a caller can fix all at once."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(map(str, self.violations)))


class NotFound(HeadwayError):
    reason = "NOT_FOUND"


class Refused(HeadwayError):
    """Not now.

    Attributes:
        reason: what stood against it, for example PREFILL_TIME.
        retry_after_s: when it is likely to fit.
        tier_that_fits: a tier that would be promised now; None if there is none.
    """

    def __init__(
        self, reason: str, message: str, retry_after_s: float, tier_that_fits: str | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.tier_that_fits = tier_that_fits


class Unavailable(HeadwayError):
    reason = "UNAVAILABLE"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PermissionDenied(HeadwayError):
    reason = "PERMISSION_DENIED"


class LayoutMismatch(HeadwayError):
    reason = "KV_LAYOUT_MISMATCH"


class KvTransferFailed(HeadwayError):
    reason = "KV_TRANSFER_FAILED"


class DeadlineExceeded(HeadwayError):
    reason = "DEADLINE_EXCEEDED"


class RequestCancelled(HeadwayError):
    reason = "CANCELLED"


class EngineFailed(HeadwayError):
    reason = "ENGINE_FAILED"


class StackFailed(HeadwayError):
    reason = "STACK_FAILED"


class ConfigError(HeadwayError):
    reason = "CONFIG"
