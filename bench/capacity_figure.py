"""The figure of bench.capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from bench.capacity_report import MAIN, VLLM, Row, best_baseline, cell_name, cells, is_main, ratio
from headway.core.planner.baselines import BASELINES
from headway.sim.setup import HEADWAY

# Okabe and Ito's colours, which those who do not see red and green can tell apart.
_COLOURS = ("#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#999999", "#000000")


def figure(report: Mapping[str, Any]) -> Figure:
    """Capacities relative to the best baseline, and attainment over the rate of some cells."""
    curves: list[Row] = report["curves"]
    shown = list(dict.fromkeys((curve["scenario"], curve["arrivals"]) for curve in curves))
    drawn = Figure(figsize=(13.0, 8.0), layout="constrained")
    upper, lower = drawn.subfigures(2, 1, squeeze=False, height_ratios=(1.2, 1.0))[:, 0]
    _draw_bars(upper.subplots(), report["rows"])
    for axes, (scenario, arrivals) in zip(
        lower.subplots(1, max(len(shown), 1), squeeze=False)[0], shown, strict=False
    ):
        chosen = [
            curve
            for curve in curves
            if (curve["scenario"], curve["arrivals"]) == (scenario, arrivals)
        ]
        for curve in chosen:
            axes.plot(
                curve["rates_per_gpu"],
                [100.0 * ratio for ratio in curve["attained"]],
                marker="o",
                markersize=3,
                label=curve["policy"],
                color=_colour(curve["policy"]),
                linewidth=2.5 if curve["policy"] == HEADWAY else 1.2,
            )
        axes.axhline(100.0 * MAIN.attainment, color="grey", linestyle=":")
        axes.set(
            title=f"{scenario}, {arrivals}",
            xlabel="requests per second and GPU",
            ylabel="attained, % of asked",
            ylim=(0, 103),
        )
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=7)
    return drawn


def _draw_bars(axes: Any, rows: Sequence[Row]) -> None:
    compared = [
        cell
        for cell in cells(row for row in rows if is_main(row)).values()
        if VLLM in cell and ratio(cell[VLLM], best_baseline(cell)) is not None
    ]
    names = [HEADWAY, *(name for name in BASELINES if any(name in cell for cell in compared))]
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        ratios = [ratio(cell.get(name), best_baseline(cell)) for cell in compared]
        axes.bar(
            [at + width * (number - 0.5 * len(names) + 0.5) for at in range(len(compared))],
            [value or 0.0 for value in ratios],
            width,
            label=name,
            color=_colour(name),
        )
    axes.axhline(1.0, color="grey", linestyle=":")
    axes.set_xticks(range(len(compared)))
    axes.set_xticklabels(
        ["\n".join(_bar_label(next(iter(cell.values())))) for cell in compared], fontsize=7
    )
    axes.set_ylabel("capacity / best baseline's")
    axes.set_title(f"{MAIN.attainment:.0%} attained, {MAIN.scoring} scoring")
    axes.legend(frameon=False, fontsize=8, ncols=len(names), loc="upper left")
    axes.margins(y=0.12)


def _bar_label(row: Row) -> tuple[str, str, str]:
    scenario, arrivals, model, gpus = cell_name(row)
    return scenario, arrivals, f"{model.split()[0]}, {gpus}"


def _colour(policy: str) -> str:
    names = [HEADWAY, *BASELINES]
    return _COLOURS[names.index(policy) % len(_COLOURS)] if policy in names else "#666666"
