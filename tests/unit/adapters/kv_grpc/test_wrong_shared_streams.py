"""Whatever a sender on the same host does wrong, in words or in memory, commits nothing."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from headway.adapters.kv_grpc import segment, shared_offers
from headway.adapters.kv_grpc.checksums import checksum_of_checksums
from headway.adapters.kv_grpc.frames import GatheredFrame, cut, gather_into
from headway.adapters.kv_grpc.segment import map_offered
from headway.ports.engine import KvTarget
from headway.v1 import kv_transfer_service_pb2 as pb

DATA_LOSS = grpc.StatusCode.DATA_LOSS
THEIRS = [10, 11, 12, 13]


@pytest.fixture
def shares_memory() -> bool:
    return True


class Hand:
    """A sender on the receiver's host that says and writes what it is told to."""

    def __init__(self, pair: Any) -> None:
        self.pair = pair
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(pair.receiver.address)
        push: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(
            "/headway.v1.KvTransferService/PushShared"
        )
        self._call = push(iter(self._requests.get, None))
        self.slots: list[memoryview] = []

    def hello(self, target: KvTarget) -> bool:
        """Whether memory is offered."""
        hello = pb.SharedHello(transfer_id=target.transfer_id, ticket=target.ticket)
        self._requests.put(pb.PushSharedRequest(hello=hello).SerializeToString())
        response = pb.PushSharedResponse.FromString(next(self._call))
        self.slots = map_offered(response.segment) or []
        return bool(self.slots)

    def say(self, *steps: pb.SharedStep) -> None:
        self._requests.put(pb.PushSharedRequest(steps=steps).SerializeToString())

    def end(self) -> None:
        self._requests.put(None)

    def results(self) -> Iterator[pb.SharedResult]:
        for response in self._call:
            yield from pb.PushSharedResponse.FromString(response).results

    def last_result(self, number: int) -> pb.SharedResult:
        """What the receiver says of a transfer when it has ended."""
        for result in self.results():
            is_last = result.HasField("failed") or result.response.HasField("committed")
            if is_last and result.transfer_number == number:
                return result
        raise AssertionError("the stream ended before the transfer")

    def code(self) -> grpc.StatusCode:
        """How the stream ended."""
        try:
            for _ in self._call:
                pass
        except grpc.RpcError:
            pass
        code: grpc.StatusCode = self._call.code()
        return code

    def close(self) -> None:
        self.end()
        self._call.cancel()
        self._channel.close()

    # Steps of one transfer of four blocks, a frame for each.

    def opened(self, target: KvTarget, number: int = 1, **changes: object) -> pb.SharedStep:
        request = pb.PushRequest.FromString(self.pair.opened(target, 4, **changes))
        return pb.SharedStep(transfer_number=number, open=request.open)

    def frames(self, number: int = 1) -> list[pb.SharedStep]:
        self.gathered: list[GatheredFrame] = []
        steps = []
        for slot in range(4):
            pages = next(cut(self.pair.layout, slot, 1))
            views = [self.pair.source.pages[layer, slot].data for layer in range(3)]
            self.gathered.append(gather_into(self.slots[slot], slot, slot, pages, views))
            frame = pb.SharedFrame(
                slot=slot,
                sequence=slot,
                first_layer=0,
                num_layers=3,
                first_block=slot,
                num_blocks=1,
                crc32c=self.gathered[-1].frame.crc32c,
            )
            steps.append(pb.SharedStep(transfer_number=number, frame=frame))
        return steps

    def commit(self, number: int = 1, **changes: int) -> pb.SharedStep:
        crc32c = 0
        for gathered in self.gathered:
            crc32c = checksum_of_checksums(gathered.frame.crc32c, crc32c)
        fields = {"num_frames": 4, "num_bytes": 4 * 3000, "crc32c": crc32c} | changes
        return pb.SharedStep(transfer_number=number, commit=pb.PushCommit(**fields))


@pytest.fixture
def hand(pair: Any) -> Iterator[Hand]:
    hand = Hand(pair)
    yield hand
    hand.close()


def expected(pair: Any) -> KvTarget:
    target: KvTarget = pair.target()
    pair.receiver.expect(target.transfer_id, THEIRS, 0, 30.0)
    return target


def scribble(hand: Hand, slot: int, index: int) -> None:
    hand.slots[slot][index] ^= 0x10


