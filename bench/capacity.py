"""How many requests per second and GPU each policy carries, found by simulation.

    python -m bench.capacity [--full] [--only chat,coder] [--out bench/results]

Compares Headway with every baseline at its best setting, and with the most that any schedule
could carry. The quick form is made for ten minutes on two idle cores. What has been measured is
on disk after every policy; with --only it goes to capacity-part.*.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.capacity_cases import (
    ALONE,
    H100_8B,
    TOGETHER,
    Case,
    Task,
    full_tasks,
    quick_tasks,
    settings_of,
)
from bench.capacity_figure import figure
from bench.capacity_report import above_bound, markdown, meta, summary
from bench.capacity_runs import Runner, bound
from bench.capacity_search import CRITERIA, Search, best_settings, index_of, rate_at
from headway.sim.scenarios import SCENARIOS
from headway.sim.setup import HEADWAY, HEADWAY_DP

NUM_PROCESSES = 2
# What a capacity usually is of the bound, Headway's and a baseline's; a search starts there.
USUAL_FRACTIONS = (0.65, 0.4)
NUM_CURVE_POINTS = 7


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows of one policy in one case, its curve if the case has one, and what that took."""

    rows: list[dict[str, Any]]
    curves: list[dict[str, Any]]
    cpu_s: float


def measure(task: Task) -> Measured:
    """Search, in this process."""
    started_s = time.process_time()
    case, runner = task.case, Runner(task.case, task.policy)
    options = settings_of(task.policy, case)
    drafts = bool(options[0].max_draft_tokens)
    bounds = {
        attainment: [bound(case, seed, attainment, drafts=drafts) for seed in case.seeds]
        for attainment in {criterion.attainment for criterion in CRITERIA}
    }
    highest = max(bounds[CRITERIA[0].attainment])
    usual_fraction = USUAL_FRACTIONS[not task.policy.startswith(HEADWAY)]
    search = Search(
        lambda setting, seed, index, attainment: runner.attained(
            options[setting], seed, rate_at(index), attainment
        ),
        index_of(usual_fraction * highest * case.num_gpus),
    )
    scale = [runner.asked_ratio(seed) for seed in case.seeds]
    best = best_settings(search, len(options), case.seeds, scale)
    rows = []
    for criterion, capacity in best.items():
        per_gpu = [rate / case.num_gpus for rate in capacity.by_seed]
        at_capacity = [search.attained(capacity.setting, seed, criterion) for seed in case.seeds]
        rows.append(
            {
                "scenario": case.scenario,
                "arrivals": case.arrivals,
                "model": case.machine.model,
                "gpu": case.machine.gpu,
                "num_gpus": case.num_gpus,
                "policy": task.policy,
                "settings": options[capacity.setting].report(),
                "lengths": case.lengths,
                "scoring": criterion.scoring,
                "attainment": criterion.attainment,
                "capacity_per_gpu": fmean(per_gpu),
                "spread": [min(per_gpu), max(per_gpu)],
                "seeds": list(case.seeds),
                "bound_per_gpu": fmean(bounds[criterion.attainment]),
                "token_weighted_attainment": fmean(one["token_weighted"] for one in at_capacity),
            }
        )
    curves = []
    if case.draws_curves and task.policy in ALONE:
        rates = [
            highest * case.num_gpus * (number + 1) / (NUM_CURVE_POINTS + 1)
            for number in range(NUM_CURVE_POINTS)
        ]
        curves.append(
            {
                "scenario": case.scenario,
                "arrivals": case.arrivals,
                "policy": task.policy,
                "rates_per_gpu": [rate * scale[0] / case.num_gpus for rate in rates],
                "attained": [
                    runner.attained(options[best[CRITERIA[0]].setting], case.seeds[0], rate)[
                        "strict"
                    ]
                    for rate in rates
                ],
            }
        )
    return Measured(rows, curves, time.process_time() - started_s)


class Results:
    """What is on disk, in the order of the tasks whatever the order in which they end."""

    def __init__(self, tasks: Sequence[Task], folder: Path, name: str) -> None:
        self._path = folder / name
        self._meta = meta("bench.capacity")
        self._by_task: dict[Task, Measured] = {}
        self._tasks = tasks

    def add(self, task: Task, measured: Measured) -> None:
        """Also writes all there is so far."""
        self._by_task[task] = measured
        text = json.dumps(self.report(), indent=1) + "\n"
        unfinished = self._path.with_suffix(".json.part")
        unfinished.write_text(text)
        unfinished.replace(self._path.with_suffix(".json"))

    def report(self) -> dict[str, Any]:
        done = [self._by_task[task] for task in self._tasks if task in self._by_task]
        rows = [row for measured in done for row in measured.rows]
        return {
            "meta": {
                **self._meta,
                "cpu_s": sum(measured.cpu_s for measured in done),
                "num_tasks": len(self._tasks),
                "num_tasks_done": len(done),
            },
            "rows": rows,
            "summary": summary(rows),
            "curves": [curve for measured in done for curve in measured.curves],
        }

    def finish(self) -> str:
        """Write tables and figure; returns the tables."""
        report = self.report()
        figure_path = self._path.with_suffix(".png")
        text = markdown(report, figure_path.name)
        self._path.with_suffix(".md").write_text(text)
        figure(report).savefig(figure_path, dpi=110)
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all machines, laws and forms: hours")
    parser.add_argument("--only", help="scenarios, with commas between them")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    arguments = parser.parse_args()
    tasks = list(full_tasks() if arguments.full else quick_tasks())
    if arguments.only:
        scenarios = set(arguments.only.split(","))
        if unknown := scenarios - SCENARIOS.keys():
            parser.error(f"scenarios are {', '.join(SCENARIOS)}, not {', '.join(unknown)}")
        tasks = [task for task in tasks if task.case.scenario in scenarios]
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results(tasks, arguments.out, "capacity-part" if arguments.only else "capacity")
    _run(tasks, results)
    print(results.finish())
    if wrong := above_bound(results.report()["rows"]):
        sys.exit("\n".join(f"above its bound, so wrong: {row}" for row in wrong))


def _run(tasks: Sequence[Task], results: Results) -> None:
    """All tasks, in processes of their own."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Compile everything once, before there are two processes that would.
    tiny = Case("mixed", "poisson", H100_8B, 2, 40, (0,))
    for policy in (*ALONE, *TOGETHER, HEADWAY_DP):
        Runner(tiny, policy).attained(settings_of(policy, tiny)[0], 0, 1.0)
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(NUM_PROCESSES, mp_context=context) as pool,
        Progress(*columns) as progress,
    ):
        bar = progress.add_task("capacities", total=len(tasks))
        # The longest first, so that both processes are busy to the end.
        by_effort = sorted(tasks, key=lambda task: -task.effort)
        futures: dict[Future[Measured], Task] = {
            pool.submit(measure, task): task for task in by_effort
        }
        for future in as_completed(futures):
            task = futures[future]
            results.add(task, future.result())
            progress.update(bar, advance=1, description=f"{task.case.scenario}, {task.policy}")


if __name__ == "__main__":
    main()
