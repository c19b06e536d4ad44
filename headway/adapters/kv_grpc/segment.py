"""Memory that a receiver offers to one sender of its own host. Linux only.

A memfd has no name: nothing is left behind however a process ends, and it is gone when both
have let go of it. Its seals keep either side from shrinking it, which would kill the other one
with SIGBUS; that it belongs to our own user, has them and holds the nonce keeps a sender from
writing into any other file.
"""

from __future__ import annotations

import fcntl
import hmac
import mmap
import os
import secrets
import stat
from pathlib import Path

from headway.adapters.kv_grpc.frames import MAX_PAYLOAD_BYTES, WINDOW_BYTES
from headway.v1 import kv_transfer_service_pb2 as pb

_HEADER_BYTES = 4096
_NONCE_BYTES = 32
_SLOTS_BYTES = WINDOW_BYTES
_MIN_SLOTS = 4
# What a sender may be made to map.
_MAX_BYTES = 1 << 30
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# All pages at once: to have the kernel hand them out one by one takes longer than a copy.
_FLAGS = mmap.MAP_SHARED | mmap.MAP_POPULATE

Slots = list[memoryview]


class OfferedSegment:
    """The receiver's end.

    Attributes:
        slots: whatever is in them may change at any time.
        offer: what to tell the sender.
    """

    def __init__(self, num_slots: int, slot_bytes: int) -> None:
        """Allocate the memory.

        Raises:
            OSError: the system gives none.
        """
        num_bytes = _HEADER_BYTES + num_slots * slot_bytes
        nonce = secrets.token_bytes(_NONCE_BYTES)
        descriptor = os.memfd_create("headway-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(descriptor, 0o600)
            # Now, because a page that is missing later would be a SIGBUS instead of an error.
            os.posix_fallocate(descriptor, 0, num_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            memory = mmap.mmap(descriptor, num_bytes, flags=_FLAGS)
        except OSError:
            os.close(descriptor)
            raise
        memory[:_NONCE_BYTES] = nonce
        self.slots = _slots(memory, num_slots, slot_bytes)
        self.offer = pb.SharedSegment(
            process_id=os.getpid(),
            descriptor=descriptor,
            nonce=nonce,
            num_slots=num_slots,
            slot_bytes=slot_bytes,
        )

    @classmethod
    def for_frames(cls, page_bytes: int) -> OfferedSegment:
        """A segment with slots for frames of such pages.

        Raises:
            OSError: the system gives no memory.
        """
        slot_bytes = max(MAX_PAYLOAD_BYTES, page_bytes)
        return cls(max(_MIN_SLOTS, _SLOTS_BYTES // slot_bytes), slot_bytes)

    def close(self) -> None:
        """Offer it no more, and let go of it; the memory goes with its last user."""
        os.close(self.offer.descriptor)
        self.slots = []


def map_offered(offer: pb.SharedSegment) -> Slots | None:
    """The slots of a segment that another process offers; None if it is not on this host.

    Not on this host is also what another user or another PID namespace offers: whatever cannot
    be opened, or is not exactly what it is said to be.
    """
    num_bytes = _HEADER_BYTES + offer.num_slots * offer.slot_bytes
    if not (offer.num_slots and offer.slot_bytes and num_bytes <= _MAX_BYTES):
        return None
    path = Path(f"/proc/{offer.process_id}/fd/{offer.descriptor}")
    try:
        # Looked at first: to open a file of another kind could have effects.
        if not _looks_right(path.stat(), num_bytes):
            return None
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not _is_segment(descriptor, num_bytes, offer.nonce):
                return None
            memory = mmap.mmap(descriptor, num_bytes, flags=_FLAGS)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    return _slots(memory, offer.num_slots, offer.slot_bytes)


def _is_segment(descriptor: int, num_bytes: int, nonce: bytes) -> bool:
    return (
        _looks_right(os.fstat(descriptor), num_bytes)
        # Files that are no memfds have no seals, or not these: asking raises, or differs.
        and fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == _SEALS
        and hmac.compare_digest(os.pread(descriptor, _NONCE_BYTES, 0), nonce)
    )


def _looks_right(status: os.stat_result, num_bytes: int) -> bool:
    return (
        status.st_mode == stat.S_IFREG | 0o600
        and status.st_uid == os.geteuid()
        and status.st_size == num_bytes
    )


def _slots(memory: mmap.mmap, num_slots: int, slot_bytes: int) -> Slots:
    """The views keep the mapping; it is never closed while somebody may still write."""
    view = memoryview(memory)
    starts = range(_HEADER_BYTES, _HEADER_BYTES + num_slots * slot_bytes, slot_bytes)
    return [view[start : start + slot_bytes] for start in starts]
