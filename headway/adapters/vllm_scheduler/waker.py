"""Wakes an engine that waits, at a chosen instant or at once."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


class Waker:
    """Calls `wake` on a thread of its own; the other methods may be called from any thread."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._changed = threading.Condition()
        self._due_at_s = math.inf
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine waker", daemon=True)
        self._thread.start()

    def wake_at(self, at_s: float) -> None:
        """Wake then, instead of when it was asked to last."""
        with self._changed:
            self._due_at_s = at_s
            self._changed.notify()

    def now(self) -> None:
        self._wake()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                left_s = self._due_at_s - time.monotonic()
                if left_s > 0:
                    self._changed.wait(None if math.isinf(left_s) else left_s)
                    continue
                self._due_at_s = math.inf
            self._wake()
