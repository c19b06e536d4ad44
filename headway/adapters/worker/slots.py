"""Which requests a worker holds, and how many more it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from headway.errors import FieldViolation, InvalidRequest, Refused, Unavailable

# Three wait in the engine's queue for each that may run. This only bounds memory: no promise
# survives a queue as long as that, so the controller never makes one.
_HELD_PER_RUNNING = 4


class Slots:
    """One place for each request. A worker that drains does so until its end.

    Attributes:
        prefills: whether prompts may be computed here.
    """

    def __init__(self, max_num_running: int, *, prefills: bool) -> None:
        self.prefills = prefills
        self._max_num_held = _HELD_PER_RUNNING * max_num_running
        self._held: set[str] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._draining = False

    @property
    def draining(self) -> bool:
        return self._draining

    def set_prefills(self, prefills: bool) -> None:
        """Say whether prompts may be computed here from now on."""
        self.prefills = prefills

    def drain(self) -> None:
        """Take nothing new from now on."""
        self._draining = True

    async def wait_empty(self) -> None:
        """Until no request is held."""
        await self._empty.wait()

    @contextmanager
    def hold(self, request_id: str) -> Iterator[None]:
        """Hold a place for as long as the block runs.

        Raises:
            Unavailable: the worker is draining.
            InvalidRequest: this very request is held already.
            Refused: the worker is full.
        """
        if self._draining:
            raise Unavailable("this worker is draining")
        if request_id in self._held:
            raise InvalidRequest([FieldViolation("request_id", "is running here already")])
        if len(self._held) >= self._max_num_held:
            raise Refused(
                "WORKER_FULL", f"{self._max_num_held} requests are here already", retry_after_s=1.0
            )
        self._held.add(request_id)
        self._empty.clear()
        try:
            yield
        finally:
            self._held.remove(request_id)
            if not self._held:
                self._empty.set()
