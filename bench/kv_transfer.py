"""How fast KV pages move: our gRPC transport against plain sockets and a plain memory copy.

    python -m bench.kv_transfer [--quick] [--out bench/results]

Two processes, as a prefill and a decode engine would be. Rounds of all methods are
interleaved, so that a noisy machine disturbs all of them alike. Where pages are put into blocks
(paged socket, headway) the bytes are compared after every round. The methods:

    memory copy    numpy, in one process, buffers warm
    plain socket   sendall and recv_into between two contiguous buffers, nothing checked
    paged socket   sockets that do what a transfer must: gather pages, checksum them, put
                   them into blocks, check them there
    bare gRPC      the same frames through grpcio alone: no page is gathered, checked or stored
    headway        KvSender to KvReceiver, from open to commit: as it is on one host, with the
                   pages in shared memory, and with messages only, as between hosts
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.kv_transfer_sides import (
    BLOCK_BYTES,
    CASES,
    MESSAGES,
    NUM_CHUNKS,
    SHARED,
    DecodeSide,
    PrefillSide,
    Remote,
)
from headway.adapters.process import MALLOC_ENVIRONMENT

WAYS = (SHARED, MESSAGES)
# Of the time that a plain socket takes.
GOAL = 2.0


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
            took_ns["bare gRPC"] = prefill.call("send_bare", number, num_blocks)
            for way in WAYS:
                targets = decode.call("expect", way, number, num_blocks)
                started_ns = prefill.call("send", targets, num_blocks)
                took_ns[way] = decode.call("committed", way, number) - started_ns
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
                "times_as_long_as": {
                    way: {
                        method: spread([took_ns[way] / took_ns[method] for took_ns in measured])
                        for method in ("plain socket", "paged socket", "bare gRPC")
                    }
                    for way in WAYS
                },
            }
        )
    return rows


def measure_added_ttft(prefill: Remote, decode: Remote, num_rounds: int) -> list[dict[str, Any]]:
    """Time from the last chunk computed to the commit; chunks take `step_s` to compute."""
    num_blocks = CASES[1]
    rows = []
    for way, step_s in itertools.product(WAYS, (0.02, 0.1)):
        added_ms: dict[str, list[float]] = {"send_chunks": [], "send_whole": []}
        for _ in range(num_rounds + 1):
            for method, values in added_ms.items():
                (target,) = decode.call("expect", way, 1, num_blocks)
                computed_ns = prefill.call(method, target, num_blocks, step_s)
                values.append((decode.call("committed", way, 1) - computed_ns) / 1e6)
        rows.append(
            {
                "way": way,
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
        "malloc": MALLOC_ENVIRONMENT,
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
        "MB/s between two processes of one host; checksums on for headway and the paged socket:",
        "",
        "| transfers x MB | " + " | ".join(methods) + " |",
        "|---" * (len(methods) + 1) + "|",
    ]
    lines += [
        f"| {row['num_concurrent']} x {row['bytes_each'] / 1e6:.1f} | "
        + " | ".join(as_text(row["mb_per_s"][method]) for method in methods)
        + " |"
        for row in result["throughput"]
    ]
    compared = list(result["throughput"][0]["times_as_long_as"][SHARED])
    lines += [
        "",
        f"Headway's time by that of others, round by round; the goal is {GOAL:g} plain sockets:",
        "",
        "| transfers x MB | way | " + " | ".join(compared) + " | goal |",
        "|---" * (len(compared) + 3) + "|",
    ]
    lines += [
        f"| {row['num_concurrent']} x {row['bytes_each'] / 1e6:.1f} | {way} | "
        + " | ".join(as_text(times[method], 1) for method in compared)
        + (" | met |" if times["plain socket"]["median"] <= GOAL else " | not met |")
        for row in result["throughput"]
        for way, times in row["times_as_long_as"].items()
    ]
    lines += [
        "",
        "Added TTFT: milliseconds from the last chunk computed to the commit:",
        "",
        "| way | MB | chunks | compute per chunk | sent chunk by chunk | sent whole |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['way']} | {row['bytes'] / 1e6:.1f} | {row['num_chunks']} |"
        f" {row['chunk_compute_s'] * 1e3:.0f} ms |"
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
    os.environ.update(MALLOC_ENVIRONMENT)  # for the processes started from here
    about = machine()
    prefill, decode = Remote.start(PrefillSide), Remote.start(DecodeSide)
    prefill.call("dial_bare", decode.call("bare_port"))
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
