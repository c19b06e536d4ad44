"""One request held against the bounds of its tier, whoever serves it."""

from __future__ import annotations

from headway.core.slo import DemandLine, Promise
from headway.ports.clock import Clock

# No token's: bounds whose stages end with a certain token cannot be watched from counts.
_NO_TOKEN = -1


class Watch:
    """Counts one request's tokens as they arrive, on the caller's clock.

    Attributes:
        promise: bounds to hold it against; None for best effort.
        guaranteed: whether the server promised them.
        error: reason why it did not end well; empty if it did.
    """

    def __init__(self, clock: Clock, promise: Promise | None, num_tokens_asked: int) -> None:
        """The request is sent now."""
        self.promise = promise
        self.guaranteed = False
        self.error = ""
        self._clock = clock
        self._num_tokens_asked = num_tokens_asked
        self._asked_at_s = clock.now_s()
        self._line = DemandLine(promise, self._asked_at_s) if promise is not None else None
        self._num_tokens = 0
        self._first_at_s = self._last_at_s = self._asked_at_s

    def has(self, num_tokens: int) -> None:
        """So many output tokens have arrived until now, all in all."""
        self._last_at_s = self._clock.now_s()
        if self._num_tokens == 0:
            self._first_at_s = self._last_at_s
        for _ in range(num_tokens - self._num_tokens):
            self._num_tokens += 1
            if self._line is not None:
                self._line.token(_NO_TOKEN, self._last_at_s)

    @property
    def is_complete(self) -> bool:
        return not self.error and self._num_tokens == self._num_tokens_asked

    @property
    def ttft_s(self) -> float | None:
        """Sent to first token; None if none came."""
        return self._first_at_s - self._asked_at_s if self._num_tokens else None

    @property
    def tpot_s(self) -> float | None:
        """Mean gap between the tokens after the first; None below two."""
        if self._num_tokens < 2:
            return None
        return (self._last_at_s - self._first_at_s) / (self._num_tokens - 1)

    @property
    def attained(self) -> bool:
        """Whether it is complete and every check-point was met."""
        return self.is_complete and self._line is not None and self._line.attained

    @property
    def attained_mean(self) -> bool:
        """Whether it is complete, its first token in time and its mean TPOT within the bound."""
        if self.promise is None or not self.is_complete or self.ttft_s is None:
            return False
        in_time = self.ttft_s <= self.promise.ttft_s
        return in_time and (self.tpot_s is None or self.tpot_s <= self.promise.tightest_tpot_s)
