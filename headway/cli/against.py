"""`headway bench --against`: the same load on Headway and on plain servers, in turns.

Both are judged alike: a request is attained when every check-point that the bounds of its tier
set was met on this client's clock, whatever anybody promised. The server that waits its turn is
idle, so that both have the machine to themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import uvloop
from rich.console import Console

from headway.adapters.openai_completions import CompletionServers
from headway.adapters.system_clock import SystemClock
from headway.cli.comparison import conclusions, round_rows, summary, table
from headway.cli.load import open_loop
from headway.cli.watch import Watch
from headway.cli.workload import PlannedRequest
from headway.client import Admission, AsyncClient, Tier, Tokens
from headway.core.perf_model import PerfModel
from headway.core.slo import Promise
from headway.errors import ConfigError, HeadwayError
from headway.ports.clock import Clock

Bounds = Callable[[PlannedRequest], Promise | None]


class System(Protocol):
    """What is compared."""

    @property
    def name(self) -> str: ...

    async def serve(self, request: PlannedRequest, prompt: list[int], watch: Watch) -> None:
        """Send one request, and tell `watch` of its tokens.

        Raises:
            HeadwayError: it was refused, or not served to its end.
        """
        ...


class HeadwaySystem:
    """The stack whose controller `clients` are connected to."""

    name = "headway"

    def __init__(self, clients: Sequence[AsyncClient]) -> None:
        self._clients = clients
        self._num_sent = 0

    async def serve(self, request: PlannedRequest, prompt: list[int], watch: Watch) -> None:
        """See `System`."""
        self._num_sent += 1
        num_tokens = 0
        async for event in self._clients[self._num_sent % len(self._clients)].generate(
            prompt_token_ids=prompt,
            tier=request.tier,
            when_not_promised=request.when_not_promised,
            max_tokens=request.num_output_tokens,
            ignore_eos=True,
        ):
            match event:
                case Admission():
                    watch.guaranteed = event.guaranteed
                case Tokens():
                    num_tokens += len(event.token_ids)
                    watch.has(num_tokens)
                case _:
                    pass


class PlainSystem:
    """Servers with OpenAI's API, in turn."""

    name = "plain"

    def __init__(self, servers: CompletionServers) -> None:
        self._servers = servers

    async def serve(self, request: PlannedRequest, prompt: list[int], watch: Watch) -> None:
        """See `System`."""
        async for num_tokens in self._servers.generate(prompt, request.num_output_tokens):
            watch.has(num_tokens)


class Against:
    """One comparison, in rounds; the first system of a round is the second of the next."""

    def __init__(
        self, address: str, urls: Sequence[str], *, connections: int, profile: PerfModel | None
    ) -> None:
        """Args: profile: resolves bounds that are multiples of an idle worker's prefill time."""
        self._address = address
        self._urls = urls
        self._num_connections = connections
        self._profile = profile
        self._clock = SystemClock()
        self._console = Console(highlight=False)

    def run(self, rounds: Sequence[Sequence[PlannedRequest]], seed: int, out: Path | None) -> None:
        """Send each round to both, show the outcome and write it.

        Raises:
            Unavailable: one of them does not answer.
            ConfigError: a tier's bound needs a profile.
        """
        self.conclude(uvloop.run(self.rows(rounds, seed)), out)

    def conclude(self, rows: Sequence[Mapping[str, Any]], out: Path | None) -> None:
        """Show what `rows` say, and write them."""
        found = summary(rows)
        self._console.print(table(rows))
        for line in conclusions(found):
            self._console.print(line)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps({"rows": rows, "summary": found}, indent=2) + "\n")
            self._console.print(f"written to {out}", markup=False)

    async def rows(
        self, rounds: Sequence[Sequence[PlannedRequest]], seed: int
    ) -> list[dict[str, Any]]:
        """Send each round to both; as `run`."""
        rows: list[dict[str, Any]] = []
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(AsyncClient(self._address))
                for _ in range(self._num_connections)
            ]
            tiers = {tier.name: tier for tier in await clients[0].list_tiers()}
            bounds = bounds_of(tiers, self._profile)
            model = (await clients[0].capacity()).model
            servers = await stack.enter_async_context(CompletionServers(self._urls, model))
            await servers.check()
            systems: list[System] = [HeadwaySystem(clients), PlainSystem(servers)]
            for number, planned in enumerate(rounds):
                for system in systems:
                    self._console.print(
                        f"round {number + 1} of {len(rounds)}: {len(planned)} requests"
                        f" to {system.name}"
                    )
                    watches = await run_round(system, planned, bounds, seed + number, self._clock)
                    rows += round_rows(system.name, number, planned, watches)
                systems.reverse()
        return rows


def bounds_of(tiers: Mapping[str, Tier], profile: PerfModel | None) -> Bounds:
    """What each request is held against: the bounds of its tier, None for best effort.

    Args:
        tiers: by name.
        profile: says how long an idle worker computes a prompt, taken as one step.
    """

    def bounds(request: PlannedRequest) -> Promise | None:
        tier = tiers.get(request.tier)
        if tier is None or tier.slo is None:
            return None
        if tier.slo.ttft_slowdown is None:
            return tier.slo.promise(0.0)
        if profile is None:
            raise ConfigError(
                f"tier {tier.name} bounds the TTFT by the prefill time of an idle worker:"
                " give its profile with --profile"
            )
        num_tokens = request.num_prompt_tokens
        return tier.slo.promise(profile.prefill_s(num_tokens, 0, num_tokens))

    return bounds


async def run_round(
    system: System, planned: Sequence[PlannedRequest], bounds: Bounds, seed: int, clock: Clock
) -> list[Watch]:
    """Send a load; returns what became of each request, in the order of `planned`."""
    promises = [bounds(request) for request in planned]
    watches: dict[int, Watch] = {}

    async def send(index: int, request: PlannedRequest, prompt: list[int]) -> None:
        watch = watches[index] = Watch(clock, promises[index], request.num_output_tokens)
        try:
            await system.serve(request, prompt, watch)
        except HeadwayError as error:
            watch.error = error.reason

    await open_loop(planned, send, seed=seed, clock=clock, lagged=lambda _: None)
    return [watches[index] for index in range(len(planned))]
