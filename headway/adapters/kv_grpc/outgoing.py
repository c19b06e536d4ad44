"""One transfer out of this engine, from open to commit. Everything here runs on the loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc

from headway.adapters.kv_grpc.frames import (
    PageFrame,
    checksum_of_checksums,
    decode,
    without_blocks_before,
)
from headway.adapters.kv_grpc.layout import PageLayout
from headway.adapters.kv_grpc.tickets import DEFAULT_TTL_S
from headway.ports import KvTarget
from headway.v1 import kv_transfer_service_pb2 as pb

_LOG = logging.getLogger(__name__)

_METHOD = f"/{pb.DESCRIPTOR.services_by_name['KvTransferService'].full_name}/Push"

# What may be on its way to a receiver; it bounds what a slow one makes both sides hold.
WINDOW_BYTES = 32 << 20

_Call = grpc.aio.StreamStreamCall[bytes, bytes]


class StreamEnded(Exception):
    """The receiver closed the stream in good order but too early."""


class OutgoingTransfer:
    """Frames that wait, and the stream that takes them.

    Attributes:
        target: where to.
        num_sequences: frames gathered so far; counted by the engine's thread.
        accepted: whether the receiver lets pages come; none is sent before.
        first_block_wanted: blocks before it are not sent; 0 until the receiver has said more.
        num_bytes_acked: payload that the receiver has verified.
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
        self._frames: deque[tuple[bytes, int]] = deque()
        self._num_bytes_overlapped: int | None = None
        self._committed = False
        self._ended = False
        self._task: asyncio.Task[bool] | None = None
        # Two events, so that new frames do not pass for progress of a receiver that stalls.
        self._fed = asyncio.Event()
        self._progressed = asyncio.Event()

    def start(self, channel: grpc.aio.Channel) -> asyncio.Task[bool]:
        """Begin to send; the task says whether the transfer was committed, and never raises."""
        self._task = asyncio.create_task(self._run(channel))
        # Not in a finally of the task: one that is cancelled before its first step never runs.
        self._task.add_done_callback(self._drop_frames)
        return self._task

    def _drop_frames(self, _task: asyncio.Task[bool]) -> None:
        self._ended = True
        self._on_released(sum(num_pages for _, num_pages in self._frames))
        self._frames.clear()

    def add(self, message: bytes, num_pages: int) -> None:
        """One more frame to send, or to drop if the transfer is over."""
        if self._ended:
            self._on_released(num_pages)
            return
        self._frames.append((message, num_pages))
        self._fed.set()

    def prompt_computed(self, num_bytes_overlapped: int) -> None:
        """No more frames will come."""
        self._num_bytes_overlapped = num_bytes_overlapped
        self._fed.set()

    def cancel(self) -> None:
        assert self._task is not None, "a transfer starts before it is cancelled"
        self._task.cancel()

    async def _run(self, channel: grpc.aio.Channel) -> bool:
        try:
            await self._transfer(channel)
        except* grpc.aio.AioRpcError as group:
            for error in group.exceptions:
                assert isinstance(error, grpc.aio.AioRpcError)
                self._log_lost(f"{error.code().name}: {error.details()}")
        except* TimeoutError:
            self._log_lost(f"no progress for {self._stall_timeout_s:g} s")
        except* (StreamEnded, asyncio.InvalidStateError):
            self._log_lost("the receiver ended the stream")
        return self._committed

    def _log_lost(self, reason: str) -> None:
        _LOG.warning("KV transfer %s failed: %s", self.target.transfer_id, reason)

    async def _transfer(self, channel: grpc.aio.Channel) -> None:
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(_METHOD)
        metadata = [("traceparent", self._traceparent)] if self._traceparent else []
        call: _Call = stream(metadata=metadata)
        try:
            await self._open(call)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(call))
                group.create_task(self._send(call))
            # The receiver is about to end the stream: a cancel now would only disturb it.
            async with asyncio.timeout(self._stall_timeout_s):
                await call.code()
        finally:
            call.cancel()

    async def _open(self, call: _Call) -> None:
        opened = pb.PushOpen(
            transfer_id=self.target.transfer_id,
            ticket=self.target.ticket,
            layout_digest=self._layout.digest,
            num_blocks=self._num_blocks,
            num_layers=self._layout.num_layers,
            page_bytes=self._layout.page_bytes,
        )
        async with asyncio.timeout(self._stall_timeout_s):
            await call.write(pb.PushRequest(open=opened).SerializeToString())
        # Not a stall: the receiver accepts when its engine has room, or lets the ticket expire.
        async with asyncio.timeout(DEFAULT_TTL_S):
            response = await self._read(call)
        self.first_block_wanted = response.accepted.first_block
        self.accepted = True

    @staticmethod
    async def _read(call: _Call) -> pb.PushResponse:
        message: Any = await call.read()
        if message is grpc.aio.EOF:
            raise StreamEnded
        response: pb.PushResponse = pb.PushResponse.FromString(message)
        return response

    async def _receive(self, call: _Call) -> None:
        while not self._committed:
            response = await self._read(call)
            self.num_bytes_acked = max(self.num_bytes_acked, response.progress.num_bytes)
            self._committed = response.HasField("committed")
            self._progressed.set()

    async def _send(self, call: _Call) -> None:
        num_frames = num_bytes = crc32c = 0
        while await self._has_frame():
            message, num_pages = self._frames[0]
            wanted = without_blocks_before(message, self.first_block_wanted, self._layout)
            if wanted is not None:
                frame = decode(wanted)
                assert isinstance(frame, PageFrame)
                while 0 < num_bytes - self.num_bytes_acked > WINDOW_BYTES - frame.payload.nbytes:
                    await self._progress()
                async with asyncio.timeout(self._stall_timeout_s):
                    await call.write(wanted)
                num_frames += 1
                num_bytes += frame.payload.nbytes
                crc32c = checksum_of_checksums(frame.crc32c, crc32c)
            self._frames.popleft()
            self._on_released(num_pages)
        commit = pb.PushCommit(
            num_frames=num_frames,
            num_bytes=num_bytes,
            crc32c=crc32c,
            num_bytes_overlapped=self._num_bytes_overlapped or 0,
        )
        async with asyncio.timeout(self._stall_timeout_s):
            await call.write(pb.PushRequest(commit=commit).SerializeToString())
        while not self._committed:
            await self._progress()

    async def _has_frame(self) -> bool:
        """Wait for the engine; False when it has no more."""
        while not self._frames and self._num_bytes_overlapped is None:
            self._fed.clear()
            await self._fed.wait()
        return bool(self._frames)

    async def _progress(self) -> None:
        self._progressed.clear()
        async with asyncio.timeout(self._stall_timeout_s):
            await self._progressed.wait()
