"""Shows a load's progress: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from rich.console import Console
from rich.live import Live
from rich.table import Table

from headway.cli.tally import Tally, percentiles

_REFRESH_S = 1.0
_LINE_INTERVAL_S = 5.0


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:,.0f} ms"


_COLUMNS = (
    *("asked", "guar-\nanteed", "best\neffort", "re-\nfused", "failed", "run-\nning", "attained"),
    *("TTFT ms\np50/p99", "TPOT ms\np50/p99"),
)


def load_table(tally: Tally, title: str) -> Table:
    """One row per tier; fits 80 columns."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("tier", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for name in sorted(tally.tiers):
        tier = tally.tiers[name]
        counts = (
            tier.num_asked,
            tier.num_guaranteed,
            tier.num_best_effort,
            tier.num_refused,
            tier.num_failed,
            tier.num_running,
            tier.num_attained,
        )
        table.add_row(
            name or "(none)",
            *map(str, counts),
            _median_and_tail(tier.ttft_s),
            _median_and_tail(tier.tpot_s),
        )
    return table


def _median_and_tail(values_s: Sequence[float]) -> str:
    cuts_s = percentiles(values_s)
    if cuts_s["p50"] is None or cuts_s["p99"] is None:
        return "-"
    return f"{cuts_s['p50'] * 1e3:.0f}/{cuts_s['p99'] * 1e3:.0f}"


def load_line(tally: Tally) -> str:
    """The same in one line, for logs."""
    return (
        f"asked {tally.total('num_asked')}, guaranteed {tally.total('num_guaranteed')}, "
        f"best effort {tally.total('num_best_effort')}, refused {tally.total('num_refused')}, "
        f"failed {tally.total('num_failed')}, running {tally.total('num_running')}, "
        f"attained {tally.total('num_attained')}"
    )


@asynccontextmanager
async def progress(console: Console, tally: Tally, title: str) -> AsyncIterator[None]:
    """Show `tally` as long as the block runs."""
    if not console.is_terminal:
        shown = asyncio.create_task(_print_lines(console, tally))
    else:
        shown = asyncio.create_task(_refresh(console, tally, title))
    try:
        yield
    finally:
        shown.cancel()
        with suppress(asyncio.CancelledError):
            await shown


async def _print_lines(console: Console, tally: Tally) -> None:
    while True:
        await asyncio.sleep(_LINE_INTERVAL_S)
        console.print(load_line(tally), soft_wrap=True)


async def _refresh(console: Console, tally: Tally, title: str) -> None:
    # Its own refresh thread would read the tally while the event loop writes it.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(load_table(tally, title), refresh=True)
            await asyncio.sleep(_REFRESH_S)