def changed(step: pb.SharedStep, **fields: int) -> pb.SharedStep:
    copy = pb.SharedStep()
    copy.CopyFrom(step)
    for name, value in fields.items():
        setattr(copy.frame, name, value)
    return copy


Steps = list[pb.SharedStep]

WRONG: dict[str, Callable[[Hand, Steps], Steps | None]] = {
    "first byte in memory": lambda h, f: scribble(h, 0, 0),
    "last byte in memory": lambda h, f: scribble(h, 3, 2999),
    "checksum": lambda h, f: [changed(f[0], crc32c=f[0].frame.crc32c ^ 1), *f[1:]],
    "slot of another frame": lambda h, f: [changed(f[0], slot=1), *f[1:]],
    "no such slot": lambda h, f: [*f[:3], changed(f[3], slot=len(h.slots))],
    "far from any slot": lambda h, f: [*f[:3], changed(f[3], slot=2**32 - 1)],
    "sequence": lambda h, f: [f[0], changed(f[1], sequence=7), *f[2:]],
    "beyond the last layer": lambda h, f: [changed(f[0], first_layer=1), *f[1:]],
    "beyond the last block": lambda h, f: [*f[:3], changed(f[3], first_block=4)],
    "more than a slot": lambda h, f: [changed(f[0], num_blocks=2**20), *f[1:]],
    "more than anything": lambda h, f: [changed(f[0], num_blocks=2**32 - 1, num_layers=2**32 - 1)],
    "no pages": lambda h, f: [changed(f[0], num_blocks=0), *f[1:]],
    "fewer pages": lambda h, f: [changed(f[0], num_layers=2), *f[1:]],
    "twice": lambda h, f: [f[0], f[0], *f[1:]],
    "one left out": lambda h, f: f[:3],
    "commit of something else": lambda h, f: [*f, h.commit(crc32c=1)],
    "open again in a frame's place": lambda h, f: [*f, pb.SharedStep(transfer_number=1)],
}


@pytest.mark.parametrize("damage", WRONG.values(), ids=WRONG.keys())
def test_damage_fails_the_whole_transfer(
    pair: Any, hand: Hand, damage: Callable[[Hand, Steps], Steps | None]
) -> None:
    target = expected(pair)
    assert hand.hello(target)
    frames = hand.frames()
    damaged = damage(hand, frames)
    hand.say(hand.opened(target), *(frames if damaged is None else damaged), hand.commit())
    failed = hand.last_result(1).failed
    assert failed.code == DATA_LOSS.value[0]
    (outcome,) = pair.outcomes()
    assert (outcome.record, outcome.error) == (None, failed.message)
    others = [block for block in range(64) if block not in THEIRS]
    assert not pair.target_store.pages[:, others].any()
    # The stream goes on: its other transfers are none the worse.
    target = expected(pair)
    hand.say(hand.opened(target, 2), *hand.frames(2), hand.commit(2))
    assert hand.last_result(2).response.HasField("committed")
    assert pair.outcomes()[0].error == ""
    assert (pair.target_store.pages[:, THEIRS] == pair.source.pages[:, :4]).all()


def test_scribbling_after_the_acknowledgement_changes_nothing(pair: Any, hand: Hand) -> None:
    target = expected(pair)
    assert hand.hello(target)
    hand.say(hand.opened(target), *hand.frames())
    for result in hand.results():
        if result.response.progress.num_bytes == 4 * 3000:
            break
    for slot in hand.slots:
        slot[:] = bytes(slot.nbytes)
    hand.say(hand.commit())
    assert hand.last_result(1).response.HasField("committed")
    assert pair.outcomes()[0].error == ""
    assert (pair.target_store.pages[:, THEIRS] == pair.source.pages[:, :4]).all()


@pytest.mark.parametrize("kind", ["wrong", "used", "none", "of another receiver"])
def test_no_memory_is_offered_without_a_ticket(pair: Any, hand: Hand, kind: str) -> None:
    target = expected(pair)
    if kind == "used":
        pair.send(target, [0, 1, 2, 3])
        assert pair.outcomes()[0].error == ""
    ticket = {
        "wrong": b"x" * len(target.ticket),
        "used": target.ticket,
        "none": b"",
        "of another receiver": pair.target().ticket,
    }[kind]
    num_segments = len(pair.receiver._offers)
    with pytest.raises(grpc.RpcError):
        hand.hello(KvTarget(target.address, target.transfer_id, ticket))
    assert hand.code() == grpc.StatusCode.PERMISSION_DENIED
    assert len(pair.receiver._offers) == num_segments


