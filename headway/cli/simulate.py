"""`headway simulate`: a workload on a simulated cluster, in virtual time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from headway.errors import ConfigError
from headway.sim.run import Run, run
from headway.sim.scenarios import SCENARIOS
from headway.sim.scoring import Tally
from headway.sim.settings import Settings
from headway.sim.setup import policy_names
from headway.toml_file import read_toml

# Files of a run beside requests.jsonl and steps.jsonl.
RESULT, REPORT = "result.json", "report.html"
# Options that belong to the section [cluster] of a config.
_OF_CLUSTER = frozenset({"profile", "gpus", "roles", "exact"})

_COLUMNS = (
    *("asked", "prom-\nised", "best\neffort", "re-\nfused", "strict\n%", "mean\n%", "tokens\n%"),
    *("TTFT ms\np50/p99", "TPOT ms\np50/p99"),
)


def choose(config: Path | None, options: Mapping[str, Any]) -> Settings:
    """Settings of a file with the options that are not None in place of its own.

    Raises:
        ConfigError: one line for each thing wrong.
    """
    chosen: dict[str, Any] = {}
    if config is not None:
        chosen = read_toml(config, Settings).model_dump(exclude_unset=True)
    for name, value in options.items():
        if value is not None:
            section = chosen.setdefault("cluster", {}) if name in _OF_CLUSTER else chosen
            section[name] = value
    try:
        return Settings.model_validate(chosen)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def parse_rates(text: str) -> tuple[float, ...]:
    """Rates as in "2,4,8".

    Raises:
        ConfigError: not numbers.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"rates look like 2,4,8, not {text!r}") from error


def print_names(what: str, console: Console) -> None:
    """List the policies or the scenarios, with what each is."""
    names = (
        policy_names()
        if what == "policy"
        else {name: info.description for name, info in SCENARIOS.items()}
    )
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, description in names.items():
        table.add_row(name, description)
    console.print(table)


class Simulate:
    """Runs settings at all their rates, shows what came of it, and writes it down."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self._settings = settings
        self._console = console

    def run(self, out: Path | None) -> list[Run]:
        """One run per rate; `out` gets the logs, the results and a report.

        Raises:
            ConfigError: the settings do not go together.
        """
        self._console.print(self._title(), soft_wrap=True, markup=False)
        runs = [self._run_at(rate) for rate in self._settings.rates]
        self._print(runs)
        if out is not None:
            self._write(runs, out)
        return runs

    def _title(self) -> str:
        settings, cluster = self._settings, self._settings.cluster
        return (
            f"{settings.policy}: {settings.scenario} at "
            f"{', '.join(f'{rate:g}' for rate in settings.rates)} requests per second for "
            f"{settings.duration_s:g} s ({settings.arrivals}, lengths {settings.lengths}), "
            f"{cluster.gpus} x {Path(cluster.profile).stem} ({cluster.roles}), "
            f"seed {settings.seed}"
        )

    def _run_at(self, rate: float) -> Run:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
            TimeElapsedColumn(),
        )
        with Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        ) as progress:
            task = progress.add_task(f"{rate:g} per second", total=self._settings.duration_s)
            return run(
                self._settings.with_rate(rate),
                lambda now_s: progress.update(task, completed=now_s),
            )

    def _print(self, runs: list[Run]) -> None:
        """By tier for one rate, by rate for several."""
        if len(runs) == 1:
            tallies = {**runs[0].score.tiers(), "all": runs[0].score.all()}
            self._console.print(tally_table("tier", tallies))
        else:
            by_rate = {f"{one.rate:g}": one.score.all() for one in runs}
            self._console.print(tally_table("rate", by_rate))
        for one in runs:
            self._console.print(_summary(one), soft_wrap=True, markup=False)

    def _write(self, runs: list[Run], out: Path) -> None:
        # matplotlib is an extra, and slow to load.
        try:
            from headway.sim.report import html_report  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(f"a report needs the extra headway[sim]: {error}") from error

        folders = [out] if len(runs) == 1 else [out / f"rate-{one.rate:g}" for one in runs]
        for one, folder in zip(runs, folders, strict=True):
            one.log.write(folder)
            (folder / RESULT).write_text(_json(one.report()), encoding="utf-8")
        if len(runs) > 1:
            (out / RESULT).write_text(
                _json({"runs": [one.report() for one in runs]}), encoding="utf-8"
            )
        (out / REPORT).write_text(html_report(runs), encoding="utf-8")
        self._console.print(f"written to {out}; open {out / REPORT}", soft_wrap=True, markup=False)


def tally_table(first: str, tallies: Mapping[str, Tally]) -> Table:
    """One row per name; fits 80 columns."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for name, tally in tallies.items():
        counts = (tally.num_asked, tally.num_promised, tally.num_best_effort, tally.num_refused)
        ratios = (tally.attained_ratio, tally.attained_mean_ratio, tally.token_weighted_ratio)
        table.add_row(
            name,
            *map(str, counts),
            *(f"{100 * ratio:.1f}" if tally.num_asked else "-" for ratio in ratios),
            _median_and_tail(tally.ttft_s, 0),
            _median_and_tail(tally.tpot_s, 1),
        )
    return table


def _median_and_tail(cuts_s: Mapping[str, float | None], num_digits: int) -> str:
    median_s, tail_s = cuts_s["p50"], cuts_s["p99"]
    if median_s is None or tail_s is None:
        return "-"
    return f"{median_s * 1e3:.{num_digits}f}/{tail_s * 1e3:.{num_digits}f}"


def _summary(one: Run) -> str:
    report = one.report()
    policy_s = report["policy_s"]
    return (
        f"{one.rate:g}/s: utilisation {100 * report['utilisation_ratio']:.0f} %; "
        f"{report['span_s']:.1f} s of virtual time in {report['wall_s']:.2f} s; a decision took "
        f"{policy_s['p50'] * 1e3:.2f} ms, p99 {policy_s['p99'] * 1e3:.2f}, "
        f"max {policy_s['max'] * 1e3:.2f}\n"
        f"{_roles(one)}"
        f"log sha256 {report['log_sha256']}"
    )


def _roles(one: Run) -> str:
    """What the load asks of each role, and who changed it; empty for a single worker."""
    advice = one.advice
    if advice is None:
        return ""
    flips = ""
    for flip in one.result.flips:
        role = "prefill" if flip.prefills else "decode"
        taken = "not empty by the end"
        if not math.isnan(flip.taken_at_s):
            taken = f"took it at {flip.taken_at_s:.1f} s"
        flips += (
            f"worker {flip.worker} to {role}: drained from {flip.decided_at_s:.1f} s, {taken}\n"
        )
    return (
        f"separate pools for this load: {advice.num_prefill} prefill : {advice.num_decode} decode, "
        f"at {100 * advice.prefill_ratio:.0f} % and {100 * advice.decode_ratio:.0f} % of what they "
        f"can take, KV at {100 * advice.kv_ratio:.0f} %\n{flips}"
    )


def _json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2, allow_nan=False) + "\n"
