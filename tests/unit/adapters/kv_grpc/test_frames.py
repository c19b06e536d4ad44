from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.adapters.kv_grpc.checksums import checksum
from headway.adapters.kv_grpc.frames import (
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    PageFrame,
    PageRange,
    cut,
    decode,
    encode,
    gather_into,
    gather_message,
    without_blocks_before,
)
from headway.adapters.kv_grpc.layout import PageLayout, runs
from headway.errors import KvTransferFailed
from headway.v1 import kv_transfer_service_pb2 as pb

uint32 = st.integers(0, 2**32 - 1)
ranges = st.builds(PageRange, uint32, uint32, uint32, uint32)
payloads = st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5)


def as_frame(message: bytes) -> PageFrame:
    frame = decode(message)
    assert isinstance(frame, PageFrame)
    return frame


@given(uint32, ranges, payloads)
def test_a_frame_comes_back_as_it_was(sequence: int, pages: PageRange, parts: list[bytes]) -> None:
    message = encode(sequence, pages, [memoryview(part) for part in parts])
    frame = as_frame(message)
    assert (frame.sequence, frame.pages, bytes(frame.payload)) == (sequence, pages, b"".join(parts))
    assert frame.crc32c == checksum([frame.payload])
    assert len(message) == HEADER_BYTES + len(frame.payload)


@given(uint32, ranges, payloads)
def test_any_protobuf_library_reads_and_writes_the_same_frame(
    sequence: int, pages: PageRange, parts: list[bytes]
) -> None:
    message = encode(sequence, pages, [memoryview(part) for part in parts])
    request = pb.PushRequest.FromString(message)
    assert request.payload == b"".join(parts)
    # Protobuf leaves zeros out and does not pad the length: another encoding, the same frame.
    assert as_frame(request.SerializeToString()) == as_frame(message)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_message_or_the_documented_error(data: bytes) -> None:
    try:
        decode(data)
    except KvTransferFailed:
        return


@given(payloads, st.data())
def test_a_damaged_frame_is_a_message_or_the_documented_error(
    parts: list[bytes], data: st.DataObject
) -> None:
    message = bytearray(encode(1, PageRange(0, 1, 0, 1), [memoryview(part) for part in parts]))
    index = data.draw(st.integers(0, len(message) - 1))
    message[index] ^= data.draw(st.integers(1, 255))
    try:
        decode(bytes(message[: data.draw(st.integers(0, len(message)))]))
    except KvTransferFailed:
        return


def test_a_message_of_two_kinds_is_refused() -> None:
    both = pb.PushRequest(open=pb.PushOpen(), commit=pb.PushCommit())
    with pytest.raises(KvTransferFailed):
        decode(both.SerializeToString())


def test_the_checksum_is_the_published_crc32c() -> None:
    # RFC 3720, B.4: 32 bytes of zeros; and the usual check value of the CRC catalogue.
    assert checksum([memoryview(bytes(32))]) == 0x8A9136AA
    assert checksum([memoryview(b"1234"), memoryview(b""), memoryview(b"56789")]) == 0xE3069283


@given(
    num_layers=st.integers(1, 70),
    page_bytes=st.sampled_from([16, 1000, 24576, 600_000, 3 << 20]),
    first_block=st.integers(0, 9),
    num_blocks=st.integers(0, 90),
)
def test_frames_cover_every_page_once_and_stay_small(
    num_layers: int, page_bytes: int, first_block: int, num_blocks: int
) -> None:
    layout = PageLayout(num_layers, page_bytes, b"")
    seen: list[tuple[int, int]] = []
    for pages in cut(layout, first_block, num_blocks):
        assert pages.num_pages * page_bytes <= MAX_PAYLOAD_BYTES or pages.num_pages == 1
        seen += [
            (layer, block)
            for layer in range(pages.first_layer, pages.first_layer + pages.num_layers)
            for block in range(pages.first_block, pages.first_block + pages.num_blocks)
        ]
    assert len(seen) == len(set(seen)) == num_layers * num_blocks
    # All layers of a block before the next ones: leaving blocks out leaves out the first frames.
    blocks = [pages.first_block for pages in cut(layout, first_block, num_blocks)]
    assert blocks == sorted(blocks)


def test_a_large_chunk_travels_in_frames_of_at_least_a_quarter_mebibyte() -> None:
    for num_blocks in (11, 16, 45, 64):
        for pages in cut(PageLayout(30, 24576, b""), 0, num_blocks):
            assert pages.num_pages * 24576 >= 256 << 10


def test_leaving_blocks_out_keeps_each_layers_later_pages() -> None:
    layout = PageLayout(2, 1, b"")
    views = [memoryview(b"abcdef")]
    slot = memoryview(bytearray(10))
    for gathered in (
        gather_message(7, PageRange(0, 2, 4, 3), views),
        gather_into(slot, 0, 7, PageRange(0, 2, 4, 3), views),
    ):
        kept = without_blocks_before(gathered, 6, layout)
        assert kept is not None
        assert kept.message is not None
        frame = as_frame(kept.message)
        assert frame == kept.frame
        assert (frame.sequence, frame.pages) == (7, PageRange(0, 2, 6, 1))
        assert bytes(frame.payload) == b"cf"
        assert frame.crc32c == checksum([memoryview(b"cf")])
        assert without_blocks_before(gathered, 4, layout) is gathered
        assert without_blocks_before(gathered, 7, layout) is None


@given(uint32, ranges, payloads)
def test_a_frame_in_shared_memory_says_the_same_as_one_in_a_message(
    sequence: int, pages: PageRange, parts: list[bytes]
) -> None:
    views = [memoryview(part) for part in parts]
    memory = memoryview(bytearray(1500))
    assert gather_into(memory, 3, sequence, pages, views).frame == as_frame(
        encode(sequence, pages, views)
    )


@given(st.lists(st.integers(0, 9)))
def test_runs_are_the_blocks_in_order(block_ids: list[int]) -> None:
    stretches = runs(block_ids)
    assert [block_id for run in stretches for block_id in range(run.start, run.stop)] == block_ids
    for run, following in itertools.pairwise(stretches):
        assert run.stop != following.start
