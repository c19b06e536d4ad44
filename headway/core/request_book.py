"""The books of all requests that were admitted and have not ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from headway.core.deadlines import Deadlines
from headway.core.effects import Effect, WakeAt
from headway.core.progress import Progress


@dataclass(slots=True)
class RequestBook:
    """Who is served, who of them waits for a place, and when each must be done."""

    _requests: dict[str, Progress] = field(default_factory=dict)
    _queue: dict[str, Progress] = field(default_factory=dict)
    _deadlines: Deadlines = field(default_factory=Deadlines)

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, request_id: str) -> Progress:
        return self._requests[request_id]

    def get(self, request_id: str) -> Progress | None:
        return self._requests.get(request_id)

    def add(self, progress: Progress) -> None:
        self._requests[progress.spec.request_id] = progress
        self._deadlines.add(progress.deadline_at_s, progress.spec.request_id)

    def remove(self, request_id: str) -> None:
        """Forget a request that ended."""
        del self._requests[request_id]
        self._queue.pop(request_id, None)
        self._deadlines.sweep(self._requests, len(self._requests))

    @property
    def num_queued(self) -> int:
        """Best-effort requests that wait for a place."""
        return len(self._queue)

    @property
    def first_queued(self) -> Progress | None:
        """Who has waited longest."""
        return next(iter(self._queue.values()), None)

    def queue(self, progress: Progress) -> None:
        """Let a request wait, after all that wait already."""
        self._queue[progress.spec.request_id] = progress

    def dequeue(self, progress: Progress) -> None:
        del self._queue[progress.spec.request_id]

    def pop_due(self, now_s: float) -> Iterator[Progress]:
        """Requests whose deadline has come; the wake-up that brought us here is spent."""
        for request_id in self._deadlines.pop_due(now_s):
            if (progress := self._requests.get(request_id)) is not None:
                yield progress

    def wake(self) -> list[Effect]:
        """Have us woken at the next deadline, if that is not arranged already."""
        at_s = self._deadlines.next_wake_at_s()
        return [] if at_s is None else [WakeAt(at_s)]
