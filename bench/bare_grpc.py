"""grpcio and nothing else: messages through a stream, unread, for bench/kv_transfer.py.

What this takes no transport over grpcio can save, so it says how much of the distance to a
plain socket is ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc

from headway.adapters.kv_grpc.loop_thread import LoopThread
from headway.rpc.server import CHANNEL_OPTIONS, SERVER_OPTIONS

_SERVICE, _METHOD = "bench.Bare", "Push"
_Context = grpc.aio.ServicerContext[bytes, bytes]


class BareReceiver:
    """Reads each stream to its end, then answers."""

    def __init__(self) -> None:
        self._thread = LoopThread("bare-receiver")
        self._server, self.port = self._thread.wait_for(self._listen())

    async def _listen(self) -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_unary_rpc_method_handler(
            self._push
        )
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler})]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    @staticmethod
    async def _push(_messages: object, context: _Context) -> bytes:
        while True:
            message: Any = await context.read()
            if message is grpc.aio.EOF:
                return str(time.time_ns()).encode()

    def close(self) -> None:
        self._thread.wait_for(self._server.stop(None))
        self._thread.close()


class BareSender:
    """Sends ready-made messages over one connection, one stream for each sequence of them."""

    def __init__(self, port: int) -> None:
        self._thread = LoopThread("bare-sender")
        self._channel = self._thread.wait_for(self._dial(port))

    @staticmethod
    async def _dial(port: int) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS)

    def send(self, transfers: Sequence[Sequence[bytes]]) -> int:
        """Nanoseconds from the start until the last stream was read to its end."""
        started_ns = time.time_ns()
        return self._thread.wait_for(self._send_all(transfers)) - started_ns

    async def _send_all(self, transfers: Sequence[Sequence[bytes]]) -> int:
        return max(await asyncio.gather(*map(self._send_one, transfers)))

    async def _send_one(self, messages: Sequence[bytes]) -> int:
        stream: Any = self._channel.stream_unary(f"/{_SERVICE}/{_METHOD}")
        call = stream()
        for message in messages:
            await call.write(message)
        await call.done_writing()
        return int(await call)

    def close(self) -> None:
        self._thread.wait_for(self._channel.close())
        self._thread.close()
