"""The route over the network: one gRPC stream for each transfer, whose frames carry the pages."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from headway.adapters.kv_grpc.frames import GatheredFrame
from headway.adapters.kv_grpc.outgoing import Answers
from headway.adapters.kv_grpc.segment import Slots
from headway.v1 import kv_transfer_service_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["KvTransferService"].full_name


class OwnStream:
    """Implements `outgoing.Route`."""

    def __init__(self, channel: grpc.aio.Channel, answers: Answers, stall_timeout_s: float) -> None:
        self._channel = channel
        self._answers = answers
        self._stall_timeout_s = stall_timeout_s
        self._call: grpc.aio.StreamStreamCall[bytes, bytes] | None = None
        self._reading: asyncio.Task[None] | None = None

    def take_slot(self, accepted: bool) -> tuple[int, Slots] | None:  # noqa: ARG002
        return None

    def release_slot(self, slot: int) -> None:
        raise AssertionError(f"there is no slot {slot}")

    async def open(self, opened: pb.PushOpen) -> None:
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
        stream = self._channel.stream_stream(f"/{SERVICE}/Push")
        traceparent = opened.traceparent
        self._call = stream(metadata=[("traceparent", traceparent)] if traceparent else [])
        opened.ClearField("traceparent")
        await self._write(pb.PushRequest(open=opened).SerializeToString())
        self._reading = asyncio.create_task(self._read(self._call))

    async def _read(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        try:
            while True:
                message: Any = await call.read()
                if message is grpc.aio.EOF:
                    break
                self._answers.take(pb.PushResponse.FromString(message))
            self._answers.lost("the receiver ended the stream")
        except grpc.aio.AioRpcError as error:
            self._answers.lost(f"{error.code().name}: {error.details()}")

    async def send(self, frame: GatheredFrame) -> None:
        assert frame.message is not None
        await self._write(frame.message)

    async def commit(self, commit: pb.PushCommit) -> None:
        await self._write(pb.PushRequest(commit=commit).SerializeToString())

    async def _write(self, message: bytes) -> None:
        assert self._call is not None
        async with asyncio.timeout(self._stall_timeout_s):
            await self._call.write(message)

    async def finish(self) -> None:
        assert self._call is not None
        async with asyncio.timeout(self._stall_timeout_s):
            await self._call.code()

    def close(self) -> None:
        if self._call is not None:
            self._call.cancel()
        if self._reading is not None:
            self._reading.cancel()
