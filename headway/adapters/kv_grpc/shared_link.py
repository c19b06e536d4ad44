"""The route on one host: one stream for all transfers, whose pages go through shared memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc

from headway.adapters.kv_grpc.frames import GatheredFrame
from headway.adapters.kv_grpc.free_slots import FreeSlots
from headway.adapters.kv_grpc.outgoing import Answers, StreamEnded
from headway.adapters.kv_grpc.own_stream import SERVICE
from headway.adapters.kv_grpc.segment import Slots, map_offered
from headway.ports.engine import KvTarget
from headway.v1 import kv_transfer_service_pb2 as pb

# A message costs more than the copy of a frame. While so many frames lie before the receiver
# that it will not be idle soon, messages may wait to become larger ones.
_STEPS_PER_MESSAGE = 4
_STEP_WAITS_S = 0.0005
_MANY_FRAMES = 8
_STEPS_PER_LARGE_MESSAGE = 8
# It answers when it has nothing left to do, and that ends the wait sooner.
_STEP_WAITS_LONG_S = 0.002

_Call = grpc.aio.StreamStreamCall[bytes, bytes]


class SharedLink:
    """The stream to one receiver, and its memory. Everything runs on the loop.

    Attributes:
        slots: the receiver's memory; empty when the link has ended.
        free: which of them hold no frame.
        num_unanswered: frames of all transfers that the receiver has not answered, whether or
            not they were sent.
    """

    def __init__(self, call: _Call, slots: Slots, on_ended: Callable[[], None]) -> None:
        self.slots = slots
        self.free = FreeSlots(len(slots))
        self.num_unanswered = 0
        self.ended = False
        self._call = call
        self._on_ended = on_ended
        self._pushes: dict[int, SharedPush] = {}
        self._num_opened = 0
        self._steps: list[pb.SharedStep] = []
        self._num_frames_kept = 0
        self._has_steps = asyncio.Event()
        self._call_later = asyncio.get_running_loop().call_later
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]

    @classmethod
    async def dial(
        cls, channel: grpc.aio.Channel, target: KvTarget, on_ended: Callable[[], None]
    ) -> SharedLink | None:
        """Ask for shared memory; None if the receiver has none for us or we cannot map it.

        Args:
            channel: to the receiver.
            target: a transfer whose ticket has not been used.
            on_ended: called once, when the link can carry nothing any more.

        Raises:
            AioRpcError: the receiver cannot be reached, or refuses the ticket.
        """
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
        stream = channel.stream_stream(f"/{SERVICE}/PushShared")
        call: _Call = stream()
        slots = None
        try:
            hello = pb.SharedHello(transfer_id=target.transfer_id, ticket=target.ticket)
            await call.write(pb.PushSharedRequest(hello=hello).SerializeToString())
            message: Any = await call.read()
            if message is not grpc.aio.EOF:
                slots = map_offered(pb.PushSharedResponse.FromString(message).segment)
        except grpc.aio.AioRpcError as error:
            # A receiver that is older than this way.
            if error.code() != grpc.StatusCode.UNIMPLEMENTED:
                raise
        finally:
            if slots is None:
                call.cancel()
        return None if slots is None else cls(call, slots, on_ended)

    def add(self, push: SharedPush) -> int:
        """A new transfer; returns its number."""
        if self.ended:
            raise StreamEnded("the receiver ended the stream")
        self._num_opened += 1
        self._pushes[self._num_opened] = push
        return self._num_opened

    def say(self, step: pb.SharedStep) -> None:
        """Send a step, together with those that come with it.

        None waits long, and only a frame waits while the receiver has little to do.
        """
        self._steps.append(step)
        is_frame = step.HasField("frame")
        self._num_frames_kept += is_frame
        if self._is_receiver_busy():
            is_due = len(self._steps) >= _STEPS_PER_LARGE_MESSAGE
            wait_s = _STEP_WAITS_LONG_S
        else:
            is_due = not is_frame or len(self._steps) >= _STEPS_PER_MESSAGE
            wait_s = _STEP_WAITS_S
        if is_due:
            self._has_steps.set()
        elif len(self._steps) == 1:
            self._call_later(wait_s, self._has_steps.set)

    def _is_receiver_busy(self) -> bool:
        return self.num_unanswered - self._num_frames_kept >= _MANY_FRAMES

    async def _write(self) -> None:
        try:
            while True:
                await self._has_steps.wait()
                self._has_steps.clear()
                steps, self._steps = self._steps, []
                self._num_frames_kept = 0
                if not steps:
                    continue
                await self._call.write(pb.PushSharedRequest(steps=steps).SerializeToString())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The reader hears why.
            return

    async def _read(self) -> None:
        reason = "the receiver ended the stream"
        try:
            while True:
                message: Any = await self._call.read()
                if message is grpc.aio.EOF:
                    break
                for result in pb.PushSharedResponse.FromString(message).results:
                    self._take(result)
                if not self._is_receiver_busy():
                    self._has_steps.set()
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
        finally:
            self._end(reason)

    def _take(self, result: pb.SharedResult) -> None:
        push = self._pushes.get(result.transfer_number)
        if push is None:
            return
        if result.HasField("failed") or result.response.HasField("committed"):
            del self._pushes[result.transfer_number]
        push.take(result)

    def _end(self, reason: str) -> None:
        was_closed, self.ended = self.ended, True
        pushes, self._pushes = self._pushes, {}
        for push in pushes.values():
            push.lost(reason)
        self.free.end(StreamEnded(reason))
        self.slots = []
        if not was_closed:
            self._on_ended()

    def close(self) -> None:
        """End the stream; nobody sends any more."""
        self.ended = True
        self._call.cancel()
        for task in self._tasks:
            task.cancel()


class SharedPush:
    """Implements `outgoing.Route`: one transfer of a link."""

    def __init__(self, link: SharedLink, answers: Answers, stall_timeout_s: float) -> None:
        self._link = link
        self._answers: Answers | None = answers
        self._stall_timeout_s = stall_timeout_s
        self._number = 0
        self._is_over = True
        self._num_bytes = 0
        # Slots of frames that were sent, with the number of bytes up to the end of each.
        self._sent: deque[tuple[int, int]] = deque()

    def take_slot(self, accepted: bool) -> tuple[int, Slots] | None:
        slots = self._link.slots
        # Some are kept for transfers that are accepted, so that others never hold them up. Not
        # more: what finds no slot is copied twice.
        slot = self._link.free.take(0 if accepted else len(slots) // 4) if slots else None
        return None if slot is None else (slot, slots)

    def release_slot(self, slot: int) -> None:
        self._link.free.release(slot)

    async def open(self, opened: pb.PushOpen) -> None:
        self._number = self._link.add(self)
        self._is_over = False
        self._link.say(pb.SharedStep(transfer_number=self._number, open=opened))

    async def send(self, frame: GatheredFrame) -> None:
        if self._is_over:
            raise StreamEnded("the receiver ended the transfer")
        payload = frame.frame.payload
        slot = await self._put(payload) if frame.slot is None else frame.slot
        self._num_bytes += payload.nbytes
        self._sent.append((slot, self._num_bytes))
        self._link.num_unanswered += 1
        pages = frame.frame.pages
        shared = pb.SharedFrame(
            slot=slot,
            sequence=frame.frame.sequence,
            first_layer=pages.first_layer,
            num_layers=pages.num_layers,
            first_block=pages.first_block,
            num_blocks=pages.num_blocks,
            crc32c=frame.frame.crc32c,
        )
        self._link.say(pb.SharedStep(transfer_number=self._number, frame=shared))

    async def _put(self, payload: memoryview) -> int:
        """Copy into a slot, as soon as there is one."""
        slot = self._link.free.take()
        if slot is None:
            async with asyncio.timeout(self._stall_timeout_s):
                slot = await self._link.free.wait()
            if self._is_over:
                self._link.free.release(slot)
                raise StreamEnded("the receiver ended the transfer")
        self._link.slots[slot][: payload.nbytes] = payload
        return slot

    async def commit(self, commit: pb.PushCommit) -> None:
        self._link.say(pb.SharedStep(transfer_number=self._number, commit=commit))

    async def finish(self) -> None:
        """Nothing: committed is the last that the receiver says."""

    def close(self) -> None:
        self._answers = None
        if not self._is_over:
            # The slots are free once the receiver has answered: it may be reading one now.
            self._link.say(pb.SharedStep(transfer_number=self._number, abort=pb.SharedAbort()))

    def take(self, result: pb.SharedResult) -> None:
        """What the receiver says of this transfer."""
        self._is_over = result.HasField("failed") or result.response.HasField("committed")
        num_bytes = result.response.progress.num_bytes
        while self._sent and (self._is_over or self._sent[0][1] <= num_bytes):
            self._link.free.release(self._sent.popleft()[0])
            self._link.num_unanswered -= 1
        if self._answers is None:
            return
        if result.HasField("failed"):
            self._answers.lost(f"{_code_name(result.failed.code)}: {result.failed.message}")
        else:
            self._answers.take(result.response)

    def lost(self, reason: str) -> None:
        """The link has ended."""
        self._is_over = True
        if self._answers is not None:
            self._answers.lost(reason)


def _code_name(number: int) -> str:
    names = {code.value[0]: code.name for code in grpc.StatusCode}
    return names.get(number, str(number))