def test_having_memory_does_not_replace_the_ticket(pair: Any, hand: Hand) -> None:
    target = expected(pair)
    assert hand.hello(target)
    hand.say(hand.opened(target, ticket=b""), *hand.frames(), hand.commit())
    assert hand.last_result(1).failed.code == grpc.StatusCode.PERMISSION_DENIED.value[0]
    # The hello has not used the ticket up either: the true sender may come.
    hand.say(hand.opened(target, 2), *hand.frames(2), hand.commit(2))
    assert hand.last_result(2).response.HasField("committed")
    hand.say(hand.opened(target, 3))
    assert hand.last_result(3).failed.code == grpc.StatusCode.PERMISSION_DENIED.value[0]
    assert [outcome.error for outcome in pair.outcomes()] == [""]


def test_another_layout_fails_the_transfer(pair: Any, hand: Hand) -> None:
    target = expected(pair)
    assert hand.hello(target)
    hand.say(hand.opened(target, page_bytes=999), *hand.frames(), hand.commit())
    assert hand.last_result(1).failed.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert pair.outcomes()[0].error


def test_an_abort_ends_one_transfer(pair: Any, hand: Hand) -> None:
    target = expected(pair)
    assert hand.hello(target)
    abort = pb.SharedStep(transfer_number=1, abort=pb.SharedAbort())
    hand.say(hand.opened(target), *hand.frames(), abort, hand.commit())
    assert hand.last_result(1).failed.code == grpc.StatusCode.CANCELLED.value[0]
    assert "broke off" in pair.outcomes()[0].error


UNRULY: dict[str, Callable[[Hand, KvTarget], list[pb.SharedStep]]] = {
    "frame of a transfer that was not opened": lambda h, t: [h.opened(t), h.frames(2)[0]],
    "number used again": lambda h, t: [h.opened(t), h.opened(t)],
    "more frames than slots": lambda h, t: [h.opened(t), *h.frames() * 2],
}


@pytest.mark.parametrize("say", UNRULY.values(), ids=UNRULY.keys())
def test_a_stream_out_of_order_ends_with_all_its_transfers(
    pair: Any,
    hand: Hand,
    say: Callable[[Hand, KvTarget], list[pb.SharedStep]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segment, "_SLOTS_BYTES", 0)
    target = expected(pair)
    assert hand.hello(target)
    assert len(hand.slots) == 4
    hand.say(*say(hand, target))
    assert hand.code() == DATA_LOSS
    assert pair.outcomes()[0].error
    assert len(pair.receiver._offers) == 0


@pytest.mark.parametrize("first", [b"\xff\xff", b"", "steps", "nothing"])
def test_a_stream_starts_with_hello(pair: Any, hand: Hand, first: bytes | str) -> None:
    target = expected(pair)
    match first:
        case "nothing":
            hand.end()
        case "steps":
            hand.say(hand.opened(target))
        case bytes():
            hand._requests.put(first)
    assert hand.code() == DATA_LOSS
    pair.send(target, [0, 1, 2, 3])
    assert pair.outcomes()[0].error == ""


def test_only_so_much_memory_is_offered(
    pair: Any, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_offers, "_MAX_SEGMENTS", 1)
    target = expected(pair)
    assert hand.hello(target)
    other = expected(pair)
    second = Hand(pair)
    assert not second.hello(other)
    assert second.code() == grpc.StatusCode.OK
    second.close()
    # And is offered again when it was given back.
    hand.close()
    while pair.receiver._offers:
        pass
    third = Hand(pair)
    assert third.hello(other)
    third.close()
    for transfer in (target, other):
        pair.receiver.abort(transfer.transfer_id)


def test_a_ticket_gets_memory_once(pair: Any, hand: Hand) -> None:
    target = expected(pair)
    assert hand.hello(target)
    second = Hand(pair)
    assert not second.hello(target)
    second.close()
    hand.say(hand.opened(target), *hand.frames(), hand.commit())
    assert hand.last_result(1).response.HasField("committed")
