"""Receives KV pages straight into blocks that no request can see yet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from headway.adapters.kv_grpc.expected import ExpectedTransfers, TransferOutcome
from headway.adapters.kv_grpc.frames import PageFrame
from headway.adapters.kv_grpc.incoming import IncomingTransfer
from headway.adapters.kv_grpc.incoming_stream import (
    Context,
    IncomingStream,
    OwnIncoming,
    listen,
)
from headway.adapters.kv_grpc.layout import PageLayout, PageStore, StagedPageCounters
from headway.adapters.kv_grpc.loop_thread import LoopThread
from headway.adapters.kv_grpc.shared_incoming import read_hello
from headway.adapters.kv_grpc.shared_offers import SharedOffers
from headway.errors import (
    DeadlineExceeded,
    HeadwayError,
    KvTransferFailed,
    LayoutMismatch,
    Refused,
    RequestCancelled,
)
from headway.rpc.errors import domain_errors
from headway.v1 import kv_transfer_service_pb2 as pb

__all__ = ["KvReceiver", "TransferOutcome"]

# Streams that show no ticket must not stay.
_OPEN_TIMEOUT_S = 5.0

# Progress is told when so much has come or nothing more comes, whichever is first: over the
# network an answer to every frame costs a tenth of the throughput.
_ACK_EVERY_BYTES = 4 << 20

MessageT = TypeVar("MessageT")


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
        shares_memory: bool = True,
    ) -> None:
        """Listen on a free port.

        Args:
            host: address to listen on.
            layout: of our pages; a sender must have the same.
            store: where the pages go.
            secret: shared with the `TicketMint` of this worker.
            max_waiting: transfers that may be open and wait to be expected.
            shares_memory: offer shared memory to senders of this host.

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
        self._offers = SharedOffers(layout, self._receive, shares_memory=shares_memory)
        self._thread = LoopThread("kv-receiver")
        methods = {"Push": self._push, "PushShared": self._push_shared}
        self._server, self._address = self._thread.wait_for(
            listen(host, methods, layout.page_bytes)
        )

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
        self._thread.wait_for(self._stop_listening())
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

    async def _stop_listening(self) -> None:
        await self._offers.end_all()
        await self._server.stop(None)

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

    async def _push(self, _requests: object, context: Context) -> None:
        async with domain_errors(context):
            stream = OwnIncoming(context)
            try:
                opened = await self._first(stream.read())
                if not isinstance(opened, pb.PushOpen):
                    raise KvTransferFailed("the stream does not start with open")
                await self._receive(opened, stream)
            finally:
                stream.close()

    async def _push_shared(self, _requests: object, context: Context) -> None:
        async with domain_errors(context):
            hello = await self._first(read_hello(context))
            self._expected.check_ticket(hello.transfer_id, hello.ticket)
            await self._offers.serve(hello.transfer_id, context)

    @staticmethod
    async def _first(reading: Awaitable[MessageT]) -> MessageT:
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                return await reading
        except TimeoutError:
            raise DeadlineExceeded("the stream does not start with open") from None

    async def _receive(self, opened: pb.PushOpen, stream: IncomingStream) -> None:
        """One transfer from its open on; on every way out it has ended.

        Raises:
            HeadwayError: it has failed, for that reason.
        """
        transfer_id = opened.transfer_id
        valid_s = self._expected.redeem(transfer_id, opened.ticket)
        error = "the stream broke off before the commit"
        given_up = False
        transfer: IncomingTransfer | None = None
        try:
            async with asyncio.timeout(None) as timeout:
                self._streams[transfer_id] = timeout
                self._check_layout(opened)
                transfer = await self._until_expected(transfer_id, valid_s)
                transfer.check_announced(opened.num_blocks)
                accepted = pb.PushAccepted(first_block=transfer.first_block)
                await stream.write(pb.PushResponse(accepted=accepted))
                await self._receive_pages(transfer, stream)
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

    async def _receive_pages(self, transfer: IncomingTransfer, stream: IncomingStream) -> None:
        num_bytes_acked = 0
        while True:
            match await stream.read():
                case PageFrame() as frame:
                    # Let go of at once: a view that an error kept would keep a whole segment.
                    with frame.payload:
                        transfer.check(frame)
                        self._expected.write(transfer, frame)
                case pb.PushCommit() as commit:
                    record = transfer.commit(commit, stream.traceparent)
                    self._expected.commit(transfer, record)
                    await stream.write(pb.PushResponse(committed=pb.PushCommitted()))
                    return
                case _:
                    raise KvTransferFailed("open came twice")
            num_bytes = transfer.num_bytes
            if num_bytes - num_bytes_acked < _ACK_EVERY_BYTES and await stream.has_more():
                continue
            await stream.write(pb.PushResponse(progress=pb.PushProgress(num_bytes=num_bytes)))
            num_bytes_acked = num_bytes
