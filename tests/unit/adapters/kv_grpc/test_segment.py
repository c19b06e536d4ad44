"""A sender maps exactly what a receiver on its own host offers, and nothing else."""

from __future__ import annotations

import fcntl
import gc
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headway.adapters.kv_grpc.segment import OfferedSegment, map_offered
from headway.v1 import kv_transfer_service_pb2 as pb

NUM_BYTES = 4096 + 3 * 8192
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def num_mappings() -> int:
    gc.collect()
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("memfd:headway-kv")


@pytest.fixture
def segment() -> Iterator[OfferedSegment]:
    segment = OfferedSegment(3, 8192)
    descriptor = segment.offer.descriptor
    yield segment
    # As it was, whatever the test has made of the offer.
    segment.offer.descriptor = descriptor
    segment.close()


def test_both_sides_see_the_same_memory(segment: OfferedSegment) -> None:
    theirs = map_offered(segment.offer)
    assert theirs is not None
    assert [slot.nbytes for slot in theirs] == [8192] * 3
    for index, slot in enumerate(theirs):
        slot[:] = bytes([index + 1]) * 8192
    assert [bytes(slot) for slot in segment.slots] == [bytes([i + 1]) * 8192 for i in range(3)]


def test_the_memory_has_no_name_and_goes_with_its_last_user() -> None:
    before = num_mappings(), sorted(Path("/dev/shm").iterdir())
    segment = OfferedSegment(3, 8192)
    theirs = map_offered(segment.offer)
    assert (num_mappings(), sorted(Path("/dev/shm").iterdir())) == (before[0] + 2, before[1])
    segment.close()
    del segment
    assert theirs is not None
    theirs[2][-1] = 7
    del theirs
    assert num_mappings() == before[0]


def test_neither_side_can_shrink_it_under_the_other(segment: OfferedSegment) -> None:
    descriptor = os.open(f"/proc/self/fd/{segment.offer.descriptor}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


WRONG: dict[str, Callable[[pb.SharedSegment], object]] = {
    "nonce": lambda offer: setattr(offer, "nonce", secrets.token_bytes(32)),
    "no nonce": lambda offer: setattr(offer, "nonce", b""),
    "number of slots": lambda offer: setattr(offer, "num_slots", 4),
    "size of slots": lambda offer: setattr(offer, "slot_bytes", 4096),
    "no slots": lambda offer: setattr(offer, "num_slots", 0),
    "more than one may have to map": lambda offer: setattr(offer, "num_slots", 2**32 - 1),
    "process": lambda offer: setattr(offer, "process_id", 2**22 + 1),
    "file": lambda offer: setattr(offer, "descriptor", 2**20),
    "mode": lambda offer: os.fchmod(offer.descriptor, 0o644),
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG.keys())
def test_what_is_not_as_it_was_offered_is_not_mapped(
    segment: OfferedSegment, spoil: Callable[[pb.SharedSegment], object]
) -> None:
    spoil(segment.offer)
    before = num_mappings()
    assert map_offered(segment.offer) is None
    assert num_mappings() == before


@pytest.mark.parametrize("kind", ["regular file", "memfd without seals", "memfd", "directory"])
def test_another_file_is_never_written_to(tmp_path: Path, kind: str) -> None:
    """Even if it is as large, belongs to us and begins with the nonce."""
    nonce = secrets.token_bytes(32)
    if kind == "directory":
        descriptor = os.open(tmp_path, os.O_RDONLY)
    elif kind == "regular file":
        descriptor = os.open(tmp_path / "any", os.O_RDWR | os.O_CREAT, 0o600)
    else:
        descriptor = os.memfd_create("any", os.MFD_ALLOW_SEALING)
        os.fchmod(descriptor, 0o600)
    if kind != "directory":
        os.write(descriptor, nonce)
        os.ftruncate(descriptor, NUM_BYTES)
    if kind == "memfd":
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    offer = pb.SharedSegment(
        process_id=os.getpid(), descriptor=descriptor, nonce=nonce, num_slots=3, slot_bytes=8192
    )
    # Or else the other kinds would prove nothing.
    assert (map_offered(offer) is not None) == (kind == "memfd")
    os.close(descriptor)
