"""Receives KV pages straight into blocks that no request can see yet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc

from headway.adapters.kv_grpc.expected import ExpectedTransfers, TransferOutcome
from headway.adapters.kv_grpc.frames import HEADER_BYTES, PageFrame, decode
from headway.adapters.kv_grpc.incoming import IncomingTransfer
from headway.adapters.kv_grpc.layout import PageLayout, PageStore, StagedPageCounters
from headway.adapters.kv_grpc.loop_thread import LoopThread
from headway.errors import (
    DeadlineExceeded,
    HeadwayError,
    KvTransferFailed,
    LayoutMismatch,
    Refused,
    RequestCancelled,
)
from headway.rpc.errors import domain_errors
from headway.rpc.server import MAX_MESSAGE_BYTES, SERVER_OPTIONS
from headway.v1 import kv_transfer_service_pb2 as pb

__all__ = ["KvReceiver", "TransferOutcome"]

_SERVICE = pb.DESCRIPTOR.services_by_name["KvTransferService"]

_RECEIVE_LIMIT = "grpc.max_receive_message_length"
_MAX_STREAMS = 1024

# Streams that show no ticket must not stay.
_OPEN_TIMEOUT_S = 5.0

# Progress is told when so much has come or when nothing more comes, whichever is first: an
# answer to every frame costs a tenth of the throughput.
_ACK_EVERY_BYTES = 4 << 20
_ACK_WITHIN_S = 0.001

# Request and response are raw bytes: see frames.
_Context = grpc.aio.ServicerContext[bytes, bytes]


class KvReceiver:
    """The receiving side; lives in the decode engine's process. Listens from construction on.

    All methods are thread-safe and none waits for the network.
    """

    def __init__(
        self,
        host: str,
        layout: PageLayout,
        store: PageStore,
        secret: bytes,
        *,
        max_waiting: int = 256,
    ) -> None:
        """Listen on a free port.

        Args:
            host: address to listen on.
            layout: of our pages; a sender must have the same.
            store: where the pages go.
            secret: shared with the `TicketMint` of this worker.
            max_waiting: streams that may wait for their transfer to be expected.

        Raises:
            RuntimeError: `host` cannot be bound.
        """
        self._layout = layout
        self._max_waiting = max_waiting
        self._expected = ExpectedTransfers(store, secret)
        self._closed = False
        # Touched on the loop only.
        self._waiting: dict[str, asyncio.Event] = {}
        self._streams: dict[str, asyncio.Timeout] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._thread = LoopThread("kv-receiver")
        self._server, self._address = self._thread.wait_for(self._listen(host))

    async def _listen(self, host: str) -> tuple[grpc.aio.Server, str]:
        max_message_bytes = max(MAX_MESSAGE_BYTES, self._layout.page_bytes + HEADER_BYTES)
        server = grpc.aio.server(
            # Not appended: of two equal keys grpc takes the first.
            options=[*({**dict(SERVER_OPTIONS), _RECEIVE_LIMIT: max_message_bytes}).items()],
            maximum_concurrent_rpcs=_MAX_STREAMS,
        )
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(
            self._push
        )
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(_SERVICE.full_name, {"Push": handler})]
        )
        port = server.add_insecure_port(f"{host}:0")
        await server.start()
        return server, f"{host}:{port}"

    @property
    def address(self) -> str:
        """`host:port` for `KvTarget.address`."""
        return self._address

    def expect(
        self, transfer_id: str, block_ids: Sequence[int], first_block: int, timeout_s: float
    ) -> None:
        """The engine has allocated blocks: let the pages come.

        Args:
            transfer_id: as minted.
            block_ids: the engine's ids of all the request's blocks that hold prompt tokens,
                in order; the sender must announce exactly as many.
            first_block: blocks before it are reused from the prefix cache and never written.
            timeout_s: the transfer fails unless it is complete by then.
        """
        transfer = IncomingTransfer(transfer_id, self._layout, block_ids, first_block)
        self._expected.add(transfer)
        self._thread.call_soon(self._on_expected, transfer, timeout_s)

    def abort(self, transfer_id: str) -> bool:
        """Forget a transfer, expected or not; it gets no outcome.

        After the return nothing is written to its blocks any more.

        Returns:
            Whether it was expected and had not ended.
        """
        was_running = self._expected.abort(transfer_id)
        self._thread.call_soon(self._stop_stream, transfer_id)
        return was_running

    def poll(self) -> list[TransferOutcome]:
        """Expected transfers that were committed or failed since the last call, each once.

        Nothing is written to the blocks of a transfer once its outcome was returned.
        """
        return self._expected.poll()

    def counters(self) -> StagedPageCounters:
        """Pages written, and pages committed or given up."""
        return self._expected.counters()

    def close(self) -> None:
        """Drop all transfers, stop listening and end the thread."""
        if self._closed:
            return
        self._closed = True
        self._expected.abort_all()
        self._thread.wait_for(self._server.stop(None))
        self._thread.close()

    # Below: on the loop.

    def _on_expected(self, transfer: IncomingTransfer, timeout_s: float) -> None:
        transfer_id = transfer.transfer_id
        if self._expected.get(transfer_id) is not transfer:
            return
        self._timers[transfer_id] = self._thread.loop.call_later(
            timeout_s, self._time_out, transfer_id, f"not complete within {timeout_s:g} s"
        )
        if event := self._waiting.get(transfer_id):
            event.set()

    def _time_out(self, transfer_id: str, error: str) -> None:
        self._expected.fail(transfer_id, error)
        self._stop_stream(transfer_id)

    def _stop_stream(self, transfer_id: str) -> None:
        self._cancel_timer(transfer_id)
        if stream := self._streams.get(transfer_id):
            stream.reschedule(self._thread.loop.time())

    def _cancel_timer(self, transfer_id: str) -> None:
        if timer := self._timers.pop(transfer_id, None):
            timer.cancel()

    async def _push(self, _requests: object, context: _Context) -> None:
        async with domain_errors(context):
            try:
                async with asyncio.timeout(_OPEN_TIMEOUT_S):
                    opened = decode(await self._read(context))
            except TimeoutError:
                raise DeadlineExceeded("the stream does not start with open") from None
            if not isinstance(opened, pb.PushOpen):
                raise KvTransferFailed("the stream does not start with open")
            valid_s = self._expected.redeem(opened.transfer_id, opened.ticket)
            await self._receive(opened, valid_s, context)

    async def _receive(self, opened: pb.PushOpen, valid_s: float, context: _Context) -> None:
        """Everything after the ticket was accepted; on every way out the transfer has ended."""
        transfer_id = opened.transfer_id
        error = "the stream broke off before the commit"
        given_up = False
        transfer: IncomingTransfer | None = None
        try:
            async with asyncio.timeout(None) as stream:
                self._streams[transfer_id] = stream
                self._check_layout(opened)
                transfer = await self._until_expected(transfer_id, valid_s)
                transfer.check_announced(opened.num_blocks)
                accepted = pb.PushAccepted(first_block=transfer.first_block)
                await self._write(context, pb.PushResponse(accepted=accepted))
                await self._receive_pages(transfer, context)
        except TimeoutError:
            # Only _stop_stream gives this timeout a deadline.
            given_up = True
            error = "the decode worker has given the transfer up"
            raise RequestCancelled(error) from None
        except HeadwayError as failed:
            error = str(failed)
            raise
        finally:
            del self._streams[transfer_id]
            if transfer is None and not given_up:
                self._expected.sender_left(transfer_id, error)
            self._expected.fail(transfer_id, error)
            self._cancel_timer(transfer_id)

    def _check_layout(self, opened: pb.PushOpen) -> None:
        ours = self._layout
        theirs = (opened.num_layers, opened.page_bytes, opened.layout_digest)
        if theirs != (ours.num_layers, ours.page_bytes, ours.digest):
            raise LayoutMismatch("the two engines' KV pages differ")

    async def _until_expected(self, transfer_id: str, valid_s: float) -> IncomingTransfer:
        if len(self._waiting) >= self._max_waiting:
            raise Refused("KV_STREAMS", "too many transfers wait for blocks", retry_after_s=1.0)
        event = self._waiting[transfer_id] = asyncio.Event()
        try:
            async with asyncio.timeout(valid_s):
                while True:
                    transfer = self._expected.get(transfer_id)
                    if transfer is not None:
                        return transfer
                    await event.wait()
        except TimeoutError:
            raise DeadlineExceeded("the ticket expired before blocks were allocated") from None
        finally:
            del self._waiting[transfer_id]

    async def _receive_pages(self, transfer: IncomingTransfer, context: _Context) -> None:
        # The next message is fetched while this one's pages are checked and written.
        reading = asyncio.create_task(self._read(context))
        num_bytes_acked = 0
        try:
            while True:
                match decode(await reading):
                    case PageFrame() as frame:
                        reading = asyncio.create_task(self._read(context))
                        transfer.verify(frame)
                        self._expected.write(transfer, frame)
                    case pb.PushCommit() as commit:
                        traceparent = dict(context.invocation_metadata() or ()).get("traceparent")
                        record = transfer.commit(commit, str(traceparent or ""))
                        self._expected.commit(transfer, record)
                        committed = pb.PushResponse(committed=pb.PushCommitted())
                        await self._write(context, committed)
                        return
                    case _:
                        raise KvTransferFailed("open came twice")
                num_bytes = transfer.num_bytes
                if num_bytes - num_bytes_acked < _ACK_EVERY_BYTES:
                    done, _ = await asyncio.wait({reading}, timeout=_ACK_WITHIN_S)
                    if done:
                        continue
                progress = pb.PushProgress(num_bytes=num_bytes)
                await self._write(context, pb.PushResponse(progress=progress))
                num_bytes_acked = num_bytes
        finally:
            reading.cancel()

    @staticmethod
    async def _read(context: _Context) -> bytes:
        message: Any = await context.read()
        if message is grpc.aio.EOF:
            raise KvTransferFailed("the sender ended the stream before the commit")
        assert isinstance(message, bytes)
        return message

    @staticmethod
    async def _write(context: _Context, response: pb.PushResponse) -> None:
        # Shielded and waited for: gRPC cannot end a stream while a write is under way, so one
        # that is interrupted would leave the sender without an answer.
        writing = asyncio.ensure_future(context.write(response.SerializeToString()))
        try:
            await asyncio.shield(writing)
        finally:
            await asyncio.wait({writing})
            if not writing.cancelled():
                # Fetched, or asyncio complains: it says that the stream has ended, as we know.
                writing.exception()
