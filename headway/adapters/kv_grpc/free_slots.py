"""Which slots of a receiver's memory its sender may write to."""

from __future__ import annotations

import asyncio
import threading
from collections import deque


class FreeSlots:
    """Slots that no frame is in. `take` is thread-safe, everything else is called on the loop."""

    def __init__(self, num_slots: int) -> None:
        self._free = deque(range(num_slots))
        self._lock = threading.Lock()
        self._waiting: deque[asyncio.Future[int]] = deque()

    def take(self, num_left: int = 0) -> int | None:
        """A slot, unless somebody waits for one or fewer than `num_left` would be left."""
        with self._lock:
            if self._waiting or len(self._free) <= num_left:
                return None
            return self._free.popleft()

    async def wait(self) -> int:
        """A slot, each in turn."""
        with self._lock:
            if self._free and not self._waiting:
                return self._free.popleft()
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())
            raise

    def release(self, slot: int) -> None:
        with self._lock:
            while self._waiting:
                future = self._waiting.popleft()
                if not future.done():
                    future.set_result(slot)
                    return
            self._free.append(slot)

    def end(self, error: Exception) -> None:
        """Fail everybody who waits."""
        with self._lock:
            for future in self._waiting:
                if not future.done():
                    future.set_exception(error)
            self._waiting.clear()
