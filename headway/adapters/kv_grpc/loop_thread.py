"""An event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

ResultT = TypeVar("ResultT")


class LoopThread:
    """Runs an event loop until `close`; the other methods may be called from any thread."""

    def __init__(self, name: str) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def wait_for(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run a coroutine on the loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """Have the loop call it; does nothing once the loop was closed."""
        try:
            self.loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            # Whoever closed the loop has released everything the callback could have released.
            assert self.loop.is_closed()

    def close(self) -> None:
        """Stop the loop and wait for the thread."""
        self.call_soon(self.loop.stop)
        self._thread.join()
