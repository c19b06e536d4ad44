"""What bench.capacity and bench.planner leave behind: who measured, sums, tables."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.capacity_search import CRITERIA, GRID_RATIO, geometric_mean
from headway.core.planner.baselines import BASELINES
from headway.sim.setup import HEADWAY

Row = Mapping[str, Any]

# What the summary and most tables are about.
MAIN = CRITERIA[0]
VLLM = "vllm-v1"
_CELL = ("scenario", "arrivals", "model", "gpu", "num_gpus", "lengths", "scoring", "attainment")


def meta(module: str) -> dict[str, Any]:
    """Which commit, when, where and by which command."""
    describe = ["git", "describe", "--always", "--dirty"]
    return {
        "commit": subprocess.run(
            describe, capture_output=True, text=True, check=True
        ).stdout.strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_name(),
            "num_cores": os.cpu_count(),
            "load_average_before": os.getloadavg(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "command": " ".join(["python", "-m", module, *sys.argv[1:]]),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def setting_of(measured: Mapping[str, Any]) -> str:
    """One sentence on where and how it was measured."""
    machine = measured["machine"]
    return (
        f"`{measured['command']}` at {measured['commit']}, {measured['date']}, on "
        f"{machine['num_cores']} cores of {machine['cpu']} (load average before: "
        f"{machine['load_average_before'][0]:.1f}), Python {machine['python']}."
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["--:"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def cells(rows: Iterable[Row]) -> dict[tuple[Any, ...], dict[str, Row]]:
    """What is compared with each other: rows of all policies, by what else they differ in."""
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in _CELL), {})[row["policy"]] = row
    return found


def is_main(row: Row) -> bool:
    return (row["attainment"], row["scoring"]) == (MAIN.attainment, MAIN.scoring)


def best_baseline(cell: Mapping[str, Row]) -> Row | None:
    """Of those without Headway's admission test."""
    baselines = [cell[name] for name in BASELINES if name in cell]
    return max(baselines, key=lambda row: row["capacity_per_gpu"], default=None)


def ratio(row: Row | None, other: Row | None) -> float | None:
    """Capacity over capacity; None if one is missing or the other one 0."""
    if row is None or other is None or not other["capacity_per_gpu"]:
        return None
    quotient: float = row["capacity_per_gpu"] / other["capacity_per_gpu"]
    return quotient


def bound_fraction(row: Row) -> float:
    fraction: float = (
        row["capacity_per_gpu"] / row["bound_per_gpu"] if row["bound_per_gpu"] else 0.0
    )
    return fraction


def above_bound(rows: Iterable[Row]) -> list[Row]:
    """Rows that cannot be true."""
    return [row for row in rows if row["capacity_per_gpu"] > row["bound_per_gpu"]]


def wrong_scenarios(rows: Iterable[Row]) -> list[str]:
    """Scenarios whose measure cannot be trusted, as some row of theirs is above its bound."""
    return sorted({row["scenario"] for row in above_bound(rows)})


def summary(rows: Sequence[Row]) -> dict[str, float | None]:
    """Headway at attainment 0.9 and strict scoring, `wrong_scenarios` left out.

    Ratios are over cells in which vLLM V1 was measured too, so that the best baseline is the
    best of all of them; None where nothing was measured.
    """
    wrong = wrong_scenarios(rows)
    main = [row for row in rows if is_main(row) and row["scenario"] not in wrong]
    full = [cell for cell in cells(main).values() if HEADWAY in cell and VLLM in cell]
    over_best = [
        value for cell in full if (value := ratio(cell[HEADWAY], best_baseline(cell))) is not None
    ]
    over_vllm = [value for cell in full if (value := ratio(cell[HEADWAY], cell[VLLM])) is not None]
    return {
        "geo_mean_vs_best_baseline": geometric_mean(over_best),
        "geo_mean_vs_vllm_v1": geometric_mean(over_vllm),
        "min_ratio_vs_best_baseline": min(over_best, default=None),
        "bound_fraction_8gpu": geometric_mean(
            bound_fraction(row) for row in main if row["policy"] == HEADWAY and row["num_gpus"] == 8
        ),
    }


def markdown(report: Mapping[str, Any], figure_name: str) -> str:
    """The report for people, beside the figure of that name."""
    rows: list[Row] = report["rows"]
    parts = [
        "# Capacity",
        _effort(report["meta"]),
        _HOW_TO_READ,
        "## Summary",
        table(
            ("what", "value"),
            ((name.replace("_", " "), _number(value)) for name, value in report["summary"].items()),
        ),
        f"![capacity and attainment]({figure_name})",
    ]
    if wrong := wrong_scenarios(rows):
        parts.insert(4, _WRONG.format(", ".join(wrong)))
    for criterion in CRITERIA:
        chosen = [
            row
            for row in rows
            if (row["attainment"], row["scoring"]) == (criterion.attainment, criterion.scoring)
        ]
        parts += [
            f"## Attainment {criterion.attainment:.0%}, {criterion.scoring} scoring",
            _ratio_table(chosen),
            _capacity_table(chosen),
            *([_ablation_table(chosen)] if any(_is_ablation(r["policy"]) for r in chosen) else []),
        ]
    parts += ["## More GPUs, attainment 90%, strict scoring", _scaling_table(rows)]
    parts += ["## Settings, spread and token-weighted attainment", _settings_table(rows)]
    return "\n\n".join(parts) + "\n"


