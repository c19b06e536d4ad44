"""CRC-32C of pages, and of whole transfers."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import google_crc32c
import numpy as np

# What has just been copied is summed from the cache: from main memory CRC-32C is several times
# slower.
_PIECE_BYTES = 256 << 10


def checksum(views: Sequence[memoryview], value: int = 0) -> int:
    """CRC-32C of contiguous buffers, one after the other, continued from `value`."""
    for view in views:
        # google_crc32c refuses memoryviews but takes an array over the same memory.
        value = google_crc32c.extend(value, np.frombuffer(view, np.uint8)) if view.nbytes else value
    return value


def copy_with_checksum(target: memoryview, source: memoryview, value: int = 0) -> int:
    """Copy `source` to the equally long `target`.

    Returns:
        CRC-32C, continued from `value`, of the copy: whatever becomes of `source` meanwhile, it
        tells what is in `target`.
    """
    copy = np.frombuffer(target, np.uint8)
    num_bytes = target.nbytes
    for start in range(0, num_bytes, _PIECE_BYTES):
        end = min(start + _PIECE_BYTES, num_bytes)
        # Not with numpy, which hands the interpreter to another thread at every copy.
        target[start:end] = source[start:end]
        value = google_crc32c.extend(value, copy[start:end])
    return value


def checksum_of_checksums(crc32c: int, value: int) -> int:
    """Continue the transfer's checksum `value` with that of one more frame."""
    extended: int = google_crc32c.extend(value, struct.pack("<I", crc32c))
    return extended
