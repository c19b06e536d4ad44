"""Headway against plain vLLM, on real engines: who attains how much of the same load.

    python -m bench.live [--quick] [--rounds 3] [--duration-s 60] [--out bench/results]

Two engines of one core each, whoever runs them: plain servers behind a round robin, with vLLM's
default step budget and three others, or a Headway stack in three arrangements. Each system is
started, gets all loads and is stopped; then the next one has the cores. Systems take turns round
by round, each round with another seed, and in another order. All are judged by the same bounds,
on the client's clock (headway/cli/watch.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.capacity_report import meta
from bench.live_report import figure, markdown, merged, summary
from bench.plain_server import plain_server
from headway.adapters.openai_completions import CompletionServers
from headway.adapters.system_clock import SystemClock
from headway.cli.against import (
    HeadwaySystem,
    PlainSystem,
    System,
    bounds_of,
    run_round,
)
from headway.cli.comparison import round_rows
from headway.cli.load import until
from headway.cli.stack import running_stack
from headway.cli.workload import PlannedRequest, load_workload
from headway.client import AsyncClient, Tier
from headway.config import Config, VllmConfig, load_config
from headway.profiles import load_profile

STACKS = {
    "colocated": Path("configs/local-colocated.toml"),
    "split": Path("configs/local.toml"),
    "hybrid": Path("configs/local-hybrid.toml"),
}
# vLLM's max_num_batched_tokens; None is its default.
PLAIN_BUDGETS = {"plain": None, "plain-128": 128, "plain-256": 256, "plain-512": 512}
WORKLOADS = {
    "calm": Path("configs/workloads/mixed.toml"),
    "bursty": Path("configs/workloads/mixed-bursty.toml"),
}
RATES_PER_S = (0.35, 0.7, 1.1, 1.6)
LOGS = Path("out/bench-live")
FIRST_PORT = 8101
# Not scored: first requests of an engine pay for what it makes once.
WARM_UP = 4


@dataclass(frozen=True, slots=True)
class Load:
    """One load of one round; the same for every system."""

    workload: str
    rate_per_s: float
    round: int
    seed: int
    planned: tuple[PlannedRequest, ...]


@asynccontextmanager
async def started(name: str, config: Config) -> AsyncIterator[System]:
    """Run one of the systems for as long as the block lasts."""
    async with AsyncExitStack() as stack:
        if name in STACKS:
            path = STACKS[name]
            own = load_config(path)
            log_path = LOGS / f"{name}.log"
            await stack.enter_async_context(running_stack(path, own, log_path, lambda _: None))
            client = AsyncClient(own.controller.listen)
            yield HeadwaySystem([await stack.enter_async_context(client)])
            return
        servers = [
            plain_server(
                config,
                port=FIRST_PORT + core,
                cores=[core],
                log_path=LOGS / f"{name}-{core}.log",
                max_step_tokens=PLAIN_BUDGETS[name],
            )
            for core in (0, 1)
        ]
        urls = [await stack.enter_async_context(server) for server in servers]
        completions = CompletionServers(urls, config.model.name)
        yield PlainSystem(await stack.enter_async_context(completions))


def loads(number: int, rates_per_s: Sequence[float], duration_s: float) -> list[Load]:
    """What every system gets in one round."""
    return [
        Load(
            workload,
            rate_per_s,
            number,
            seed,
            tuple(until(load_workload(path).requests(rate_per_s, seed), duration_s)),
        )
        for workload, path in WORKLOADS.items()
        for rate_per_s in rates_per_s
        for seed in [1000 * number + round(100 * rate_per_s)]
    ]


async def measure(arguments: argparse.Namespace, write: Callable[[list[Any]], None]) -> None:
    """Run all rounds; `write` is given all rows so far after each system."""
    config = load_config(STACKS["split"])
    engine = config.engine
    assert isinstance(engine, VllmConfig)
    tiers = {name: Tier(name, tier.slo()) for name, tier in config.controller.tiers.items()}
    bounds = bounds_of(tiers, load_profile(Path(engine.profile)))
    names = [*PLAIN_BUDGETS, *STACKS]
    clock, rows = SystemClock(), []
    for number in range(arguments.rounds):
        todo = loads(number, arguments.rates, arguments.duration_s)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            async with started(name, config) as system:
                await run_round(system, todo[0].planned[:WARM_UP], bounds, 7, clock)
                for load in todo:
                    watches = await run_round(system, load.planned, bounds, load.seed, clock)
                    own = round_rows(name, number, load.planned, watches)
                    rows += [
                        row | {"workload": load.workload, "rate": load.rate_per_s} for row in own
                    ]
                    attained = sum(row["attained"] for row in own)
                    asked = sum(row["asked"] for row in own)
                    print(
                        f"round {number + 1}: {name}, {load.workload}, {load.rate_per_s:g}/s:"
                        f" attained {attained} of {asked}",
                        flush=True,
                    )
            write(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, two rates, 20 s each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration-s", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    arguments = parser.parse_args()
    arguments.rates = RATES_PER_S
    if arguments.quick:
        arguments.rounds, arguments.duration_s = 1, 20.0
        arguments.rates = RATES_PER_S[1::2]
    measured = meta("bench.live")

    def write(rows: list[Any]) -> None:
        # After every system, so that an interrupted run leaves what it found.
        found = merged(rows)
        report = {"meta": measured, "rows": found, "summary": summary(found)}
        (arguments.out / "live.json").write_text(json.dumps(report, indent=1) + "\n")
        (arguments.out / "live.md").write_text(markdown(report))
        figure(report).savefig(arguments.out / "live.png", dpi=120)

    asyncio.run(measure(arguments, write))


if __name__ == "__main__":
    main()
