"""Page frames, written and read by hand so that the pages are copied once and never parsed.

A frame is a valid `headway.v1.PushRequest`: any protobuf library reads it, and a frame that
another library wrote is read here, only slower.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from google.protobuf.message import DecodeError

from headway.adapters.kv_grpc.checksums import checksum
from headway.adapters.kv_grpc.layout import PageLayout
from headway.errors import KvTransferFailed
from headway.v1 import kv_transfer_service_pb2 as pb

MAX_PAYLOAD_BYTES = 1 << 20
# What may be on its way to a receiver; it bounds what a slow one makes both sides hold.
WINDOW_BYTES = 32 << 20

# Field number << 3 | wire type, for the six fixed32 fields 3..8 and the bytes field 9.
_FIXED32_TAGS = tuple(number << 3 | 5 for number in range(3, 9))
_PAYLOAD_TAG = 9 << 3 | 2
_HEADER = struct.Struct("<" + "BI" * 6 + "B5s")
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True, slots=True)
class PageRange:
    """A rectangle of pages: layers times blocks of one request."""

    first_layer: int
    num_layers: int
    first_block: int
    num_blocks: int

    @property
    def num_pages(self) -> int:
        return self.num_layers * self.num_blocks


@dataclass(frozen=True, slots=True)
class PageFrame:
    """One page frame.

    Attributes:
        payload: a view into the received message, or into memory that its sender may write to
            at any time: only a copy can be checked.
    """

    sequence: int
    pages: PageRange
    crc32c: int
    payload: memoryview


@dataclass(frozen=True, slots=True)
class GatheredFrame:
    """A frame that waits to be sent, either as a message or in a slot of shared memory.

    Attributes:
        message: the whole of it; the frame's payload is a view into it.
        slot: where the payload lies if there is no message.
    """

    frame: PageFrame
    message: bytes | None
    slot: int | None


def _varint5(number: int) -> bytes:
    """`number` as a varint padded to five bytes, so that all headers are equally long."""
    groups = [number >> shift & 0x7F for shift in range(0, 35, 7)]
    return bytes([*(group | 0x80 for group in groups[:4]), groups[4]])


def _from_varint5(data: bytes) -> int | None:
    if not all(byte & 0x80 for byte in data[:4]) or data[4] & 0x80:
        return None
    return sum((byte & 0x7F) << shift for byte, shift in zip(data, range(0, 35, 7), strict=True))


def encode(sequence: int, pages: PageRange, views: Sequence[memoryview]) -> bytes:
    """One page frame as a message for the wire; `views` are copied exactly once."""
    message = gather_message(sequence, pages, views).message
    assert message is not None
    return message


def gather_message(sequence: int, pages: PageRange, views: Sequence[memoryview]) -> GatheredFrame:
    """A page frame with the message that carries it; `views` are copied exactly once."""
    crc32c = checksum(views)
    fields = (
        sequence,
        pages.first_layer,
        pages.num_layers,
        pages.first_block,
        pages.num_blocks,
        crc32c,
    )
    tagged = [part for pair in zip(_FIXED32_TAGS, fields, strict=True) for part in pair]
    length = _varint5(sum(view.nbytes for view in views))
    message = b"".join([_HEADER.pack(*tagged, _PAYLOAD_TAG, length), *views])
    frame = PageFrame(sequence, pages, crc32c, memoryview(message)[HEADER_BYTES:])
    return GatheredFrame(frame, message, None)


def gather_into(
    memory: memoryview,
    slot: int,
    sequence: int,
    pages: PageRange,
    views: Sequence[memoryview],
) -> GatheredFrame:
    """A page frame whose payload lies in `memory`, which is that slot's."""
    end = 0
    for view in views:
        start, end = end, end + view.nbytes
        # Not with numpy, which hands the interpreter to another thread at every copy.
        memory[start:end] = view
    # Of the copy, which has just passed through the cache.
    payload = memory[:end]
    return GatheredFrame(PageFrame(sequence, pages, checksum([payload]), payload), None, slot)


