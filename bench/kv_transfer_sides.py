"""The two processes of bench/kv_transfer.py."""

from __future__ import annotations

import hashlib
import multiprocessing as mp
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bench.bare_grpc import BareReceiver, BareSender
from headway.adapters.kv_grpc.frames import (
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    PageFrame,
    cut,
    decode,
    encode,
)
from headway.adapters.kv_grpc.incoming import IncomingTransfer
from headway.adapters.kv_grpc.layout import PageLayout
from headway.adapters.kv_grpc.numpy_store import NumpyPageStore
from headway.adapters.kv_grpc.receiver import KvReceiver
from headway.adapters.kv_grpc.sender import KvSender
from headway.adapters.kv_grpc.tickets import TicketMint
from headway.ports.engine import KvTarget

# As SmolLM2-135M in float32: 30 layers, 3 KV heads of 64, keys and values, 16 tokens a block.
LAYOUT = PageLayout(30, 2 * 3 * 64 * 16 * 4, hashlib.sha256(b"bench").digest())
BLOCK_BYTES = LAYOUT.num_layers * LAYOUT.page_bytes
NUM_BLOCKS = 48
# Concurrent transfers: blocks of each, about 32 MB together.
CASES = {1: 45, 4: 11, 16: 3}
SECRET = b"one secret of the bench"
NUM_CHUNKS = 5

# The two ways of our transport: what it chooses on one host, and all there is between hosts.
SHARED = "headway, one host"
MESSAGES = "headway, messages only"


class DecodeSide:
    """The process that receives."""

    def __init__(self) -> None:
        self.store = NumpyPageStore(NUM_BLOCKS, LAYOUT)
        self.store.pages[:] = 1
        self.receivers = {
            SHARED: KvReceiver("127.0.0.1", LAYOUT, self.store, SECRET),
            MESSAGES: KvReceiver("127.0.0.1", LAYOUT, self.store, SECRET, shares_memory=False),
        }
        self.mint = TicketMint(SECRET)
        self.buffer = np.ones(NUM_BLOCKS * BLOCK_BYTES, np.uint8)
        self.frame_buffers = [
            bytearray(HEADER_BYTES + MAX_PAYLOAD_BYTES) for _ in range(max(CASES))
        ]
        self.bare = BareReceiver()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.sockets: list[socket.socket] = []
        self.pool = ThreadPoolExecutor(max(CASES))
        self.pending: list[Any] = []

    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def bare_port(self) -> int:
        return self.bare.port

    def accept(self, number: int) -> None:
        self.sockets = [self.listener.accept()[0] for _ in range(number)]

    def receive_sockets(self, num_blocks: int) -> None:
        """Start to read; `sockets_received` waits."""
        size = num_blocks * BLOCK_BYTES

        def receive(index: int) -> int:
            view = self.buffer.data[index * size : (index + 1) * size]
            while view:
                view = view[self.sockets[index].recv_into(view) :]
            return time.time_ns()

        self.pending = [self.pool.submit(receive, index) for index in range(len(self.sockets))]

    def receive_pages(self, num_blocks: int) -> None:
        """As `receive_sockets`, with everything that our transport does to a page."""

        def receive(index: int) -> int:
            block_ids = range(index * num_blocks, (index + 1) * num_blocks)
            transfer = IncomingTransfer("", LAYOUT, block_ids, 0)
            buffer = memoryview(self.frame_buffers[index])
            for pages in cut(LAYOUT, 0, num_blocks):
                message = buffer[: HEADER_BYTES + pages.num_pages * LAYOUT.page_bytes]
                self.sockets[index].recv_into(message, 0, socket.MSG_WAITALL)
                frame = decode(message)
                assert isinstance(frame, PageFrame)
                transfer.check(frame)
                transfer.write(frame, self.store)
            return time.time_ns()

        self.pending = [self.pool.submit(receive, index) for index in range(len(self.sockets))]

    def sockets_received(self) -> int:
        return max(int(future.result()) for future in self.pending)

    def expect(self, way: str, number: int, num_blocks: int) -> list[KvTarget]:
        receiver = self.receivers[way]
        targets = []
        for index in range(number):
            transfer_id, ticket = self.mint.mint(f"request-{index}")
            blocks = range(index * num_blocks, (index + 1) * num_blocks)
            receiver.expect(transfer_id, blocks, 0, 30.0)
            targets.append(KvTarget(receiver.address, transfer_id, ticket))
        return targets

    def committed(self, way: str, number: int) -> int:
        ended_ns: list[int] = []
        while len(ended_ns) < number:
            for outcome in self.receivers[way].poll():
                assert outcome.record is not None, outcome.error
                ended_ns.append(outcome.record.ended_unix_ns)
            time.sleep(0.02)
        return max(ended_ns)

    def digest(self, num_blocks: int) -> str:
        digest = hashlib.sha256(self.store.pages[:, :num_blocks].tobytes()).hexdigest()
        self.store.pages[:] = 1
        return digest

    def close(self) -> None:
        self.bare.close()
        for receiver in self.receivers.values():
            receiver.close()
        self.pool.shutdown()


