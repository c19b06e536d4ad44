"""How long deciding about one arrival takes, and how fast the simulator is without that.

    python -m bench.planner [--quick] [--out bench/results]

The states decided on are those of bench.planner_states: at overload, as arrivals for which there
is no room take longest: every place is tried.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bench.capacity_report import meta, setting_of, table
from bench.planner_states import NOW_S, States, dp_instance, record
from headway.core.batch_state import Flags, Floats
from headway.core.planner.arrival import Answer, ClusterView, Verdict
from headway.core.planner.dp import plan
from headway.core.planner.promising import PromisePolicy
from headway.sim.settings import ClusterSettings, Settings

RUNNING = (10, 100, 1000)
NEW = (1, 8, 64)
TIERS = (2, 4, 6)
WORKERS = (1, 8, 64)
# A state counts as full once so many found no room, or so many per worker were tried.
_REFUSED_IF_FULL, _MOST_FILLING = 8, 20
# Decisions timed per full state, each as if the others had not come.
_NUM_TIMED_IF_FULL = 100
# No state has fewer running requests per worker.
FEWEST_PER_WORKER = 4


def decisions_s(
    states: States,
    *,
    running: int,
    new: int,
    tiers: int,
    workers: int,
    num_calls: int,
    full: bool = False,
) -> tuple[Floats, Flags]:
    """Time of each decision, and whether it found room, shapes (num_calls, 2) and (num_calls,).

    Times are of the clock on the wall, and of the CPU in this thread. The `new`
    requests of a state are decided one after the other at one instant. With `full`, requests
    that are not timed fill the workers before, and those that are timed are not placed.
    """
    taken_s: list[tuple[float, float]] = []
    served: list[bool] = []
    num_filling = _MOST_FILLING * workers if full else 0
    num_timed = _NUM_TIMED_IF_FULL if full else new
    while len(taken_s) < num_calls:
        view = states.state(running, num_filling + num_timed, tiers, workers)
        policy = states.policy()
        num_refused = 0
        for row in range(running, running + num_filling):
            answer = policy.decide(row, view, NOW_S)
            num_refused += answer.verdict is not Verdict.SERVE
            if num_refused == _REFUSED_IF_FULL:
                break
            _place(row, answer, view)
        for row in range(running + num_filling, len(view.requests)):
            deciding = deepcopy(policy) if full else policy
            started = _clocks_s()
            answer = deciding.decide(row, view, NOW_S)
            taken_s.append(_since_s(started))
            served.append(answer.verdict is Verdict.SERVE)
            if not full:
                _place(row, answer, view)
    return np.array(taken_s), np.array(served)


def _place(row: int, answer: Answer, view: ClusterView) -> None:
    if answer.verdict is Verdict.SERVE:
        w = answer.prefill_worker
        view.ids[w, view.counts[w]] = row
        view.counts[w] += 1


def dp_s(states: States, *, running: int, new: int, tiers: int, num_calls: int) -> Floats:
    """Time of each plan of the dynamic programme for one worker."""
    taken_s = []
    for _ in range(num_calls):
        instance = dp_instance(states.state(running, new, tiers, 1), running)
        started = _clocks_s()
        plan(instance)
        taken_s.append(_since_s(started))
    return np.array(taken_s)


def _clocks_s() -> tuple[float, float]:
    return time.perf_counter(), time.thread_time()


def _since_s(started: tuple[float, float]) -> tuple[float, float]:
    wall_s, cpu_s = _clocks_s()
    return wall_s - started[0], cpu_s - started[1]


def simulator_speed(num_requests: int) -> list[dict[str, float]]:
    """Requests per second of wall-clock time, chat on 8 GPUs, without the time of planning."""
    rate = 8 * 14.0
    settings = Settings(
        scenario="chat",
        rates=(rate,),
        duration_s=num_requests / rate,
        cluster=ClusterSettings(gpus=8),
    )
    workload = settings.workload(rate)
    found = []
    for _ in range(3):
        result = settings.simulation(workload, PromisePolicy()).run()
        simulating_s = result.wall_s - result.planning_s
        found.append(
            {
                "requests": len(workload),
                "requests_per_s": len(workload) / simulating_s,
                "times_real_time": num_requests / rate / simulating_s,
                "planning_s": result.planning_s,
                "wall_s": result.wall_s,
            }
        )
    return found


def measure(num_calls: int, num_simulated: int) -> dict[str, Any]:
    states = States(*record(), np.random.default_rng(0))
    # Compile, or load what was compiled.
    decisions_s(states, running=10, new=1, tiers=2, workers=1, num_calls=5)
    dp_s(states, running=10, new=8, tiers=2, num_calls=3)
    rows, dp_rows = [], []
    for workers, running, new, tiers, full in product(WORKERS, RUNNING, NEW, TIERS, (False, True)):
        if running < FEWEST_PER_WORKER * workers or (full and new > 1):
            continue
        size = {"running": running, "new": new, "tiers": tiers, "workers": workers}
        taken_s, served = decisions_s(states, **size, num_calls=num_calls, full=full)
        state = "full" if full else ""
        rows.append({**size, "state": state, **_times(taken_s), "served_ratio": served.mean()})
        if full and not served.all():
            # Every place was tried in vain.
            refused = {**_times(taken_s[~served]), "served_ratio": 0.0}
            rows.append({**size, "state": "full, no room", **refused})
        print(f"{workers} workers, {running} running, {new} new, {tiers} tiers", flush=True)
    for running, new, tiers in product(RUNNING, NEW, TIERS):
        taken_s = dp_s(states, running=running, new=new, tiers=tiers, num_calls=num_calls)
        dp_rows.append({"running": running, "new": new, "tiers": tiers, **_times(taken_s)})
    return {"rows": rows, "dp": dp_rows, "simulator": simulator_speed(num_simulated)}


def _times(taken_s: Floats) -> dict[str, float]:
    p50, p99, highest = (1e3 * np.quantile(taken_s[:, 0], (0.5, 0.99, 1.0))).tolist()
    cpu_p50, cpu_p99 = (1e3 * np.quantile(taken_s[:, 1], (0.5, 0.99))).tolist()
    return {
        "p50_ms": p50,
        "p99_ms": p99,
        "max_ms": highest,
        "cpu_p50_ms": cpu_p50,
        "cpu_p99_ms": cpu_p99,
        "calls": len(taken_s),
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    times = ("p50_ms", "p99_ms", "max_ms", "cpu_p50_ms", "cpu_p99_ms")
    sizes = ("workers", "running", "new", "tiers")
    dp_sizes = ("running", "new", "tiers")
    parts = [
        "# Planner",
        setting_of(report["meta"]),
        _HOW_TO_READ,
        "## One decision of PromisePolicy",
        table(
            (
                *sizes,
                "state",
                "p50 ms",
                "p99 ms",
                "max ms",
                "CPU p50 ms",
                "CPU p99 ms",
                "calls",
                "found room",
            ),
            (
                (
                    *(row[name] for name in sizes),
                    row["state"],
                    *(f"{row[name]:.3f}" for name in times),
                    row["calls"],
                    f"{row['served_ratio']:.0%}",
                )
                for row in report["rows"]
            ),
        ),
        "## One plan of the dynamic programme, one worker",
        table(
            (*dp_sizes, "p50 ms", "p99 ms", "max ms", "CPU p50 ms", "CPU p99 ms", "calls"),
            (
                (
                    *(row[name] for name in dp_sizes),
                    *(f"{row[name]:.3f}" for name in times),
                    row["calls"],
                )
                for row in report["dp"]
            ),
        ),
        "## Simulator without planning: chat on 8 GPUs",
        table(
            ("requests", "requests/s", "times real time", "planning s", "all s"),
            (
                (
                    run["requests"],
                    f"{run['requests_per_s']:.0f}",
                    f"{run['times_real_time']:.0f}",
                    f"{run['planning_s']:.2f}",
                    f"{run['wall_s']:.2f}",
                )
                for run in report["simulator"]
            ),
        ),
    ]
    return "\n\n".join(parts) + "\n"


_HOW_TO_READ = """\
States are recorded in a simulation of the mixed scenario at overload on four workers. For each
size, the requests of a recorded worker that had about as many are drawn again until there are as
many as asked for; a worker with more than were ever recorded is made faster and larger in
proportion, so that it stays as full. `running` counts the requests on all workers together; `new`
arrive at one instant and are decided one after the other, each time being one decision's.
Full: requests that are not timed fill the workers first, until few more find room; "no room" are
those decisions of them for which every place was tried in vain. Times
are of the clock on the wall, with whatever else runs on the machine; CPU times are this thread's
own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few calls of each")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    described = meta("bench.planner")
    num_calls, num_simulated = (20, 1000) if arguments.quick else (200, 8000)
    report = {"meta": described, **measure(num_calls, num_simulated)}
    name = "planner-quick" if arguments.quick else "planner"
    (arguments.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / f"{name}.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
