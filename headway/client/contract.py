"""What every stream of events must look like, whoever serves it."""

from __future__ import annotations

from headway.client.events import Admission, Event, Finished, Tokens
from headway.errors import HeadwayError, Refused


class StreamContract:
    """Watches the events of one request and names each way in which they break the API's rules.

    The rules: one Admission first, with both bounds or with what stood against them; then
    tokens whose indices leave no gap; then one Finished that counts them. Or an error before
    anything else, and then nothing.

    Attributes:
        violations: constants, in the order in which they were seen.
    """

    def __init__(self) -> None:
        self.violations: list[str] = []
        self._num_events = 0
        self._num_tokens = 0
        self._admitted = False
        self._finished = False

    def event(self, event: Event) -> None:
        """Look at the next event."""
        if self._finished:
            self.violations.append("EVENT_AFTER_FINISHED")
        match event:
            case Admission():
                self._admission(event)
            case Tokens():
                if not self._admitted:
                    self.violations.append("TOKENS_BEFORE_ADMISSION")
                if event.first_index != self._num_tokens:
                    self.violations.append("TOKEN_INDEX_GAP")
                self._num_tokens = event.first_index + len(event.token_ids)
            case Finished():
                if not self._admitted:
                    self.violations.append("FINISHED_BEFORE_ADMISSION")
                if event.usage.num_output_tokens != self._num_tokens:
                    self.violations.append("TOKENS_MISCOUNTED")
                self._finished = True
        self._num_events += 1

    def _admission(self, event: Admission) -> None:
        if self._admitted:
            self.violations.append("SECOND_ADMISSION")
        self._admitted = True
        if event.guaranteed and (event.ttft_s is None or event.tpot_s is None):
            self.violations.append("PROMISE_WITHOUT_BOUNDS")
        if not event.guaranteed and not event.binding_constraint:
            self.violations.append("BEST_EFFORT_WITHOUT_REASON")

    def ended(self, error: HeadwayError | None) -> None:
        """The stream is over: by itself, or with an error."""
        if isinstance(error, Refused):
            if self._num_events > 0:
                self.violations.append("REFUSED_AFTER_ADMISSION")
        elif not self._finished and (error is None or self._num_events > 0):
            self.violations.append("NOT_FINISHED")
