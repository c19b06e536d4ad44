"""When the controller must be woken."""

from __future__ import annotations

import heapq
import math
from collections.abc import Container
from dataclasses import dataclass, field


@dataclass(slots=True)
class Deadlines:
    """Instants at which requests run out of time, soonest first."""

    _heap: list[tuple[float, str]] = field(default_factory=list)
    _wake_at_s: float = math.inf

    def add(self, at_s: float, request_id: str) -> None:
        heapq.heappush(self._heap, (at_s, request_id))

    def sweep(self, live: Container[str], num_live: int) -> None:
        """Forget those that are not in `live`, once most are such; amortised constant time."""
        if len(self._heap) > 2 * num_live + 64:
            self._heap = [entry for entry in self._heap if entry[1] in live]
            heapq.heapify(self._heap)

    def pop_due(self, now_s: float) -> list[str]:
        """Requests whose instant has come; the wake-up that brought us here is spent."""
        self._wake_at_s = math.inf
        due: list[str] = []
        while self._heap and self._heap[0][0] <= now_s:
            due.append(heapq.heappop(self._heap)[1])
        return due

    def next_wake_at_s(self) -> float | None:
        """The next instant to be woken at; None if an earlier or equal one was given out."""
        if not self._heap or self._heap[0][0] >= self._wake_at_s:
            return None
        self._wake_at_s = self._heap[0][0]
        return self._wake_at_s
