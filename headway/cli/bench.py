"""`headway bench`: an open-loop load, and which promises were kept, tier by tier."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from headway.adapters.system_clock import SystemClock
from headway.cli.display import load_table, progress
from headway.cli.load import run_load, until
from headway.cli.tally import Tally
from headway.cli.workload import PlannedRequest, load_workload, read_trace
from headway.client import AsyncClient


def planned_requests(
    workload: Path | None,
    trace: Path | None,
    *,
    rate_per_s: float,
    time_scale: float,
    tier: str,
    seed: int,
    end_s: float | None,
    num_requests: int | None,
) -> Iterable[PlannedRequest]:
    """What to send: from `trace` if given, else from `workload`; up to both limits given.

    Raises:
        ConfigError: the file is missing or wrong.
    """
    planned: Iterable[PlannedRequest]
    if trace is not None:
        planned = read_trace(trace, tier, time_scale)
    else:
        assert workload is not None
        planned = load_workload(workload).requests(rate_per_s, seed)
    if end_s is not None:
        planned = until(planned, end_s)
    return islice(planned, num_requests)


class Bench:
    """One load against one controller."""

    def __init__(self, address: str, num_connections: int, seed: int) -> None:
        self.tally = Tally()
        self._address = address
        self._num_connections = num_connections
        self._seed = seed
        self._clock = SystemClock()
        self._wall_s = 0.0
        self._console = Console(highlight=False)

    def run(self, planned: Iterable[PlannedRequest], *, title: str, out: Path | None) -> bool:
        """Send it, show it, report it. Returns False when the user stopped it half-way.

        Raises:
            Unavailable: no controller answers at the address.
        """
        self._console.print(f"{title}, seed {self._seed}, to {self._address}", markup=False)
        complete = True
        started_at_s = self._clock.now_s()
        try:
            uvloop.run(self.send(planned, title))
        except KeyboardInterrupt:
            complete = False
            self._wall_s = self._clock.now_s() - started_at_s
            self._console.print("stopped; what follows is what was seen until now")
        self.print_report(title)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(self.report() | {"complete": complete}, indent=2) + "\n")
            self._console.print(f"written to {out}", markup=False)
        return complete

    async def send(self, planned: Iterable[PlannedRequest], title: str) -> None:
        """Send the load with live progress; `report` tells the result.

        Raises:
            Unavailable: no controller answers at the address.
        """
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(AsyncClient(self._address))
                for _ in range(self._num_connections)
            ]
            # Fails now rather than once per request when nobody is there.
            await clients[0].list_tiers()
            await stack.enter_async_context(progress(self._console, self.tally, title))
            started_at_s = self._clock.now_s()
            await run_load(clients, planned, seed=self._seed, tally=self.tally, clock=self._clock)
            self._wall_s = self._clock.now_s() - started_at_s

    def report(self) -> dict[str, Any]:
        """For JSON. `duration_s` is from the first request's time to the last one's end."""
        num_succeeded = self.tally.total("num_succeeded")
        return {
            "seed": self._seed,
            "duration_s": self._wall_s,
            "requests_per_s": num_succeeded / self._wall_s if self._wall_s else None,
            "max_start_lag_s": self.tally.max_start_lag_s,
            "tiers": {name: tier.report() for name, tier in sorted(self.tally.tiers.items())},
            "kv": self.tally.kv.report(),
            "decode_prompt_tokens_recomputed": self.tally.kv.recomputed_report(),
        }

    def print_report(self, title: str) -> None:
        """Show the table, and the reasons of what did not go well."""
        self._console.print(load_table(self.tally, title))
        num_succeeded = self.tally.total("num_succeeded")
        self._console.print(
            f"{num_succeeded} of {self.tally.total('num_asked')} succeeded in "
            f"{self._wall_s:.1f} s; requests left at worst "
            f"{self.tally.max_start_lag_s * 1e3:.0f} ms after their time"
        )
        for name, tier in sorted(self.tally.tiers.items()):
            for reason, count in (tier.refusals + tier.failures).most_common():
                self._console.print(f"  {name or '(none)'}: {count} x {reason}", markup=False)