def decode(message: bytes | memoryview) -> pb.PushOpen | pb.PushCommit | PageFrame:
    """Read one message of a stream. Does not verify the checksum.

    Raises:
        KvTransferFailed: not a PushRequest, or not exactly one of its three kinds.
    """
    return _decode_page_frame(message) or _parse(message)


def _decode_page_frame(message: bytes | memoryview) -> PageFrame | None:
    """A frame in our own form, without a copy; None for any other message."""
    if len(message) < HEADER_BYTES:
        return None
    *tagged, payload_tag, length = _HEADER.unpack_from(message)
    if tuple(tagged[::2]) != _FIXED32_TAGS or payload_tag != _PAYLOAD_TAG:
        return None
    if _from_varint5(length) != len(message) - HEADER_BYTES:
        return None
    sequence, first_layer, num_layers, first_block, num_blocks, crc32c = tagged[1::2]
    pages = PageRange(first_layer, num_layers, first_block, num_blocks)
    return PageFrame(sequence, pages, crc32c, memoryview(message)[HEADER_BYTES:])


def _parse(message: bytes | memoryview) -> pb.PushOpen | pb.PushCommit | PageFrame:
    try:
        request = pb.PushRequest.FromString(bytes(message))
    except DecodeError as error:
        raise KvTransferFailed("the stream holds something that is no PushRequest") from error
    is_frame = bool(request.payload)
    if request.HasField("open") + request.HasField("commit") + is_frame != 1:
        raise KvTransferFailed("a PushRequest is one of open, commit and page frame")
    if request.HasField("open"):
        return request.open
    if request.HasField("commit"):
        return request.commit
    pages = PageRange(
        request.first_layer, request.num_layers, request.first_block, request.num_blocks
    )
    return PageFrame(request.sequence, pages, request.crc32c, memoryview(request.payload))


def cut(layout: PageLayout, first_block: int, num_blocks: int) -> Iterator[PageRange]:
    """Cut all layers of a run of blocks into few frames of at most 1 MiB, or of one page.

    All layers of some blocks come before later blocks, so that leaving out the first blocks
    of a transfer leaves out its first frames.
    """
    if num_blocks == 0:
        return
    layers_per_frame, blocks_per_frame = _frame_shape(layout, num_blocks)
    end = first_block + num_blocks
    for block in range(first_block, end, blocks_per_frame):
        for layer in range(0, layout.num_layers, layers_per_frame):
            yield PageRange(
                layer,
                min(layers_per_frame, layout.num_layers - layer),
                block,
                min(blocks_per_frame, end - block),
            )


@cache
def _frame_shape(layout: PageLayout, num_blocks: int) -> tuple[int, int]:
    """Layers and blocks of a frame, so that frames are few: each costs as much as its bytes.

    Of equally good shapes the one with fewest layers: a page store copies a layer at once.
    """
    max_pages = max(1, MAX_PAYLOAD_BYTES // layout.page_bytes)
    shapes = []
    for num_layers in range(1, min(layout.num_layers, max_pages) + 1):
        num_blocks_at_once = min(num_blocks, max_pages // num_layers)
        num_frames = math.ceil(layout.num_layers / num_layers) * math.ceil(
            num_blocks / num_blocks_at_once
        )
        shapes.append((num_frames, num_layers, num_blocks_at_once))
    _, num_layers, num_blocks_at_once = min(shapes)
    return num_layers, num_blocks_at_once


def without_blocks_before(
    gathered: GatheredFrame, first_block: int, layout: PageLayout
) -> GatheredFrame | None:
    """What is left of a frame without its earlier blocks; None if nothing is."""
    frame = gathered.frame
    pages = frame.pages
    num_dropped = max(0, first_block - pages.first_block)
    if num_dropped >= pages.num_blocks:
        return None
    if num_dropped == 0:
        return gathered
    kept = PageRange(
        pages.first_layer, pages.num_layers, first_block, pages.num_blocks - num_dropped
    )
    layer_bytes = pages.num_blocks * layout.page_bytes
    kept_bytes = kept.num_blocks * layout.page_bytes
    ends = [(layer + 1) * layer_bytes for layer in range(pages.num_layers)]
    views = [frame.payload[end - kept_bytes : end] for end in ends]
    return gather_message(frame.sequence, kept, views)
