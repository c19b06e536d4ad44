"""What one request's caller saw, on the caller's own clock."""

from __future__ import annotations

from headway.client.events import Admission, Event, Finished, Tokens
from headway.core.slo import DemandLine, Promise, StageSlo


class RequestMeter:
    """Watches the events of one request as they arrive.

    A request with bounds of several stages is measured against its tightest pace, which is
    all that its Admission tells: attained here means attained at least that well.

    Attributes:
        admission, finished: as received; None until then.
    """

    def __init__(self, asked_at_s: float) -> None:
        """Args: asked_at_s: the instant the request was sent, on the clock of `event`."""
        self.admission: Admission | None = None
        self.finished: Finished | None = None
        self.num_output_tokens = 0
        self._asked_at_s = asked_at_s
        self._first_token_at_s: float | None = None
        self._last_token_at_s = asked_at_s
        self._demand: DemandLine | None = None

    def event(self, event: Event, now_s: float) -> None:
        """Count one event that arrived at `now_s`."""
        match event:
            case Admission():
                self.admission = event
                if event.ttft_s is not None and event.tpot_s is not None:
                    promise = Promise(event.ttft_s, (StageSlo(event.tpot_s),))
                    self._demand = DemandLine(promise, self._asked_at_s)
            case Tokens():
                for token_id in event.token_ids:
                    self._token(token_id, now_s)
            case Finished():
                self.finished = event

    def _token(self, token_id: int, now_s: float) -> None:
        if self._first_token_at_s is None:
            self._first_token_at_s = now_s
        self._last_token_at_s = now_s
        self.num_output_tokens += 1
        if self._demand is not None:
            self._demand.token(token_id, now_s)

    @property
    def ttft_s(self) -> float | None:
        """Request sent to first token received; None before that."""
        if self._first_token_at_s is None:
            return None
        return self._first_token_at_s - self._asked_at_s

    @property
    def tpot_s(self) -> float | None:
        """Mean gap between the tokens after the first; None below two tokens."""
        if self._first_token_at_s is None or self.num_output_tokens < 2:
            return None
        return (self._last_token_at_s - self._first_token_at_s) / (self.num_output_tokens - 1)

    @property
    def attained(self) -> bool:
        """Whether bounds were promised and every one was met so far, as seen from here."""
        return self._demand is not None and self._demand.attained
