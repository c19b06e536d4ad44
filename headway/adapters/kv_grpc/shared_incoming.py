"""A stream of one sender on this host, whose pages come through shared memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from headway.adapters.kv_grpc.frames import PageFrame, PageRange
from headway.adapters.kv_grpc.incoming_stream import Context, IncomingStream, read_message, write
from headway.adapters.kv_grpc.layout import PageLayout
from headway.adapters.kv_grpc.segment import OfferedSegment
from headway.errors import HeadwayError, KvTransferFailed
from headway.rpc.errors import to_status
from headway.v1 import kv_transfer_service_pb2 as pb

# A sender has no more transfers at once than requests that its engine computes.
_MAX_TRANSFERS = 1024
# Of the slots; so many are worth a message while there is other work.
_FREED_RATIO = 0.25
# Version 00 has 55; it goes into the record of the transfer.
_MAX_TRACEPARENT_CHARACTERS = 256

Receive = Callable[[pb.PushOpen, IncomingStream], Awaitable[None]]


async def read_hello(context: Context) -> pb.SharedHello:
    """The first message of a stream.

    Raises:
        KvTransferFailed: there is none, or another one.
    """
    request = _parse(await read_message(context))
    if not request.HasField("hello") or request.steps:
        raise KvTransferFailed("the stream does not start with hello")
    return request.hello


def _parse(message: bytes) -> pb.PushSharedRequest:
    try:
        return pb.PushSharedRequest.FromString(message)
    except DecodeError as error:
        raise KvTransferFailed("the stream holds something that is no PushSharedRequest") from error


class SharedIncoming:
    """Hands each step of the stream to its transfer, and sends what those answer."""

    def __init__(
        self, context: Context, segment: OfferedSegment, layout: PageLayout, receive: Receive
    ) -> None:
        """Args: receive: runs one transfer from its open on; raises HeadwayError if it fails."""
        self._context = context
        self._segment = segment
        self._layout = layout
        self._receive = receive
        self._transfers: dict[int, _Transfer] = {}
        self._last_number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._results: list[pb.SharedResult] = []
        self._has_results = asyncio.Event()
        self.num_frames_waiting = 0
        # Frames that were handed to their transfers since answers were last sent.
        self._num_frames_taken = 0

    async def run(self) -> None:
        """Until the sender ends the stream, or breaks its rules.

        Raises:
            KvTransferFailed: it has broken them.
        """
        writing = asyncio.create_task(self._write())
        try:
            await write(self._context, pb.PushSharedResponse(segment=self._segment.offer))
            while True:
                message: Any = await self._context.read()
                if message is grpc.aio.EOF:
                    return
                for step in _parse(message).steps:
                    self._take(step)
        finally:
            writing.cancel()
            # Not awaited, because gRPC may cancel us a second time.
            for transfer in self._transfers.values():
                transfer.abort()

    async def end(self) -> None:
        """Tell the sender that the receiver closes; `run` then ends."""
        # Raises to say that it did, or that the sender was faster.
        with suppress(grpc.aio.BaseError):
            await self._context.abort(grpc.StatusCode.UNAVAILABLE, "the receiver closes")

    def _take(self, step: pb.SharedStep) -> None:
        number = step.transfer_number
        if step.HasField("open"):
            self._open(number, step.open)
            return
        if number > self._last_number:
            raise KvTransferFailed(f"transfer {number} was not opened")
        # A transfer that has failed here may have been going on there.
        if transfer := self._transfers.get(number):
            if step.HasField("abort"):
                transfer.abort()
            else:
                transfer.feed(step)
                if self.num_frames_waiting > len(self._segment.slots):
                    raise KvTransferFailed("more frames than slots")

    def _open(self, number: int, opened: pb.PushOpen) -> None:
        if number <= self._last_number or len(self._transfers) >= _MAX_TRANSFERS:
            raise KvTransferFailed(f"transfer {number} must not be opened")
        self._last_number = number
        transfer = self._transfers[number] = _Transfer(
            self, number, opened.traceparent[:_MAX_TRACEPARENT_CHARACTERS]
        )
        task = asyncio.create_task(self._run(transfer, opened))
        # Later: a task that is cancelled before its first step never runs, and nobody would
        # hear of its end.
        transfer.abort = partial(asyncio.get_running_loop().call_soon, task.cancel)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, transfer: _Transfer, opened: pb.PushOpen) -> None:
        failed = pb.SharedFailure(code=grpc.StatusCode.CANCELLED.value[0])
        committed = False
        try:
            await self._receive(opened, transfer)
            committed = True
        except HeadwayError as error:
            status = to_status(error)
            failed = pb.SharedFailure(code=status.code, message=status.message)
        finally:
            del self._transfers[transfer.number]
            self.num_frames_waiting -= transfer.num_frames_waiting
            if not committed:
                self.answer(pb.SharedResult(transfer_number=transfer.number, failed=failed))

    @property
    def must_write(self) -> bool:
        """Whether answers are to be sent now."""
        return self._has_results.is_set()

    def answer(self, result: pb.SharedResult) -> None:
        """Send it, together with others.

        While frames wait, which will be answered too, only those answers are sent at once that
        let a sender begin, or give it back a good part of its slots.
        """
        self._results.append(result)
        lets_begin = result.response.HasField("accepted")
        frees_many = self._num_frames_taken >= len(self._segment.slots) * _FREED_RATIO
        if lets_begin or frees_many or not self.num_frames_waiting:
            self._has_results.set()

    async def _write(self) -> None:
        while True:
            await self._has_results.wait()
            self._has_results.clear()
            results, self._results = self._results, []
            self._num_frames_taken = 0
            await write(self._context, pb.PushSharedResponse(results=results))

    def in_slot(self, shared: pb.SharedFrame) -> PageFrame:
        """A frame whose payload lies where the sender may still write.

        Raises:
            KvTransferFailed: it is not in a slot.
        """
        pages = PageRange(
            shared.first_layer, shared.num_layers, shared.first_block, shared.num_blocks
        )
        num_bytes = pages.num_pages * self._layout.page_bytes
        slots = self._segment.slots
        if shared.slot >= len(slots) or num_bytes > slots[shared.slot].nbytes:
            raise KvTransferFailed(f"{pages} is not in slot {shared.slot}")
        payload = slots[shared.slot][:num_bytes]
        self._num_frames_taken += 1
        return PageFrame(shared.sequence, pages, shared.crc32c, payload)


class _Transfer:
    """Implements `IncomingStream`: one transfer of the stream."""

    def __init__(self, stream: SharedIncoming, number: int, traceparent: str) -> None:
        self.number = number
        self.traceparent = traceparent
        self.num_frames_waiting = 0
        self.abort: Callable[[], object] = lambda: None
        self._stream = stream
        self._steps: deque[pb.SharedStep] = deque()
        self._fed = asyncio.Event()

    def feed(self, step: pb.SharedStep) -> None:
        self._count(step, 1)
        self._steps.append(step)
        self._fed.set()

    def _count(self, step: pb.SharedStep, change: int) -> None:
        if step.HasField("frame"):
            self.num_frames_waiting += change
            self._stream.num_frames_waiting += change

    async def read(self) -> pb.PushOpen | pb.PushCommit | PageFrame:
        while not self._steps:
            self._fed.clear()
            await self._fed.wait()
        step = self._steps.popleft()
        self._count(step, -1)
        match step.WhichOneof("step"):
            case "frame":
                return self._stream.in_slot(step.frame)
            case "commit":
                return step.commit
            case _:
                raise KvTransferFailed("a SharedStep is one of open, frame, commit and abort")

    async def has_more(self) -> bool:
        if self._stream.must_write:
            # Slots that are free again are worth more to the sender than this frame.
            await asyncio.sleep(0)
        return bool(self._steps)

    async def write(self, response: pb.PushResponse) -> None:
        self._stream.answer(pb.SharedResult(transfer_number=self.number, response=response))
