"""One page that shows what came of a run, or of several at different rates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from headway.sim import plots
from headway.sim.run import Run


@dataclass(frozen=True, slots=True)
class PlottedFigure:
    """A figure and what it shows."""

    title: str
    caption: str
    svg: Markup


def html_report(runs: Sequence[Run]) -> str:
    """The page; it needs no other file. Latencies are those of the highest rate."""
    source = (files("headway.sim") / "report.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["ms"] = lambda value_s: "-" if value_s is None else f"{value_s * 1e3:.1f}"
    environment.filters["percent"] = lambda ratio: f"{100.0 * ratio:.1f}"
    page: str = environment.from_string(source).render(
        settings=runs[-1].settings,
        runs=[(run, run.report()) for run in runs],
        figures=_figures(runs),
        settings_json=json.dumps(runs[-1].settings.model_dump(mode="json"), indent=2),
    )
    return page


def _figures(runs: Sequence[Run]) -> list[PlottedFigure]:
    run = max(runs, key=lambda one: one.rate)
    at = f" at {run.rate:g} per second" if len(runs) > 1 else ""
    figures = [
        PlottedFigure(
            f"Attainment by tier{at}",
            "Below each tier: how many requests asked for it. Best effort and refused requests "
            "are misses. Dotted: 90 %.",
            Markup(plots.attainment_by_tier(run)),  # noqa: S704  # our own figure
        ),
        PlottedFigure(
            f"Latencies{at}",
            "Of all requests asked, promised or not. A curve that ends below 100 % leaves room "
            "for those that were refused.",
            Markup(plots.latency_cdfs(run)),  # noqa: S704
        ),
        PlottedFigure(
            f"Steps of worker {plots.busiest_worker(run)}{at}",
            "Each bar is a step: as wide as it took, as high as it had tokens; where this worker "
            "computed most. Black marks: where the planner's model put its end.",
            Markup(plots.worker_timeline(run)),  # noqa: S704
        ),
        PlottedFigure(
            f"Goodput around the busiest moment{at}",
            "Requests by the time they came, and those of them that were attained.",
            Markup(plots.goodput_in_burst(run)),  # noqa: S704
        ),
    ]
    if run.result.flips:
        roles = PlottedFigure(
            f"Roles of the workers{at}",
            "Orange: prefill, blue: decode, grey: drained for another role.",
            Markup(plots.role_timeline(run)),  # noqa: S704
        )
        figures.append(roles)
    if len(runs) > 1:
        over_rate = PlottedFigure(
            "Attainment over the rate",
            "Strict scoring, of all that was asked. Dotted: 90 %.",
            Markup(plots.attainment_over_rate(runs)),  # noqa: S704
        )
        figures.insert(0, over_rate)
    return figures
