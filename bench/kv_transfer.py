"""How fast KV pages move: our gRPC transport against plain sockets and a plain memory copy.

    python -m bench.kv_transfer [--quick] [--out bench/results]

Two processes, as a prefill and a decode engine would be. Rounds of all methods are
interleaved, so that a noisy machine disturbs all of them alike. All bytes are compared at the
end of each case. The methods:

    memory copy    numpy, in one process, buffers warm
    plain socket   sendall and recv_into between two contiguous buffers, nothing checked
    paged socket   sockets that do what a transfer must: gather pages, checksum them, check
                   them, put them into blocks
    headway gRPC   KvSender to KvReceiver, from open to commit
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
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

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
        self.frame_buffers = [
            bytearray(HEADER_BYTES + MAX_PAYLOAD_BYTES) for _ in range(max(CASES))
        ]
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
                transfer.verify(frame)
                transfer.write(frame, self.store)
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
        digest = hashlib.sha256(self.store.pages[:, :num_blocks].tobytes()).hexdigest()
        self.store.pages[:] = 1
        return digest

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

    def send_pages(self, num_blocks: int) -> int:
        def send(index: int) -> None:
            first = index * num_blocks
            for sequence, pages in enumerate(cut(LAYOUT, 0, num_blocks)):
                blocks = range(
                    first + pages.first_block, first + pages.first_block + pages.num_blocks
                )
                layers = range(pages.first_layer, pages.first_layer + pages.num_layers)
                views = [view for layer in layers for view in self.store.read(layer, blocks)]
                self.sockets[index].sendall(encode(sequence, pages, views))

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


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure_throughput(prefill: Remote, decode: Remote, num_rounds: int) -> list[dict[str, Any]]:
    """MB/s of each method for each number of concurrent transfers."""
    rows = []
    port = decode.call("port")
    for number, num_blocks in CASES.items():
        decode.pipe.send(("accept", (number,)))
        prefill.call("connect", number, port)
        decode.pipe.recv()
        num_bytes = number * num_blocks * BLOCK_BYTES
        expected_digest = prefill.call("digest", number * num_blocks)
        rounds: list[dict[str, int]] = []
        for _ in range(num_rounds + 1):
            took_ns = {"memory copy": prefill.call("copy_memory", number * num_blocks)}
            decode.call("receive_sockets", num_blocks)
            started_ns = prefill.call("send_sockets", num_blocks)
            took_ns["plain socket"] = decode.call("sockets_received") - started_ns
            decode.call("receive_pages", num_blocks)
            started_ns = prefill.call("send_pages", num_blocks)
            took_ns["paged socket"] = decode.call("sockets_received") - started_ns
            assert decode.call("digest", number * num_blocks) == expected_digest
            targets = decode.call("expect", number, num_blocks)
            started_ns = prefill.call("send", targets, num_blocks)
            took_ns["headway gRPC"] = decode.call("committed", number) - started_ns
            assert decode.call("digest", number * num_blocks) == expected_digest
            rounds.append(took_ns)
        measured = rounds[1:]  # the first one warms up
        rows.append(
            {
                "num_concurrent": number,
                "bytes_each": num_blocks * BLOCK_BYTES,
                "mb_per_s": {
                    method: spread([num_bytes * 1e3 / took_ns[method] for took_ns in measured])
                    for method in measured[0]
                },
                "slower_than_plain_socket": spread(
                    [took_ns["headway gRPC"] / took_ns["plain socket"] for took_ns in measured]
                ),
                "slower_than_paged_socket": spread(
                    [took_ns["headway gRPC"] / took_ns["paged socket"] for took_ns in measured]
                ),
            }
        )
    return rows


def measure_added_ttft(prefill: Remote, decode: Remote, num_rounds: int) -> list[dict[str, Any]]:
    """Time from the last chunk computed to the commit; chunks take `step_s` to compute."""
    num_blocks = CASES[1]
    rows = []
    for step_s in (0.02, 0.1):
        added_ms: dict[str, list[float]] = {"send_chunks": [], "send_whole": []}
        for _ in range(num_rounds + 1):
            for method, values in added_ms.items():
                (target,) = decode.call("expect", 1, num_blocks)
                computed_ns = prefill.call(method, target, num_blocks, step_s)
                values.append((decode.call("committed", 1) - computed_ns) / 1e6)
        rows.append(
            {
                "bytes": num_blocks * BLOCK_BYTES,
                "num_chunks": NUM_CHUNKS,
                "chunk_compute_s": step_s,
                "chunk_wise_ms": spread(added_ms["send_chunks"][1:]),
                "whole_ms": spread(added_ms["send_whole"][1:]),
            }
        )
    return rows


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = [line.split(":")[1].strip() for line in info.splitlines() if "model name" in line]
    return {
        "cpu": models[0],
        "num_cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("grpcio", "numpy", "google-crc32c")},
        "malloc": MALLOC,
        "load_average_before": os.getloadavg(),
    }


def as_text(row: dict[str, float], digits: int = 0) -> str:
    return f"{row['median']:.{digits}f} ({row['min']:.{digits}f}-{row['max']:.{digits}f})"


def markdown(result: dict[str, Any]) -> str:
    about = result["machine"]
    methods = list(result["throughput"][0]["mb_per_s"])
    lines = [
        "# KV transfer",
        "",
        f"`{result['command']}` on {about['num_cores']} x {about['cpu']}, shared with other work"
        f" (load average before: {', '.join(f'{x:.1f}' for x in about['load_average_before'])}),"
        f" Python {about['python']}, "
        + ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        + f". {result['num_rounds']} interleaved rounds; median (min-max).",
        "",
        "MB/s over loopback, two processes, checksums on for gRPC and the paged socket:",
        "",
        "| transfers x MB | " + " | ".join(methods) + " | gRPC : plain | gRPC : paged |",
        "|---" * (len(methods) + 3) + "|",
    ]
    lines += [
        f"| {row['num_concurrent']} x {row['bytes_each'] / 1e6:.1f} | "
        + " | ".join(as_text(row["mb_per_s"][method]) for method in methods)
        + f" | {as_text(row['slower_than_plain_socket'], 1)}"
        + f" | {as_text(row['slower_than_paged_socket'], 1)} |"
        for row in result["throughput"]
    ]
    lines += [
        "",
        "The last two columns say how many times longer gRPC takes, round by round.",
        "",
        "Added TTFT: milliseconds from the last chunk computed to the commit:",
        "",
        "| MB | chunks | compute per chunk | sent chunk by chunk | sent whole |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['bytes'] / 1e6:.1f} | {row['num_chunks']} | {row['chunk_compute_s'] * 1e3:.0f} ms |"
        f" {as_text(row['chunk_wise_ms'], 1)} | {as_text(row['whole_ms'], 1)} |"
        for row in result["added_ttft"]
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    arguments = parser.parse_args()
    num_rounds = 5 if arguments.quick else 25
    os.environ.update(MALLOC)  # for the processes started from here
    about = machine()
    prefill, decode = Remote.start(PrefillSide), Remote.start(DecodeSide)
    result = {
        "command": "python -m bench.kv_transfer" + (" --quick" if arguments.quick else ""),
        "machine": about,
        "num_rounds": num_rounds,
        "throughput": measure_throughput(prefill, decode, num_rounds),
        "added_ttft": measure_added_ttft(prefill, decode, num_rounds),
    }
    prefill.close()
    decode.close()
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = markdown(result)
    (arguments.out / "kv_transfer.json").write_text(json.dumps(result, indent=2) + "\n")
    (arguments.out / "kv_transfer.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