def _effort(measured: Mapping[str, Any]) -> str:
    """Where, how, how long, and whether to the end."""
    done, num_tasks = measured["num_tasks_done"], measured["num_tasks"]
    interrupted = "" if done == num_tasks else f" Interrupted after {done} of {num_tasks} searches."
    return f"{setting_of(measured)} {measured['cpu_s']:.0f} s of CPU in all.{interrupted}"


_HOW_TO_READ = f"""\
Capacity is the highest rate, in requests asked per second and GPU, at which so many of all that
was asked are attained; deferred and refused requests are misses. The same requests come at every
rate, only faster. The first and the last fifth of them are load only and not scored, as the
system is not full then; short runs still flatter a little where requests last long. Rates lie on
a grid of {GRID_RATIO - 1:.0%} steps, and the highest one that passes below one that does not is
the capacity. All is simulated: true step times are measured ones with noise, and planners only
know a roofline (headway/sim/truth.py).

Of every baseline's settings, all are tried with the first seed, and the best one counts; where
there are more seeds, they decide between two that are equally good. "+" is a baseline behind
Headway's admission test. A capacity is the mean over the seeds; the spread is the lowest and the
highest. Bound: what no schedule can exceed (headway/sim/bounds/fluid_bound.py), of a steady
stream; it knows neither queueing nor bursts.
Strict: the first token, every 10th and the last are in time. Mean: the first token and the mean
time per token after it. Headway's ablations are not baselines."""


_WRONG = (
    "**Measured wrongly, and left out of the summary: {}.** Rows are above their bound, which no"
    " schedule can exceed."
)


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def cell_name(row: Row) -> tuple[str, str, str, str]:
    lengths = "" if row["lengths"] == "known" else ", lengths unknown"
    return (
        row["scenario"] + lengths,
        row["arrivals"],
        row["model"],
        f"{row['num_gpus']}x{row['gpu']}",
    )


_CELL_COLUMNS = ("scenario", "arrivals", "model", "GPUs")


def _ratio_table(rows: Sequence[Row]) -> str:
    lines = []
    for cell in cells(rows).values():
        headway, best = cell.get(HEADWAY), best_baseline(cell)
        if headway is None:
            continue
        lines.append(
            (
                *cell_name(headway),
                _number(headway["capacity_per_gpu"]),
                f"{_number(best['capacity_per_gpu'])} ({best['policy']})" if best else "-",
                _number(ratio(headway, best)),
                _number(ratio(headway, cell.get(VLLM))),
                _number(headway["bound_per_gpu"]),
                _number(bound_fraction(headway)),
            )
        )
    columns = ("Headway", "best baseline", "ratio", "ratio to vLLM V1", "bound", "of the bound")
    return table((*_CELL_COLUMNS, *columns), lines)


def _capacity_table(rows: Sequence[Row]) -> str:
    policies = [
        name for name in dict.fromkeys(row["policy"] for row in rows) if not _is_ablation(name)
    ]
    lines = [
        (
            *cell_name(next(iter(cell.values()))),
            *(_number(cell[name]["capacity_per_gpu"]) if name in cell else "" for name in policies),
        )
        for cell in cells(rows).values()
    ]
    return table((*_CELL_COLUMNS, *policies), lines)


def _is_ablation(policy: str) -> bool:
    return policy != HEADWAY and policy.startswith(HEADWAY)


def _ablation_table(rows: Sequence[Row]) -> str:
    lines = [
        (
            *cell_name(row),
            name,
            _number(row["capacity_per_gpu"]),
            _number(ratio(row, cell.get(HEADWAY))),
        )
        for cell in cells(rows).values()
        for name, row in cell.items()
        if _is_ablation(name)
    ]
    return table((*_CELL_COLUMNS, "what is different", "capacity", "relative to Headway"), lines)


def _scaling_table(rows: Sequence[Row]) -> str:
    """Policies that were measured on one GPU and on more, in the same case otherwise."""
    main = [row for row in rows if is_main(row)]
    alone = {_replica(row): row for row in main if row["num_gpus"] == 1}
    lines = [
        (
            *cell_name(row)[:3],
            row["policy"],
            row["num_gpus"],
            _number(alone[_replica(row)]["capacity_per_gpu"]),
            _number(row["capacity_per_gpu"]),
            _number(
                times * row["num_gpus"]
                if (times := ratio(row, alone[_replica(row)])) is not None
                else None
            ),
        )
        for row in main
        if row["num_gpus"] > 1 and _replica(row) in alone
    ]
    columns = ("policy", "GPUs", "per GPU, of one", "per GPU", "times one GPU's capacity")
    return table((*_CELL_COLUMNS[:3], *columns), lines)


def _replica(row: Row) -> tuple[Any, ...]:
    """All that a row is about but the number of GPUs."""
    return tuple(row[name] for name in (*_CELL, "policy") if name != "num_gpus")


def _settings_table(rows: Sequence[Row]) -> str:
    columns = ("policy", "settings", "capacity", "spread", "seeds", "token-weighted attainment")
    lines = [
        (
            *cell_name(row),
            row["policy"],
            ", ".join(f"{name} {value}" for name, value in row["settings"].items()),
            _number(row["capacity_per_gpu"]),
            " to ".join(_number(end) for end in row["spread"]),
            len(row["seeds"]),
            _number(row["token_weighted_attainment"], 3),
        )
        for row in rows
        if is_main(row)
    ]
    return table((*_CELL_COLUMNS, *columns), lines)
