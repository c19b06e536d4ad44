"""What the controller carries: a whole stack with emulated engines under open-loop load.

    python -m bench.emulated [--quick] [--rate 210] [--out bench/results]

Engines take the time a GPU would take and no CPU to speak of, so that what is measured is
Headway itself: requests per second, and the delay that the controller adds to each token.
The delay is taken between two instants on the one monotonic clock of this machine: the decode
worker hands a token to gRPC, and the client has received it. That is two gRPC hops and the
controller between them; nothing is subtracted, so it is an upper bound of what is added.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import psutil
import uvloop

from headway.adapters.system_clock import SystemClock
from headway.cli.load import run_load, until
from headway.cli.stack import running_stack
from headway.cli.tally import Tally, percentiles
from headway.cli.workload import load_workload
from headway.client import Admission, AsyncClient, Event, Tokens
from headway.client.convert import GenerateArguments
from headway.config import load_config

CONFIG = Path("configs/emulated.toml")
WORKLOAD = Path("configs/workloads/emulated.toml")
LOG = Path("out/bench-emulated.log")
NUM_CONNECTIONS = 2
# Imports, caches and connections; not counted.
WARM_UP_S = 3.0

TokenKey = tuple[str, int]


class StampingClient(AsyncClient):
    """Notes when each token of each request arrives."""

    def __init__(self, address: str, received_at_s: dict[TokenKey, float]) -> None:
        super().__init__(address)
        self._received_at_s = received_at_s

    async def generate(self, **arguments: Unpack[GenerateArguments]) -> AsyncGenerator[Event]:
        request_id = ""
        async for event in super().generate(**arguments):
            match event:
                case Admission():
                    request_id = event.request_id
                case Tokens():
                    now_s = time.monotonic()
                    for offset in range(len(event.token_ids)):
                        self._received_at_s[request_id, event.first_index + offset] = now_s
                case _:
                    pass
            yield event


async def one_run(
    address: str, *, rate_per_s: float, duration_s: float, seed: int
) -> tuple[dict[str, Any], dict[TokenKey, float]]:
    """One load; returns its results and when each of its tokens arrived."""
    tally, clock = Tally(), SystemClock()
    received_at_s: dict[TokenKey, float] = {}
    planned = until(load_workload(WORKLOAD).requests(rate_per_s, seed), duration_s)
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(StampingClient(address, received_at_s))
            for _ in range(NUM_CONNECTIONS)
        ]
        started_at_s = clock.now_s()
        await run_load(clients, planned, seed=seed, tally=tally, clock=clock)
        wall_s = clock.now_s() - started_at_s
    num_succeeded = tally.total("num_succeeded")
    result = {
        "seed": seed,
        "rate_asked_per_s": rate_per_s,
        "duration_s": wall_s,
        "asked": tally.total("num_asked"),
        "succeeded": num_succeeded,
        "refused": tally.total("num_refused"),
        "failed": tally.total("num_failed"),
        "requests_per_s": num_succeeded / wall_s,
        "tokens_per_s": len(received_at_s) / wall_s,
        "max_start_lag_s": tally.max_start_lag_s,
        "tiers": {name: tier.report() for name, tier in sorted(tally.tiers.items())},
    }
    return result, received_at_s


def process_usage(stack_pid: int) -> dict[str, dict[str, float]]:
    """Resident memory and CPU time so far of each process of the stack, and of this one."""
    found = {"this client": _usage(psutil.Process())}
    for process in psutil.Process(stack_pid).children(recursive=True):
        command = process.cmdline()
        service = next((word for word in command if word.startswith("services.")), "other")
        replica = command[command.index("--replica") + 1] if "--replica" in command else ""
        found[f"{service} {replica}".strip()] = _usage(process)
    return found


def _usage(process: psutil.Process) -> dict[str, float]:
    cpu = process.cpu_times()
    return {"resident_bytes": process.memory_info().rss, "cpu_s": cpu.user + cpu.system}


def relay_delays(folder: Path, received_at_s: Mapping[TokenKey, float]) -> dict[str, Any]:
    """From leaving the decode worker to arriving at the client, over all tokens of one run."""
    delays_s = [
        received_at_s[request_id, index] - sent_at_s
        for path in folder.glob("*.json")
        for request_id, index, sent_at_s in json.loads(path.read_text())
        if (request_id, index) in received_at_s
    ]
    if not delays_s:
        raise RuntimeError(f"no token of this run was seen on both sides; see {LOG}")
    return {"num_tokens": len(delays_s), **percentiles(delays_s)}


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    config = load_config(CONFIG)
    address = config.controller.listen
    num_runs, duration_s = (1, 5.0) if arguments.quick else (3, 30.0)
    load_before = os.getloadavg()
    with TemporaryDirectory(prefix="headway-bench-") as name:
        stamps = Path(name)
        os.environ["HEADWAY_BENCH_STAMPS"] = name
        os.environ["PYTHONPATH"] = str(Path(__file__).parent / "stamping")
        started_at_s = time.monotonic()
        async with running_stack(CONFIG, config, LOG, print) as stack_pid:
            ready_s = time.monotonic() - started_at_s
            print(f"ready after {ready_s:.1f} s", flush=True)
            await one_run(address, rate_per_s=arguments.rate, duration_s=WARM_UP_S, seed=99)
            usage_start = process_usage(stack_pid)
            runs = []
            for seed in range(num_runs):
                run = await one_run(
                    address, rate_per_s=arguments.rate, duration_s=duration_s, seed=seed
                )
                runs.append(run)
                print(f"seed {seed}: {run[0]['requests_per_s']:.0f} requests/s", flush=True)
            usage_end = process_usage(stack_pid)
        # Decode workers write their stamps when they end.
        results = [
            {**result, "relay_delay_s": relay_delays(stamps, received)} for result, received in runs
        ]
    return {
        "command": " ".join(["python", "-m", "bench.emulated", *sys.argv[1:]]),
        "machine": {
            "cpu": _cpu_name(),
            "num_cores": os.cpu_count(),
            "load_average_before": load_before,
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "grpcio": version("grpcio"),
            "headway": _commit(),
        },
        "config": str(CONFIG),
        "workload": str(WORKLOAD),
        "connections": NUM_CONNECTIONS,
        "time_to_ready_s": ready_s,
        "runs": results,
        "processes": {
            name: {
                "resident_bytes_start": usage_start[name]["resident_bytes"],
                "resident_bytes_end": end["resident_bytes"],
                "cpu_s": end["cpu_s"] - usage_start[name]["cpu_s"],
            }
            for name, end in sorted(usage_end.items())
        },
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    machine, versions = report["machine"], report["versions"]
    rates = [run["requests_per_s"] for run in report["runs"]]
    setting = (
        f"`{report['command']}` on {machine['num_cores']} cores of {machine['cpu']} "
        f"(load average before: {machine['load_average_before'][0]:.1f}), "
        f"Python {versions['python']}, grpcio {versions['grpcio']}, Headway {versions['headway']}. "
        f"Deployment {report['config']}, load {report['workload']} over "
        f"{report['connections']} connections."
    )
    outcome = (
        f"Ready {report['time_to_ready_s']:.1f} s after its start. Requests per second over "
        f"{len(rates)} runs: {min(rates):.0f} to {max(rates):.0f}."
    )
    definition = (
        "Relay delay: from the instant at which the decode worker hands a token to gRPC to the "
        "instant at which the client has it, on the one monotonic clock of the machine, for "
        "every token. It holds two gRPC hops and the controller between them; nothing is "
        "subtracted. Client, controller and workers share the cores."
    )
    parts = [
        "# Emulated stack under load",
        setting,
        outcome,
        _runs_table(report["runs"]),
        definition,
        _process_table(report),
    ]
    return "\n\n".join(parts) + "\n"


def _runs_table(runs: Sequence[Mapping[str, Any]]) -> str:
    columns = (
        *("seed", "asked", "succeeded", "requests/s", "tokens/s"),
        *("relay delay p50", "p90", "p99", "sent late at worst"),
    )
    rows = [
        (
            run["seed"],
            run["asked"],
            run["succeeded"],
            f"{run['requests_per_s']:.0f}",
            f"{run['tokens_per_s']:.0f}",
            *(f"{run['relay_delay_s'][key] * 1e3:.1f} ms" for key in ("p50", "p90", "p99")),
            f"{run['max_start_lag_s'] * 1e3:.0f} ms",
        )
        for run in runs
    ]
    return _table(columns, rows)


def _process_table(report: Mapping[str, Any]) -> str:
    num_requests = sum(run["succeeded"] for run in report["runs"])
    columns = ("process", "resident memory, start", "end", "CPU ms per request")
    rows = [
        (
            name,
            f"{process['resident_bytes_start'] / 2**20:.0f} MiB",
            f"{process['resident_bytes_end'] / 2**20:.0f} MiB",
            f"{process['cpu_s'] / num_requests * 1e3:.2f}",
        )
        for name, process in report["processes"].items()
    ]
    return _table(columns, rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["--:"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one run of 5 s")
    parser.add_argument("--rate", type=float, default=210.0, help="requests per second")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = uvloop.run(measure(arguments))
    name = "emulated-quick" if arguments.quick else "emulated"
    (arguments.out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    (arguments.out / f"{name}.md").write_text(markdown(report))
    print(markdown(report))
    if any(run["succeeded"] < run["asked"] for run in report["runs"]):
        sys.exit("not every request succeeded")


if __name__ == "__main__":
    main()
