"""How many requests per second and GPU each policy carries, found by simulation.

    python -m bench.capacity [--full] [--only chat,coder] [--out bench/results]

Compares Headway with every baseline at its best setting, and with the most that any schedule
could carry. The quick form takes about ten minutes on two idle cores. What has been measured is
on disk after every policy; with --only it goes to capacity-part.*.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
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

from bench.capacity_figure import figure
from bench.capacity_report import above_bound, markdown, meta, summary
from bench.capacity_runs import (
    A100_8B,
    A100_OPT,
    ABLATIONS,
    DISAGGREGATED,
    H100_8B,
    H100_32B,
    PACKING,
    SPECULATION,
    Case,
    Machine,
    Runner,
    settings_of,
)
from bench.capacity_search import CRITERIA, Search, best_settings, index_of
from headway.core.planner.baselines import BASELINES
from headway.sim.scenarios import SCENARIOS
from headway.sim.setup import HEADWAY

NUM_PROCESSES = 2
# What a capacity usually is of the bound; a search starts there.
USUAL_FRACTION = 0.4
NUM_CURVE_POINTS = 9
# Per worker and run, of the quick form with one worker: a thousand of them are scored.
NUM_REQUESTS = 1700

# Policies of which one worker is enough, and those that need several.
ALONE = (HEADWAY, "vllm-v0", "vllm-v1", "sarathi", "edf", "niyama", "scorpio")
TOGETHER = ("distserve", "polyserve")
ABLATIONS_TOGETHER = (PACKING, DISAGGREGATED)
ABLATIONS_ALONE = (*(name for name in ABLATIONS if name != PACKING), SPECULATION)
# Of the quick form, what more than one GPU and ablations are measured on.
SOME = ("chat", "coder", "mixed")


@dataclass(frozen=True, slots=True)
class Task:
    case: Case
    policy: str


def _case(
    scenario: str, arrivals: str, machine: Machine, num_workers: int, num_seeds: int, scale: int = 1
) -> Case:
    num_requests = num_workers * NUM_REQUESTS * scale
    if num_workers > 1:
        num_requests //= 2
    return Case(scenario, arrivals, machine, num_workers, num_requests, tuple(range(num_seeds)))


def quick_tasks() -> Iterator[Task]:
    """Llama 8B on H100: one GPU for all, four and eight for some."""
    for scenario in SCENARIOS:
        case = replace(_case(scenario, "poisson", H100_8B, 1, 2), draws_curves=scenario in SOME)
        yield from (Task(case, policy) for policy in ALONE)
        if scenario in SOME:
            yield from (Task(case, policy) for policy in ABLATIONS_ALONE)
    for scenario in SOME:
        four = _case(scenario, "poisson", H100_8B, 4, 1)
        yield from (Task(four, policy) for policy in (HEADWAY, *TOGETHER))
        if scenario == "mixed":
            yield from (Task(four, policy) for policy in ABLATIONS_TOGETHER)
        yield Task(_case(scenario, "poisson", H100_8B, 8, 1), HEADWAY)
    for scenario in SCENARIOS:
        case = _case(scenario, "azure-code", H100_8B, 1, 1)
        yield from (Task(case, policy) for policy in ALONE)


def full_tasks() -> Iterator[Task]:
    """Every scenario and law of arrivals on every machine, with every policy and its "+"."""
    behind_test = tuple(f"{name}+" for name in ALONE if name in BASELINES)
    for machine in (H100_8B, A100_8B, H100_32B, A100_OPT):
        for scenario in SCENARIOS:
            for arrivals in ("poisson", "azure-chat", "azure-code"):
                one = _case(scenario, arrivals, machine, 1, 5, scale=4)
                yield from (Task(one, policy) for policy in (*ALONE, *behind_test))
                yield from (Task(one, policy) for policy in ABLATIONS_ALONE)
                unknown = replace(one, lengths="unknown")
                yield from (Task(unknown, policy) for policy in ALONE)
                for num_workers in (4, 8):
                    more = _case(scenario, arrivals, machine, num_workers, 3, scale=4)
                    policies = (*ALONE, *TOGETHER, *ABLATIONS_TOGETHER)
                    yield from (Task(more, policy) for policy in policies)


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
        attainment: [runner.bound(seed, attainment, drafts=drafts) for seed in case.seeds]
        for attainment in {criterion.attainment for criterion in CRITERIA}
    }
    highest = max(bounds[CRITERIA[0].attainment])
    search = Search(
        lambda setting, seed, index: runner.attained(options[setting], seed, index),
        index_of(USUAL_FRACTION * highest * case.num_gpus),
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
                "attained": runner.curve(options[best[CRITERIA[0]].setting], rates),
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
    for policy in (*ALONE, *TOGETHER):
        Runner(tiny, policy).curve(settings_of(policy, tiny)[0], [1.0])
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(NUM_PROCESSES, mp_context=context) as pool,
        Progress(*columns) as progress,
    ):
        bar = progress.add_task("capacities", total=len(tasks))
        futures: dict[Future[Measured], Task] = {pool.submit(measure, task): task for task in tasks}
        for future in as_completed(futures):
            task = futures[future]
            results.add(task, future.result())
            progress.update(bar, advance=1, description=f"{task.case.scenario}, {task.policy}")


if __name__ == "__main__":
    main()
