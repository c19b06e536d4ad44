"""CRC-32C of pages, and of whole transfers."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import google_crc32c
import numpy as np
import numpy.typing as npt

# What has just been copied is summed from the cache: from main memory CRC-32C is several times
# slower.
_PIECE_BYTES = 256 << 10


def checksum(views: Sequence[memoryview], value: int = 0) -> int:
    """CRC-32C of contiguous buffers, one after the other, continued from `value`."""
    for view in views:
        # google_crc32c refuses memoryviews but takes an array over the same memory.
        value = google_crc32c.extend(value, np.frombuffer(view, np.uint8)) if view.nbytes else value
    return value


def copy_with_checksum(target: npt.NDArray[np.uint8], source: memoryview, value: int = 0) -> int:
    """Copy `source` to the equally long `target`, which is contiguous.

    Returns:
        CRC-32C, continued from `value`, of the copy: whatever becomes of `source` meanwhile, it
        tells what is in `target`.
    """
    # Not copied by numpy, which hands the interpreter to another thread at every copy.
    memory = target.data
    if target.nbytes <= _PIECE_BYTES:
        memory[:] = source
        extended: int = google_crc32c.extend(value, target)
        return extended
    for start in range(0, target.nbytes, _PIECE_BYTES):
        end = start + _PIECE_BYTES
        memory[start:end] = source[start:end]
        value = google_crc32c.extend(value, target[start:end])
    return value


def checksum_of_checksums(crc32c: int, value: int) -> int:
    """Continue the transfer's checksum `value` with that of one more frame."""
    extended: int = google_crc32c.extend(value, struct.pack("<I", crc32c))
    return extended
