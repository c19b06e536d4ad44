"""Pages are verified where they were placed, so nobody can change them after the check."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from headway.adapters.kv_grpc.checksums import checksum, copy_with_checksum
from headway.adapters.kv_grpc.expected import ExpectedTransfers
from headway.adapters.kv_grpc.frames import PageFrame, PageRange
from headway.adapters.kv_grpc.incoming import IncomingTransfer
from headway.adapters.kv_grpc.layout import PageLayout
from headway.adapters.kv_grpc.numpy_store import NumpyPageStore, stretches, write_rows
from headway.errors import KvTransferFailed

LAYOUT = PageLayout(num_layers=3, page_bytes=100, digest=b"d" * 32)
ALL_PAGES = PageRange(0, 3, 0, 4)
PAYLOAD = np.random.default_rng(3).integers(1, 256, 3 * 4 * 100, np.uint8)


class RacedStore(NumpyPageStore):
    """Its frames' sender writes to a slot while it is read, before or after the copy."""

    scribbles_before = False

    def write(self, layers: range, block_ids: Sequence[int], payload: memoryview) -> int:
        if self.scribbles_before:
            payload[0] ^= 0x10
        crc32c = super().write(layers, block_ids, payload)
        payload[:] = bytes(payload.nbytes)
        return crc32c


def received(store: NumpyPageStore) -> tuple[ExpectedTransfers, IncomingTransfer, PageFrame]:
    expected = ExpectedTransfers(store, b"secret")
    transfer = IncomingTransfer("t", LAYOUT, [7, 8, 2, 5], 0)
    expected.add(transfer)
    slot = memoryview(bytearray(PAYLOAD))
    frame = PageFrame(0, ALL_PAGES, checksum([slot]), slot)
    transfer.check(frame)
    return expected, transfer, frame


def test_what_is_written_to_a_slot_after_the_copy_changes_nothing() -> None:
    store = RacedStore(9, LAYOUT)
    expected, transfer, frame = received(store)
    expected.write(transfer, frame)
    assert not any(frame.payload)
    assert transfer.num_bytes == PAYLOAD.nbytes
    assert (store.pages[:, [7, 8, 2, 5]] == PAYLOAD.reshape(3, 4, 100)).all()


def test_what_is_written_to_a_slot_before_the_copy_is_caught_and_its_pages_are_counted() -> None:
    store = RacedStore(9, LAYOUT)
    store.scribbles_before = True
    expected, transfer, frame = received(store)
    with pytest.raises(KvTransferFailed, match="checksum of page frame 0"):
        expected.write(transfer, frame)
    # Neither acknowledged nor visible; the blocks are whole again once the transfer has failed.
    assert transfer.num_bytes == 0
    assert expected.poll() == []
    assert expected.counters().num_created == 12
    expected.fail("t", "the checksum is wrong")
    assert expected.counters().num_released == 12
    assert [outcome.record for outcome in expected.poll()] == [None]
    assert not store.pages[:, [0, 1, 3, 4, 6]].any()


@pytest.mark.parametrize("num_bytes", [1, 256 << 10, (256 << 10) + 1, (1 << 20) - 3])
def test_the_checksum_is_that_of_the_copy(num_bytes: int) -> None:
    source = np.random.default_rng(num_bytes).integers(0, 256, num_bytes, np.uint8)
    target = np.zeros(num_bytes + 2, np.uint8)
    value = copy_with_checksum(target[1:-1], source.data, 77)
    assert (target[1:-1] == source).all()
    assert (target[0], target[-1]) == (0, 0)
    assert value == checksum([source.data], 77)


@pytest.mark.parametrize("room", [0, 60], ids=["rows without gaps", "rows with gaps"])
def test_rows_are_read_and_written_in_order_and_gaps_are_left_alone(room: int) -> None:
    memory = np.zeros((2, 6, 100 + room), np.uint8)
    layers = list(memory[:, :, :100])
    block_ids = [3, 4, 0, 5]
    payload = np.arange(2 * 4 * 100, dtype=np.uint8)
    assert write_rows(layers, block_ids, payload.data) == checksum([payload.data])
    assert (memory[:, block_ids, :100] == payload.reshape(2, 4, 100)).all()
    assert not memory[:, [1, 2]].any()
    assert not memory[:, :, 100:].any()
    found = stretches(layers, block_ids)
    assert b"".join(one.data for one in found) == payload.tobytes()
    assert len(found) == 2 * (4 if room else 3)
