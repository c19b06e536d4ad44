"""What a comparison under the same load says: rows, their summary, and how to show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.table import Table

from headway.cli.display import milliseconds
from headway.cli.tally import percentiles
from headway.cli.watch import Watch
from headway.cli.workload import PlannedRequest


def round_rows(
    system: str, number: int, planned: Sequence[PlannedRequest], watches: Sequence[Watch]
) -> list[dict[str, Any]]:
    """One row per tier that has bounds; `goodput_per_s`: attained / time in which they came."""
    rows = []
    duration_s = max(request.at_s for request in planned)
    for tier in sorted({request.tier for request in planned}):
        own = [
            watch
            for request, watch in zip(planned, watches, strict=True)
            if request.tier == tier and watch.promise is not None
        ]
        if not own:
            continue
        num_attained = sum(watch.attained for watch in own)
        rows.append(
            {
                "system": system,
                "round": number,
                "tier": tier,
                "asked": len(own),
                "guaranteed": sum(watch.guaranteed for watch in own),
                "kept": sum(watch.guaranteed and watch.attained for watch in own),
                "attained": num_attained,
                "attained_mean_tpot": sum(watch.attained_mean for watch in own),
                "failed": sum(bool(watch.error) for watch in own),
                "goodput_per_s": num_attained / duration_s,
                "ttft_s": percentiles([w.ttft_s for w in own if w.ttft_s is not None]),
                "tpot_s": percentiles([w.tpot_s for w in own if w.tpot_s is not None]),
            }
        )
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians, lowest and highest over the rounds, and the ratio round by round."""
    names = sorted({row["system"] for row in rows})
    rounds = sorted({row["round"] for row in rows})

    def total(what: str, system: str, number: int) -> float:
        return float(sum(r[what] for r in rows if (r["system"], r["round"]) == (system, number)))

    goodputs = {n: [total("goodput_per_s", n, number) for number in rounds] for n in names}
    ratios = [
        own / other
        for own, other in zip(goodputs["headway"], goodputs["plain"], strict=True)
        if other
    ]
    guaranteed = sum(row["guaranteed"] for row in rows)
    return {
        "goodput_per_s": {name: _spread(values) for name, values in goodputs.items()},
        "attained_of_asked_ratio": {
            n: _spread([total("attained", n, r) / total("asked", n, r) for r in rounds])
            for n in names
        },
        "goodput_ratio": _spread(ratios),
        "kept_of_guaranteed_ratio": (
            sum(row["kept"] for row in rows) / guaranteed if guaranteed else None
        ),
        "rounds": len(rounds),
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"median": None, "min": None, "max": None}
    return {"median": median(values), "min": min(values), "max": max(values)}


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line per system and tier, all rounds together."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in (
        "system",
        "tier",
        "asked",
        "attained",
        "goodput/s",
        "TTFT p50/p90",
        "TPOT p50/p90",
    ):
        table.add_column(name, justify="left" if name in ("system", "tier") else "right")
    for system, tier in sorted({(row["system"], row["tier"]) for row in rows}):
        own = [row for row in rows if (row["system"], row["tier"]) == (system, tier)]
        asked, attained = sum(r["asked"] for r in own), sum(r["attained"] for r in own)
        table.add_row(
            system,
            tier,
            str(asked),
            f"{attained} ({attained / asked:.0%})",
            f"{median(r['goodput_per_s'] for r in own):.2f}",
            *(
                "/".join(milliseconds(_median(r[what][p] for r in own)) for p in ("p50", "p90"))
                for what in ("ttft_s", "tpot_s")
            ),
        )
    return table


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def conclusions(found: Mapping[str, Any]) -> list[str]:
    """What `summary` found, in words."""
    ratio, kept = found["goodput_ratio"], found["kept_of_guaranteed_ratio"]
    lines = []
    if ratio["median"] is not None:
        lines.append(
            f"goodput, Headway to plain: {ratio['median']:.2f}"
            f" ({ratio['min']:.2f} to {ratio['max']:.2f} over {found['rounds']} rounds)"
        )
    if kept is not None:
        lines.append(f"promises kept: {kept:.1%}")
    return lines
