"""Memory that a receiver offers to senders of its host, one segment for each."""

from __future__ import annotations

import logging

from headway.adapters.kv_grpc.incoming_stream import Context, write
from headway.adapters.kv_grpc.layout import PageLayout
from headway.adapters.kv_grpc.segment import OfferedSegment
from headway.adapters.kv_grpc.shared_incoming import Receive, SharedIncoming
from headway.v1 import kv_transfer_service_pb2 as pb

_LOG = logging.getLogger(__name__)

# Senders of this host that may have memory at once; others send their pages in messages.
_MAX_SEGMENTS = 16


class SharedOffers:
    """The senders that have memory now, by the transfer whose ticket they showed."""

    def __init__(self, layout: PageLayout, receive: Receive, *, shares_memory: bool) -> None:
        """Where no memory is shared, all are told so.

        Args:
            layout: of our pages.
            receive: as of `SharedIncoming`.
            shares_memory: offer memory at all.
        """
        self._layout = layout
        self._receive = receive
        self._shares_memory = shares_memory
        self._shared: dict[str, SharedIncoming] = {}

    def __len__(self) -> int:
        return len(self._shared)

    async def serve(self, transfer_id: str, context: Context) -> None:
        """Offer memory to one sender, and receive from it until it ends the stream.

        Raises:
            KvTransferFailed: the sender has broken the rules of the stream.
        """
        segment = self._offer(transfer_id)
        if segment is None:
            await write(context, pb.PushSharedResponse())
            return
        shared = SharedIncoming(context, segment, self._layout, self._receive)
        self._shared[transfer_id] = shared
        try:
            await shared.run()
        finally:
            del self._shared[transfer_id]
            segment.close()

    async def end_all(self) -> None:
        """Tell all of them that the receiver closes."""
        for shared in list(self._shared.values()):
            await shared.end()

    def _offer(self, transfer_id: str) -> OfferedSegment | None:
        """Memory for one sender of this host, once for a ticket; None if there is none for it."""
        has_room = transfer_id not in self._shared and len(self._shared) < _MAX_SEGMENTS
        if not (self._shares_memory and has_room):
            return None
        try:
            return OfferedSegment.for_frames(self._layout.page_bytes)
        except OSError as error:
            _LOG.warning("no shared memory for a sender of KV pages: %s", error)
            return None
