"""One transfer out of this engine, from open to commit."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import grpc

from headway.adapters.kv_grpc.checksums import checksum_of_checksums
from headway.adapters.kv_grpc.frames import (
    WINDOW_BYTES,
    GatheredFrame,
    PageRange,
    gather_into,
    gather_message,
    without_blocks_before,
)
from headway.adapters.kv_grpc.layout import PageLayout
from headway.adapters.kv_grpc.segment import Slots
from headway.adapters.kv_grpc.tickets import DEFAULT_TTL_S
from headway.ports.engine import KvTarget
from headway.v1 import kv_transfer_service_pb2 as pb

_LOG = logging.getLogger(__name__)


class StreamEnded(Exception):
    """The receiver has ended the transfer."""


class Answers(Protocol):
    """Who hears what the receiver of a transfer says. Called on the loop."""

    def take(self, response: pb.PushResponse) -> None: ...

    def lost(self, reason: str) -> None:
        """The transfer has ended without commit."""


class Route(Protocol):
    """How one transfer's messages get to the receiver. Used on the loop, but for `take_slot`.

    `open`, `send`, `commit` and `finish` may raise AioRpcError, StreamEnded, and TimeoutError
    when the receiver has taken nothing for too long.
    """

    def take_slot(self, accepted: bool) -> tuple[int, Slots] | None:
        """A slot to put a frame into, and all slots; None if there is none now. Thread-safe.

        Args:
            accepted: whether the frame can be sent at once.
        """

    def release_slot(self, slot: int) -> None:
        """Of a frame that will not be sent."""

    async def open(self, opened: pb.PushOpen) -> None: ...

    async def send(self, frame: GatheredFrame) -> None: ...

    async def commit(self, commit: pb.PushCommit) -> None: ...

    async def finish(self) -> None:
        """Everything was said and answered: let the receiver end the transfer.

        It is about to, and to break it off would only disturb it.
        """

    def close(self) -> None:
        """End the transfer if it has not ended."""


class OutgoingTransfer:
    """Frames that wait, and the route they take. On the loop, where nothing else is said.

    Attributes:
        target: where to.
        num_sequences: frames gathered so far; counted by the engine's thread.
        accepted: whether the receiver lets pages come; none is sent before.
        first_block_wanted: blocks before it are not sent; 0 until the receiver has said more.
        num_bytes_acked: payload that the receiver has verified.
        route: set as soon as it is known.
    """

    def __init__(
        self,
        target: KvTarget,
        num_blocks: int,
        traceparent: str,
        layout: PageLayout,
        *,
        stall_timeout_s: float,
        on_released: Callable[[int], None],
    ) -> None:
        """Args: on_released: is told the number of pages that are not held any more."""
        self.target = target
        self.num_sequences = 0
        self.accepted = False
        self.first_block_wanted = 0
        self.num_bytes_acked = 0
        self._num_blocks = num_blocks
        self._traceparent = traceparent
        self._layout = layout
        self._stall_timeout_s = stall_timeout_s
        self._on_released = on_released
        self.route: Route | None = None
        self._frames: deque[GatheredFrame] = deque()
        # Messages gathered, by the engine's thread, and those that wait no more, by the loop.
        self._num_messages = 0
        self._num_messages_done = 0
        self._num_bytes_overlapped: int | None = None
        self._committed = False
        self._lost_reason: str | None = None
        self._ended = False
        self._task: asyncio.Task[bool] | None = None
        # Two events, so that new frames do not pass for progress of a receiver that stalls.
        self._fed = asyncio.Event()
        self._progressed = asyncio.Event()

    def gather(self, pages: PageRange, views: Sequence[memoryview]) -> GatheredFrame:
        """Copy one frame's pages out of the engine, in the engine's thread.

        Into shared memory if there is room, and no earlier frame waits for room there: it
        would wait for this one.
        """
        sequence = self.num_sequences
        self.num_sequences += 1
        is_next = self._num_messages == self._num_messages_done
        if is_next and self.route and (taken := self.route.take_slot(self.accepted)):
            slot, slots = taken
            return gather_into(slots[slot], slot, sequence, pages, views)
        self._num_messages += 1
        return gather_message(sequence, pages, views)

    def start(
        self, find_route: Callable[[OutgoingTransfer], Awaitable[Route]]
    ) -> asyncio.Task[bool]:
        """Begin to send; the task says whether the transfer was committed, and never raises."""
        self._task = asyncio.create_task(self._run(find_route))
        # Not in a finally of the task: one that is cancelled before its first step never runs.
        self._task.add_done_callback(self._drop_frames)
        return self._task

    def _drop_frames(self, _task: asyncio.Task[bool]) -> None:
        self._ended = True
        while self._frames:
            self._drop(self._frames.popleft())

    def _drop(self, frame: GatheredFrame) -> None:
        if frame.slot is not None and self.route is not None:
            self.route.release_slot(frame.slot)
        self._on_released(frame.frame.pages.num_pages)

    def add(self, frames: Sequence[GatheredFrame]) -> None:
        """More frames to send, or to drop if the transfer is over."""
        if self._ended:
            for frame in frames:
                self._drop(frame)
            return
        self._frames.extend(frames)
        self._fed.set()

    def prompt_computed(self, num_bytes_overlapped: int) -> None:
        """No more frames will come."""
        self._num_bytes_overlapped = num_bytes_overlapped
        self._fed.set()

    def cancel(self) -> None:
        assert self._task is not None, "a transfer starts before it is cancelled"
        self._task.cancel()

    def take(self, response: pb.PushResponse) -> None:
        """See `Answers`."""
        if response.HasField("accepted"):
            self.first_block_wanted = response.accepted.first_block
            # Last: from now on the engine's thread skips blocks and takes slots.
            self.accepted = True
        self.num_bytes_acked = max(self.num_bytes_acked, response.progress.num_bytes)
        self._committed = self._committed or response.HasField("committed")
        self._progressed.set()

    def lost(self, reason: str) -> None:
        """See `Answers`."""
        self._lost_reason = reason
        self._progressed.set()
        self._fed.set()

    async def _run(self, find_route: Callable[[OutgoingTransfer], Awaitable[Route]]) -> bool:
        try:
            if self.route is None:
                self.route = await find_route(self)
            await self._transfer(self.route)
        except grpc.aio.AioRpcError as error:
            self._log_lost(f"{error.code().name}: {error.details()}")
        except TimeoutError:
            self._log_lost(f"no progress for {self._stall_timeout_s:g} s")
        except StreamEnded as ended:
            self._log_lost(str(ended))
        except asyncio.InvalidStateError:
            self._log_lost("the receiver ended the stream")
        return self._committed

    def _log_lost(self, reason: str) -> None:
        _LOG.warning("KV transfer %s failed: %s", self.target.transfer_id, reason)

    async def _transfer(self, route: Route) -> None:
        opened = pb.PushOpen(
            transfer_id=self.target.transfer_id,
            ticket=self.target.ticket,
            layout_digest=self._layout.digest,
            num_blocks=self._num_blocks,
            num_layers=self._layout.num_layers,
            page_bytes=self._layout.page_bytes,
            traceparent=self._traceparent,
        )
        try:
            await route.open(opened)
            # Not a stall: the receiver accepts when its engine has room, or lets the ticket
            # expire.
            async with asyncio.timeout(DEFAULT_TTL_S):
                while not self.accepted:
                    await self._next(self._progressed)
            await self._send(route)
            await route.finish()
        finally:
            route.close()

    async def _send(self, route: Route) -> None:
        num_frames = num_bytes = crc32c = 0
        while await self._has_frame():
            gathered = self._frames[0]
            wanted = without_blocks_before(gathered, self.first_block_wanted, self._layout)
            if wanted is not None:
                frame_bytes = wanted.frame.payload.nbytes
                while 0 < num_bytes - self.num_bytes_acked > WINDOW_BYTES - frame_bytes:
                    await self._progress()
                await route.send(wanted)
                num_frames += 1
                num_bytes += frame_bytes
                crc32c = checksum_of_checksums(wanted.frame.crc32c, crc32c)
            self._frames.popleft()
            if gathered.slot is None:
                self._num_messages_done += 1
            elif wanted is not gathered:
                route.release_slot(gathered.slot)
            self._on_released(gathered.frame.pages.num_pages)
        commit = pb.PushCommit(
            num_frames=num_frames,
            num_bytes=num_bytes,
            crc32c=crc32c,
            num_bytes_overlapped=self._num_bytes_overlapped or 0,
        )
        await route.commit(commit)
        while not self._committed:
            await self._progress()

    async def _has_frame(self) -> bool:
        """Wait for the engine; False when it has no more."""
        while not self._frames and self._num_bytes_overlapped is None:
            await self._next(self._fed)
        return bool(self._frames)

    async def _progress(self) -> None:
        async with asyncio.timeout(self._stall_timeout_s):
            await self._next(self._progressed)

    async def _next(self, event: asyncio.Event) -> None:
        event.clear()
        if self._lost_reason is None:
            await event.wait()
        if self._lost_reason is not None and not self._committed:
            raise StreamEnded(self._lost_reason)
