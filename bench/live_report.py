"""What bench.live leaves behind: rows over all rounds, their sums, tables and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from bench.capacity_report import setting_of, table

Row = Mapping[str, Any]

ATTAINMENT = 0.9
_GOODPUT = (
    "Requests per second that are attained where attainment of all asked falls below 90 %,"
    " straight lines between the rates that were measured:"
)
_CELL = ("workload", "rate", "system", "tier")


def merged(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row for each system, workload, rate and tier: sums, and medians over the rounds."""

    def cell(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in _CELL)

    found = []
    for key, group in groupby(sorted(rows, key=cell), key=cell):
        own = list(group)
        row = dict(zip(_CELL, key, strict=True))
        for name in ("asked", "guaranteed", "kept", "attained", "attained_mean_tpot", "failed"):
            row[name] = sum(one[name] for one in own)
        goodputs = [one["goodput_per_s"] for one in own]
        row["goodput_per_s"] = median(goodputs)
        row["goodput_spread"] = [min(goodputs), max(goodputs)]
        for name in ("ttft_s", "tpot_s"):
            row[name] = {p: _median([one[name][p] for one in own]) for p in ("p50", "p90", "p99")}
        row["rounds"] = len(own)
        found.append(row)
    return found


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def attainment(rows: Sequence[Row], system: str, workload: str) -> dict[float, float]:
    """Rate → attained / asked, all tiers together."""
    own = [r for r in rows if (r["system"], r["workload"]) == (system, workload)]
    return {
        rate: sum(r["attained"] for r in own if r["rate"] == rate)
        / sum(r["asked"] for r in own if r["rate"] == rate)
        for rate in sorted({r["rate"] for r in own})
    }


def rate_at(ratios: Mapping[float, float], wanted: float) -> float:
    """The rate up to which attainment stays at `wanted`, straight lines between what was measured.

    Below the lowest rate the line goes to all attained at rate 0.
    """
    before_rate, before = 0.0, 1.0
    for rate, ratio in sorted(ratios.items()):
        if ratio < wanted:
            return before_rate + (before - wanted) / (before - ratio) * (rate - before_rate)
        before_rate, before = rate, ratio
    return before_rate


def is_plain(system: str) -> bool:
    """Whether it is vLLM alone."""
    return system.startswith("plain")


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures that are compared over time."""
    systems = sorted({row["system"] for row in rows})
    workloads = sorted({row["workload"] for row in rows})
    goodput = {
        workload: {
            system: ATTAINMENT * rate_at(attainment(rows, system, workload), ATTAINMENT)
            for system in systems
        }
        for workload in workloads
    }
    ratios = {}
    for workload, of_system in goodput.items():
        ours = [value for system, value in of_system.items() if not is_plain(system)]
        plain = [value for system, value in of_system.items() if is_plain(system)]
        if ours and plain and max(plain) > 0:
            ratios[workload] = max(ours) / max(plain)
    promised = [row for row in rows if row["guaranteed"]]
    kept = {(row["system"], row["workload"], row["rate"]): [0, 0] for row in promised}
    for row in promised:
        count = kept[row["system"], row["workload"], row["rate"]]
        count[0] += row["kept"]
        count[1] += row["guaranteed"]
    return {
        "goodput_at_90_per_s": goodput,
        "goodput_ratios_vs_best_plain": ratios,
        "goodput_ratio_vs_best_plain": min(ratios.values(), default=None),
        "admitted_attainment_min": min((k / g for k, g in kept.values()), default=None),
        "admitted_attainment": (
            sum(k for k, _ in kept.values()) / sum(g for _, g in kept.values()) if kept else None
        ),
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    rows, found = report["rows"], report["summary"]
    goodput = found["goodput_at_90_per_s"]
    systems = sorted({row["system"] for row in rows})
    parts = [
        "# Headway and plain vLLM on real engines",
        setting_of(report["meta"]),
        _GOODPUT,
        table(
            ["workload", *systems],
            [[w, *(f"{goodput[w].get(s, 0):.2f}" for s in systems)] for w in goodput],
        ),
        "\n".join(
            f"* {name}: {value if value is None else f'{value:.3f}'}"
            for name, value in found.items()
            if not isinstance(value, dict)
        ),
        "![attainment](live.png)",
        "## All rows",
        table(
            [
                *_CELL,
                "asked",
                "guaranteed",
                "kept",
                "attained",
                "goodput/s",
                "TTFT p90",
                "TPOT p90",
            ],
            [
                [
                    *(row[name] for name in _CELL),
                    *(row[name] for name in ("asked", "guaranteed", "kept", "attained")),
                    f"{row['goodput_per_s']:.2f}",
                    *(_milliseconds(row[name]["p90"]) for name in ("ttft_s", "tpot_s")),
                ]
                for row in rows
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.0f} ms"


def figure(report: Mapping[str, Any]) -> Figure:
    """Attainment over rate, one panel for each workload."""
    rows = report["rows"]
    workloads = sorted({row["workload"] for row in rows})
    drawing = Figure(figsize=(5 * len(workloads), 4), layout="constrained")
    panels = drawing.subplots(1, len(workloads), sharey=True, squeeze=False)[0]
    for panel, workload in zip(panels, workloads, strict=True):
        for system in sorted({row["system"] for row in rows}):
            ratios = attainment(rows, system, workload)
            panel.plot(
                list(ratios),
                [100 * ratio for ratio in ratios.values()],
                linestyle="--" if is_plain(system) else "-",
                marker="o",
                label=system,
            )
        panel.axhline(100 * ATTAINMENT, color="grey", linewidth=0.8)
        panel.set(title=workload, xlabel="requests per second", ylim=(0, 102))
    panels[0].set_ylabel("attained, % of all asked")
    panels[-1].legend(fontsize="small")
    return drawing
