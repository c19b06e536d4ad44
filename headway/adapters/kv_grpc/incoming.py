"""What one transfer into this engine must look like, page by page."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from headway.adapters.kv_grpc.checksums import checksum_of_checksums
from headway.adapters.kv_grpc.frames import PageFrame, PageRange
from headway.adapters.kv_grpc.layout import PageLayout, PageStore
from headway.errors import KvTransferFailed
from headway.ports.engine import KvTransferRecord
from headway.v1 import kv_transfer_service_pb2 as pb


class IncomingTransfer:
    """Puts the frames of one expected transfer into its blocks, and verifies them there.

    Every method that takes something from the wire raises KvTransferFailed if it is wrong.

    Attributes:
        first_block: the first one that is to be sent.
        num_pages_written: so far, whether or not the transfer will be committed; kept by the
            books, `ExpectedTransfers`.
        num_bytes: payload received and verified so far.
    """

    def __init__(
        self, transfer_id: str, layout: PageLayout, block_ids: Sequence[int], first_block: int
    ) -> None:
        if not 0 <= first_block <= len(block_ids):
            raise ValueError(f"first_block {first_block} of {len(block_ids)} blocks")
        self.transfer_id = transfer_id
        self.first_block = first_block
        self.num_pages_written = 0
        self.num_bytes = 0
        self._layout = layout
        self._block_ids = tuple(block_ids)
        self._num_frames = 0
        self._next_sequence = 0
        self._crc32c = 0
        self._written = np.zeros((layout.num_layers, len(block_ids)), np.bool_)
        self._written[:, :first_block] = True
        self._started_unix_ns: int | None = None

    def check_announced(self, num_blocks: int) -> None:
        """The sender's number of blocks must be ours: with fewer, some would stay empty."""
        if num_blocks != len(self._block_ids):
            raise KvTransferFailed(
                f"{num_blocks} blocks were announced, {len(self._block_ids)} are expected"
            )

    def check(self, frame: PageFrame) -> None:
        """Check what a frame says of itself against what came before it."""
        pages = frame.pages
        if self._started_unix_ns is None:
            self._started_unix_ns = time.time_ns()
            self._next_sequence = frame.sequence
        if frame.sequence != self._next_sequence:
            raise KvTransferFailed(
                f"page frame {frame.sequence} came where {self._next_sequence} was due"
            )
        self._check_range(pages)
        if frame.payload.nbytes != pages.num_pages * self._layout.page_bytes:
            raise KvTransferFailed(
                f"{frame.payload.nbytes} bytes came for {pages.num_pages} pages"
                f" of {self._layout.page_bytes}"
            )
        self._next_sequence += 1

    def _check_range(self, pages: PageRange) -> None:
        inside = (
            pages.num_pages > 0
            and pages.first_layer + pages.num_layers <= self._layout.num_layers
            and pages.first_block >= self.first_block
            and pages.first_block + pages.num_blocks <= len(self._block_ids)
        )
        if not inside:
            raise KvTransferFailed(f"{pages} is not within the announced pages")
        rectangle = self._rectangle(pages)
        if self._written[rectangle].any():
            raise KvTransferFailed(f"{pages} holds pages that came before")
        self._written[rectangle] = True

    @staticmethod
    def _rectangle(pages: PageRange) -> tuple[slice, slice]:
        return (
            slice(pages.first_layer, pages.first_layer + pages.num_layers),
            slice(pages.first_block, pages.first_block + pages.num_blocks),
        )

    def write(self, frame: PageFrame, store: PageStore) -> None:
        """Copy a checked frame into the request's own blocks, and verify the copy.

        Where the checksum is wrong, so are the pages: nobody may see them before the commit,
        and there must be none.
        """
        layers, blocks = self._rectangle(frame.pages)
        block_ids = self._block_ids[blocks]
        crc32c = store.write(range(layers.start, layers.stop), block_ids, frame.payload)
        if crc32c != frame.crc32c:
            raise KvTransferFailed(f"the checksum of page frame {frame.sequence} is wrong")
        self._num_frames += 1
        self._crc32c = checksum_of_checksums(crc32c, self._crc32c)
        self.num_bytes += frame.payload.nbytes

    def commit(self, commit: pb.PushCommit, traceparent: str) -> KvTransferRecord:
        """Check that exactly all pages came; nothing was promised before this returns."""
        sent = (commit.num_frames, commit.num_bytes, commit.crc32c)
        if sent != (self._num_frames, self.num_bytes, self._crc32c):
            raise KvTransferFailed("count or checksum of the commit differ from what came")
        if not self._written.all():
            raise KvTransferFailed("some announced pages never came")
        if commit.num_bytes_overlapped > self.num_bytes:
            raise KvTransferFailed("more bytes overlapped than there were")
        ended_unix_ns = time.time_ns()
        return KvTransferRecord(
            num_bytes=self.num_bytes,
            num_frames=self._num_frames,
            num_blocks_reused=self.first_block,
            overlapped_ratio=commit.num_bytes_overlapped / self.num_bytes
            if self.num_bytes
            else 0.0,
            started_unix_ns=self._started_unix_ns or ended_unix_ns,
            ended_unix_ns=ended_unix_ns,
            traceparent=traceparent,
        )