class PrefillSide:
    """The process that sends."""

    def __init__(self) -> None:
        self.store = NumpyPageStore(NUM_BLOCKS, LAYOUT)
        self.store.pages[:] = np.random.default_rng(0).integers(
            0, 256, self.store.pages.shape, np.uint8
        )
        self.sender = KvSender(LAYOUT, self.store)
        self.copy = np.ones_like(self.store.pages)
        self.sockets: list[socket.socket] = []
        self.pool = ThreadPoolExecutor(max(CASES))

    def dial_bare(self, port: int) -> None:
        self.bare = BareSender(port)

    def send_bare(self, number: int, num_blocks: int) -> int:
        """The frames of all transfers through grpcio alone; encoded before, read by nobody."""
        transfers = [list(self._frames(index * num_blocks, num_blocks)) for index in range(number)]
        return self.bare.send(transfers)

    def _frames(self, first: int, num_blocks: int) -> Iterator[bytes]:
        for sequence, pages in enumerate(cut(LAYOUT, 0, num_blocks)):
            blocks = range(first + pages.first_block, first + pages.first_block + pages.num_blocks)
            layers = range(pages.first_layer, pages.first_layer + pages.num_layers)
            yield encode(sequence, pages, self.store.read(layers, blocks))

    def connect(self, number: int, port: int) -> None:
        self.sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(number)]

    def send_sockets(self, num_blocks: int) -> int:
        flat = self.store.pages.reshape(-1).data
        size = num_blocks * BLOCK_BYTES
        started_ns = time.time_ns()
        for future in [
            self.pool.submit(one.sendall, flat[index * size : (index + 1) * size])
            for index, one in enumerate(self.sockets)
        ]:
            future.result()
        return started_ns

    def send_pages(self, num_blocks: int) -> int:
        def send(index: int) -> None:
            for message in self._frames(index * num_blocks, num_blocks):
                self.sockets[index].sendall(message)

        started_ns = time.time_ns()
        for future in [self.pool.submit(send, index) for index in range(len(self.sockets))]:
            future.result()
        return started_ns

    def send(self, targets: list[KvTarget], num_blocks: int) -> int:
        started_ns = time.time_ns()
        for target in targets:
            self.sender.open(target, num_blocks, "")
        for index, target in enumerate(targets):
            blocks = range(index * num_blocks, (index + 1) * num_blocks)
            self.sender.push_pages(target.transfer_id, 0, blocks)
            self.sender.prompt_computed(target.transfer_id)
        return started_ns

    def send_chunks(self, target: KvTarget, num_blocks: int, step_s: float) -> int:
        """Chunks of a prompt that take `step_s` each to compute; returns when the last was."""
        self.sender.open(target, num_blocks, "")
        per_chunk = num_blocks // NUM_CHUNKS
        for first in range(0, num_blocks, per_chunk):
            time.sleep(step_s)
            computed_ns = time.time_ns()
            blocks = range(first, min(first + per_chunk, num_blocks))
            self.sender.push_pages(target.transfer_id, first, blocks)
        self.sender.prompt_computed(target.transfer_id)
        return computed_ns

    def send_whole(self, target: KvTarget, num_blocks: int, step_s: float) -> int:
        self.sender.open(target, num_blocks, "")
        time.sleep(step_s * NUM_CHUNKS)
        computed_ns = time.time_ns()
        self.sender.push_pages(target.transfer_id, 0, range(num_blocks))
        self.sender.prompt_computed(target.transfer_id)
        return computed_ns

    def copy_memory(self, num_blocks: int) -> int:
        size = num_blocks * BLOCK_BYTES
        source, target = self.store.pages.reshape(-1)[:size], self.copy.reshape(-1)[:size]
        started_ns = time.perf_counter_ns()
        np.copyto(target, source)
        return time.perf_counter_ns() - started_ns

    def digest(self, num_blocks: int) -> str:
        return hashlib.sha256(self.store.pages[:, :num_blocks].tobytes()).hexdigest()

    def close(self) -> None:
        self.bare.close()
        self.sender.close()
        self.pool.shutdown()


def serve(side_class: type[DecodeSide | PrefillSide], pipe: Connection) -> None:
    """Run one side: perform the calls that come through the pipe."""
    side = side_class()
    while True:
        name, arguments = pipe.recv()
        pipe.send(getattr(side, name)(*arguments))
        if name == "close":
            return


@dataclass(frozen=True)
class Remote:
    """A side in its own process."""

    process: mp.process.BaseProcess
    pipe: Connection

    @classmethod
    def start(cls, side_class: type[DecodeSide | PrefillSide]) -> Remote:
        ours, theirs = mp.Pipe()
        process = mp.get_context("spawn").Process(target=serve, args=(side_class, theirs))
        process.start()
        theirs.close()
        return cls(process, ours)

    def call(self, name: str, *arguments: object) -> Any:
        self.pipe.send((name, arguments))
        return self.pipe.recv()

    def close(self) -> None:
        self.call("close")
        self.process.join()
