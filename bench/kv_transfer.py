"""How fast KV pages move: our gRPC transport against a plain socket and a plain memory copy.

    python bench/kv_transfer.py [--quick] [--out bench/results]

Two processes, as a prefill and a decode engine would be. Rounds of all three methods are
interleaved, so that a noisy machine disturbs all of them alike. Every byte is compared once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing as mp
import os
import platform
import socket
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from headway.adapters.kv_grpc.layout import PageLayout
from headway.adapters.kv_grpc.numpy_store import NumpyPageStore
from headway.adapters.kv_grpc.receiver import KvReceiver
from headway.adapters.kv_grpc.sender import KvSender
from headway.adapters.kv_grpc.tickets import TicketMint
from headway.ports import KvTarget

# As SmolLM2-135M in float32: 30 layers, 3 KV heads of 64, keys and values, 16 tokens a block.
LAYOUT = PageLayout(30, 2 * 3 * 64 * 16 * 4, hashlib.sha256(b"bench").digest())
BLOCK_BYTES = LAYOUT.num_layers * LAYOUT.page_bytes
NUM_BLOCKS = 48
# Concurrent transfers: blocks of each, about 32 MB together.
CASES = {1: 45, 4: 11, 16: 3}
SECRET = b"one secret of the bench"
NUM_CHUNKS = 5

# Without these, glibc gives every buffer of more than 128 KiB back to the kernel and touches
# fresh pages for the next one, which is very slow in virtual machines.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824"}


class DecodeSide:
    """The process that receives."""

    def __init__(self) -> None:
        self.store = NumpyPageStore(NUM_BLOCKS, LAYOUT)
        self.store.pages[:] = 1
        self.receiver = KvReceiver("127.0.0.1", LAYOUT, self.store, SECRET)
        self.mint = TicketMint(SECRET)
        self.buffer = np.ones(NUM_BLOCKS * BLOCK_BYTES, np.uint8)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.sockets: list[socket.socket] = []
        self.pool = ThreadPoolExecutor(max(CASES))
        self.pending: list[Any] = []

    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def accept(self, number: int) -> None:
        self.sockets = [self.listener.accept()[0] for _ in range(number)]

    def receive_sockets(self, num_blocks: int) -> None:
        """Start to read; `sockets_received` waits."""
        size = num_blocks * BLOCK_BYTES

        def receive(index: int) -> int:
            view = memoryview(self.buffer)[index * size : (index + 1) * size]
            while view:
                view = view[self.sockets[index].recv_into(view) :]
            return time.time_ns()

        self.pending = [self.pool.submit(receive, index) for index in range(len(self.sockets))]

    def sockets_received(self) -> int:
        return max(int(future.result()) for future in self.pending)

    def expect(self, number: int, num_blocks: int) -> list[KvTarget]:
        targets = []
        for index in range(number):
            transfer_id, ticket = self.mint.mint(f"request-{index}")
            blocks = range(index * num_blocks, (index + 1) * num_blocks)
            self.receiver.expect(transfer_id, blocks, 0, 30.0)
            targets.append(KvTarget(self.receiver.address, transfer_id, ticket))
        return targets

    def committed(self, number: int) -> int:
        ended_ns = []
        while len(ended_ns) < number:
            for outcome in self.receiver.poll():
                assert outcome.record is not None, outcome.error
                ended_ns.append(outcome.record.ended_unix_ns)
            time.sleep(0.002)
        return max(ended_ns)

    def digest(self, num_blocks: int) -> str:
        return hashlib.sha256(self.store.pages[:, :num_blocks].tobytes()).hexdigest()

    def close(self) -> None:
        self.receiver.close()
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

    def connect(self, number: int, port: int) -> None:
        self.sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(number)]

    def send_sockets(self, num_blocks: int) -> int:
        flat = memoryview(self.store.pages.reshape(-1))
        size = num_blocks * BLOCK_BYTES
        started_ns = time.time_ns()
        for future in [
            self.pool.submit(one.sendall, flat[index * size : (index + 1) * size])
            for index, one in enumerate(self.sockets)
        ]:
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
        self.sender.close()
        self.pool.shutdown()


def serve(side_class: type[DecodeSide] | type[PrefillSide], pipe: Connection) -> None:
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
    def start(cls, side_class: type[DecodeSide] | type[PrefillSide]) -> Remote:
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


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure_throughput(prefill: Remote, decode: Remote, num_rounds: int) -> list[dict[str, Any]]:
    """MB/s of each method for each number of concurrent transfers."""
    rows = []
    for number, num_blocks in CASES.items():
        decode.pipe.send(("accept", (number,)))
        prefill.call("connect", number, PORT.value)
        decode.pipe.recv()
        num_bytes = number * num_blocks * BLOCK_BYTES
        measured: dict[str, list[float]] = {"memory copy": [], "socket": [], "headway gRPC": []}
        for _ in range(num_rounds + 1):
            measured["memory copy"].append(prefill.call("copy_memory", number * num_blocks))
            decode.call("receive_sockets", num_blocks)
            started_ns = prefill.call("send_sockets", num_blocks)
            measured["socket"].append(decode.call("sockets_received") - started_ns)
            targets = decode.call("expect", number, num_blocks)
            started_ns = prefill.call("send", targets, num_blocks)
            measured["headway gRPC"].append(decode.call("committed", number) - started_ns)
        blocks = number * num_blocks
        assert decode.call("digest", blocks) == prefill.call("digest", blocks)
        rows.append(
            {
                "num_concurrent": number,
                "bytes_each": num_blocks * BLOCK_BYTES,
                # The first round warms up.
                "mb_per_s": {
                    name: spread([num_bytes / 1e6 / (ns / 1e9) for ns in values[1:]])
                    for name, values in measured.items()
                },
            }
        )
    return rows
