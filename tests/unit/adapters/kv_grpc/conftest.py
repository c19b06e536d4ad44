"""A sender and a receiver in one process, over a real connection on loopback."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest

from headway.adapters.kv_grpc.checksums import checksum_of_checksums
from headway.adapters.kv_grpc.frames import PageFrame, cut, decode, encode
from headway.adapters.kv_grpc.layout import PageLayout
from headway.adapters.kv_grpc.numpy_store import NumpyPageStore
from headway.adapters.kv_grpc.receiver import KvReceiver, TransferOutcome
from headway.adapters.kv_grpc.sender import KvSender
from headway.adapters.kv_grpc.tickets import TicketMint
from headway.ports.engine import KvTarget
from headway.v1 import kv_transfer_service_pb2 as pb

PUSH = "/headway.v1.KvTransferService/Push"
SECRET = b"shared by a worker and its engine"
LAYOUT = PageLayout(num_layers=3, page_bytes=1000, digest=b"d" * 32)


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread; the test's own timeout bounds it."""
    while not condition():
        time.sleep(0.002)


@dataclass
class Pair:
    """Two engines' KV memories of different sizes, and the transport between them."""

    layout: PageLayout = LAYOUT
    stall_timeout_s: float = 30.0
    max_staged_bytes: int = 64 << 20
    shares_memory: bool = False
    mint: TicketMint = field(default_factory=lambda: TicketMint(SECRET))

    def __post_init__(self) -> None:
        self.source = NumpyPageStore(40, self.layout)
        self.source.pages[:] = np.random.default_rng(1).integers(
            1, 256, self.source.pages.shape, np.uint8
        )
        self.target_store = NumpyPageStore(64, self.layout)
        self.receiver = KvReceiver(
            "127.0.0.1",
            self.layout,
            self.target_store,
            SECRET,
            shares_memory=self.shares_memory,
        )
        self.sender = KvSender(
            self.layout,
            self.source,
            max_staged_bytes=self.max_staged_bytes,
            stall_timeout_s=self.stall_timeout_s,
        )

    def target(self, request_id: str = "request") -> KvTarget:
        transfer_id, ticket = self.mint.mint(request_id)
        return KvTarget(self.receiver.address, transfer_id, ticket)

    def send(self, target: KvTarget, block_ids: list[int], *, num_chunks: int = 1) -> None:
        self.sender.open(target, len(block_ids), "")
        size = -(-len(block_ids) // num_chunks)
        for first in range(0, len(block_ids), size):
            self.sender.push_pages(target.transfer_id, first, block_ids[first : first + size])
        self.sender.prompt_computed(target.transfer_id)

    def outcomes(self, number: int = 1) -> list[TransferOutcome]:
        found: list[TransferOutcome] = []

        def arrived() -> bool:
            found.extend(self.receiver.poll())
            return len(found) >= number

        until(arrived)
        return found

    def until_at_rest(self) -> None:
        until(lambda: self.sender.counters().num_created == self.sender.counters().num_released)
        until(lambda: self.receiver.counters().num_created == self.receiver.counters().num_released)

    # By hand, for streams that our sender would never send.

    def opened(self, target: KvTarget, num_blocks: int, **changes: object) -> bytes:
        fields: dict[str, object] = {
            "transfer_id": target.transfer_id,
            "ticket": target.ticket,
            "layout_digest": self.layout.digest,
            "num_blocks": num_blocks,
            "num_layers": self.layout.num_layers,
            "page_bytes": self.layout.page_bytes,
        }
        opened = pb.PushOpen(**(fields | changes))  # type: ignore[arg-type]
        return pb.PushRequest(open=opened).SerializeToString()

    def frames(self, block_ids: list[int]) -> list[bytes]:
        """A page frame for each block."""
        return [
            encode(
                sequence,
                next(cut(self.layout, sequence, 1)),
                [
                    self.source.pages[layer, block_id].data
                    for layer in range(self.layout.num_layers)
                ],
            )
            for sequence, block_id in enumerate(block_ids)
        ]

    @staticmethod
    def commit(frames: list[bytes], **changes: int) -> bytes:
        crc32c = num_bytes = 0
        for message in frames:
            frame = decode(message)
            assert isinstance(frame, PageFrame)
            crc32c = checksum_of_checksums(frame.crc32c, crc32c)
            num_bytes += frame.payload.nbytes
        fields = {"num_frames": len(frames), "num_bytes": num_bytes, "crc32c": crc32c}
        return pb.PushRequest(commit=pb.PushCommit(**(fields | changes))).SerializeToString()

    def stream(self, messages: list[bytes]) -> grpc.StatusCode:
        """Send raw messages on a stream of their own; how it ended."""
        with grpc.insecure_channel(self.receiver.address) as channel:
            push: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(PUSH)
            call = push(iter(messages))
            try:
                for _ in call:
                    pass
            except grpc.RpcError:
                pass
            code: grpc.StatusCode = call.code()
            return code

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


@pytest.fixture(params=[True, False], ids=["shared memory", "messages"])
def shares_memory(request: pytest.FixtureRequest) -> bool:
    """What is true of all transfers is true of them both ways."""
    is_shared: bool = request.param
    return is_shared


@pytest.fixture
def make_pair(shares_memory: bool) -> Iterator[Callable[..., Pair]]:
    pairs: list[Pair] = []

    def make(**changes: object) -> Pair:
        pairs.append(Pair(**({"shares_memory": shares_memory} | changes)))  # type: ignore[arg-type]
        return pairs[-1]

    yield make
    for pair in pairs:
        # On every way out of every test: nothing staged is left.
        pair.until_at_rest()
        pair.close()
        pair.until_at_rest()


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair()
