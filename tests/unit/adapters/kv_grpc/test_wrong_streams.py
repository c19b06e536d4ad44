"""Whatever a stream does wrong, the transfer fails as a whole and nobody else notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from headway.adapters.kv_grpc.frames import PageFrame, PageRange, decode, encode
from headway.adapters.kv_grpc.tickets import TicketMint


@pytest.fixture
def shares_memory() -> bool:
    """These streams are of their own making, and carry their pages."""
    return False


DATA_LOSS = grpc.StatusCode.DATA_LOSS


def flipped(message: bytes, index: int) -> bytes:
    return message[:index] + bytes([message[index] ^ 0x10]) + message[index + 1 :]


def moved(message: bytes, pages: PageRange) -> bytes:
    frame = decode(message)
    assert isinstance(frame, PageFrame)
    return encode(frame.sequence, pages, [frame.payload])


Frames = list[bytes]

WRONG: dict[str, Callable[[Any, Frames], Frames]] = {
    "first payload byte flipped": lambda p, f: [flipped(f[0], 36), *f[1:], p.commit(f)],
    "last payload byte flipped": lambda p, f: [*f[:3], flipped(f[3], -1 % len(f[3])), p.commit(f)],
    "checksum flipped": lambda p, f: [flipped(f[0], 27), *f[1:], p.commit(f)],
    "sequence flipped": lambda p, f: [f[0], flipped(f[1], 1), *f[2:], p.commit(f)],
    "layer flipped": lambda p, f: [flipped(f[0], 6), *f[1:], p.commit(f)],
    "block flipped": lambda p, f: [flipped(f[0], 16), *f[1:], p.commit(f)],
    "number of blocks flipped": lambda p, f: [flipped(f[0], 21), *f[1:], p.commit(f)],
    "truncated": lambda p, f: [f[0][:-1], *f[1:], p.commit(f)],
    "reordered": lambda p, f: [f[0], f[2], f[1], f[3], p.commit(f)],
    "duplicated": lambda p, f: [f[0], f[0], *f[1:], p.commit(f)],
    "first left out": lambda p, f: [*f[1:], p.commit(f)],
    "one left out": lambda p, f: [f[0], *f[2:], p.commit(f)],
    "last left out": lambda p, f: [*f[:3], p.commit(f)],
    "last left out on purpose": lambda p, f: [*f[:3], p.commit(f[:3])],
    "same pages twice": lambda p, f: [*f[:3], moved(f[3], PageRange(0, 3, 0, 1)), p.commit(f)],
    "beyond the last block": lambda p, f: [moved(f[0], PageRange(0, 3, 4, 1)), p.commit(f[:1])],
    "beyond the last layer": lambda p, f: [moved(f[0], PageRange(1, 3, 0, 1)), p.commit(f[:1])],
    "far beyond": lambda p, f: [moved(f[0], PageRange(2**32 - 1, 2**32 - 1, 0, 1))],
    "no pages": lambda p, f: [moved(f[0], PageRange(0, 0, 0, 0))],
    "more bytes than pages": lambda p, f: [moved(f[0], PageRange(0, 2, 0, 1))],
    "wrong count": lambda p, f: [*f, p.commit(f, num_frames=3)],
    "wrong number of bytes": lambda p, f: [*f, p.commit(f, num_bytes=1)],
    "wrong checksum of checksums": lambda p, f: [*f, p.commit(f, crc32c=1)],
    "more overlapped than sent": lambda p, f: [*f, p.commit(f, num_bytes_overlapped=10**9)],
    "no commit": lambda p, f: f,
    "nothing after open": lambda p, f: [],
    "garbage": lambda p, f: [b"\xff" * 50],
    "empty message": lambda p, f: [b""],
}


@pytest.mark.parametrize("damage", WRONG.values(), ids=WRONG.keys())
def test_damage_fails_the_whole_transfer(
    pair: Any, damage: Callable[[Any, Frames], Frames]
) -> None:
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [10, 11, 12, 13], 0, 30.0)
    frames = pair.frames([0, 1, 2, 3])
    assert pair.stream([pair.opened(target, 4), *damage(pair, frames)]) == DATA_LOSS
    (outcome,) = pair.outcomes()
    assert outcome.transfer_id == target.transfer_id
    assert outcome.record is None
    assert outcome.error
    others = [block for block in range(64) if not 10 <= block < 14]
    assert not pair.target_store.pages[:, others].any()


def test_undamaged_frames_pass(pair: Any) -> None:
    """Or else the test above would prove nothing."""
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [10, 11, 12, 13], 0, 30.0)
    frames = pair.frames([0, 1, 2, 3])
    messages = [pair.opened(target, 4), *frames, pair.commit(frames)]
    assert pair.stream(messages) == grpc.StatusCode.OK
    assert pair.outcomes()[0].error == ""


def test_a_block_that_is_reused_must_not_be_overwritten(pair: Any) -> None:
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [10, 11], 1, 30.0)
    frames = pair.frames([0, 1])
    assert pair.stream([pair.opened(target, 2), *frames, pair.commit(frames)]) == DATA_LOSS
    assert pair.outcomes()[0].error
    assert not pair.target_store.pages.any()


def test_a_second_open_fails_the_transfer(pair: Any) -> None:
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [10], 0, 30.0)
    assert pair.stream([pair.opened(target, 1), pair.opened(target, 1)]) == DATA_LOSS
    assert pair.outcomes()[0].error


@pytest.mark.parametrize("num_blocks", [0, 1, 3, 2**32 - 1])
def test_another_number_of_blocks_fails_the_transfer(pair: Any, num_blocks: int) -> None:
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [10, 11], 0, 30.0)
    assert pair.stream([pair.opened(target, num_blocks)]) == DATA_LOSS
    assert "announced" in pair.outcomes()[0].error


@pytest.mark.parametrize(
    "change", [{"layout_digest": b"x" * 32}, {"num_layers": 2}, {"page_bytes": 0}]
)
def test_another_layout_fails_the_transfer(pair: Any, change: dict[str, object]) -> None:
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [10], 0, 30.0)
    code = pair.stream([pair.opened(target, 1, **change)])
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert pair.outcomes()[0].error


def test_a_stream_without_a_ticket_gets_nowhere(pair: Any) -> None:
    frames = pair.frames([0])
    assert pair.stream([*frames, pair.commit(frames)]) == DATA_LOSS
    assert not pair.target_store.pages.any()


@pytest.mark.parametrize("kind", ["wrong", "expired", "of another transfer", "none"])
def test_without_its_ticket_nobody_touches_a_transfer(pair: Any, kind: str) -> None:
    target = pair.target()
    long_ago = TicketMint(b"shared by a worker and its engine", now_s=lambda: 0.0, ttl_s=1e-6)
    transfer_id, ticket = {
        "wrong": (target.transfer_id, b"x" * len(target.ticket)),
        "expired": long_ago.mint("request"),
        "of another transfer": (target.transfer_id, pair.target().ticket),
        "none": (target.transfer_id, b""),
    }[kind]
    pair.receiver.expect(target.transfer_id, [10], 0, 30.0)
    if transfer_id != target.transfer_id:
        pair.receiver.expect(transfer_id, [11], 0, 30.0)
    frames = pair.frames([0])
    opened = pair.opened(target, 1, transfer_id=transfer_id, ticket=ticket)
    code = pair.stream([opened, *frames, pair.commit(frames)])
    assert code == grpc.StatusCode.PERMISSION_DENIED
    assert pair.receiver.poll() == []
    assert not pair.target_store.pages.any()
    pair.send(target, [0])
    assert pair.outcomes()[0].error == ""


def test_a_ticket_is_good_for_one_stream(pair: Any) -> None:
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [10], 0, 30.0)
    pair.send(target, [0])
    assert pair.outcomes()[0].error == ""
    assert pair.stream([pair.opened(target, 1)]) == grpc.StatusCode.PERMISSION_DENIED
