"""The receiver's server; what one transfer says to it, and a stream of its own that says it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import grpc
from google.protobuf.message import Message

from headway.adapters.kv_grpc.frames import HEADER_BYTES, PageFrame, decode
from headway.errors import KvTransferFailed
from headway.rpc.server import MAX_MESSAGE_BYTES, SERVER_OPTIONS
from headway.v1 import kv_transfer_service_pb2 as pb

# For how long nothing more has to come before the sender is told how much has.
_IDLE_S = 0.001

_SERVICE = pb.DESCRIPTOR.services_by_name["KvTransferService"]
_RECEIVE_LIMIT = "grpc.max_receive_message_length"
_MAX_STREAMS = 1024

Context = grpc.aio.ServicerContext[bytes, bytes]


async def listen(
    host: str, methods: Mapping[str, Callable[[Any, Context], Awaitable[None]]], page_bytes: int
) -> tuple[grpc.aio.Server, str]:
    """Serve these methods of the KvTransferService on a free port.

    Args:
        host: address to listen on.
        methods: by name; requests and responses are raw bytes: see `frames`.
        page_bytes: size of a page; a message may hold one.

    Returns:
        The server, and its `host:port`.

    Raises:
        RuntimeError: `host` cannot be bound.
    """
    max_message_bytes = max(MAX_MESSAGE_BYTES, page_bytes + HEADER_BYTES)
    server = grpc.aio.server(
        # Not appended: of two equal keys grpc takes the first.
        options=[*({**dict(SERVER_OPTIONS), _RECEIVE_LIMIT: max_message_bytes}).items()],
        maximum_concurrent_rpcs=_MAX_STREAMS,
    )
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.stream_stream_rpc_method_handler(method) for name, method in methods.items()
    }
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers)]
    )
    port = server.add_insecure_port(f"{host}:0")
    await server.start()
    return server, f"{host}:{port}"


class IncomingStream(Protocol):
    """One transfer. Used on the loop.

    Attributes:
        traceparent: W3C context that came with the transfer; empty if none.
    """

    traceparent: str

    async def read(self) -> pb.PushOpen | pb.PushCommit | PageFrame:
        """The next message; a frame's payload is valid until it is answered.

        Raises:
            KvTransferFailed: there is none, or it is no message.
        """

    async def has_more(self) -> bool:
        """Whether the next message is there, or comes very soon."""

    async def write(self, response: pb.PushResponse) -> None: ...


async def read_message(context: Context) -> bytes:
    """The next message of a stream.

    Raises:
        KvTransferFailed: the stream has ended.
    """
    message: Any = await context.read()
    if message is grpc.aio.EOF:
        raise KvTransferFailed("the sender ended the stream before the commit")
    assert isinstance(message, bytes)
    return message


async def write(context: Context, message: Message) -> None:
    """Answer on a stream."""
    # Shielded and waited for: gRPC cannot end a stream while a write is under way, so one
    # that is interrupted would leave the sender without an answer.
    writing = asyncio.ensure_future(context.write(message.SerializeToString()))
    try:
        await asyncio.shield(writing)
    finally:
        await asyncio.wait({writing})
        if not writing.cancelled():
            # Fetched, or asyncio complains: it says that the stream has ended, as we know.
            writing.exception()


class OwnIncoming:
    """Implements `IncomingStream`: a stream for this transfer alone, with the pages in it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._reading: asyncio.Task[bytes] | None = None
        metadata = dict(context.invocation_metadata() or ())
        self.traceparent = str(metadata.get("traceparent") or "")

    async def read(self) -> pb.PushOpen | pb.PushCommit | PageFrame:
        reading, self._reading = self._reading, None
        message = decode(await (reading or read_message(self._context)))
        if isinstance(message, PageFrame):
            # Fetched while this one's pages are checked and written.
            self._reading = asyncio.create_task(read_message(self._context))
        return message

    async def has_more(self) -> bool:
        assert self._reading is not None, "asked after a frame"
        done, _ = await asyncio.wait({self._reading}, timeout=_IDLE_S)
        return bool(done)

    async def write(self, response: pb.PushResponse) -> None:
        await write(self._context, response)

    def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
