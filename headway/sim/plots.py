"""Figures of a run, as SVG to put into a page. The same run gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headway.core.batch_state import Floats
from headway.sim.run import Run
from headway.sim.scoring import tpot_bounds_s

# Okabe and Ito's colours, which those who do not see red and green can tell apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
_PROMPT, _DECODE = _COLOURS[1], _COLOURS[0]
_ASKED, _ATTAINED = "#BBBBBB", _COLOURS[2]
# What is shown of a run: steps of one worker, and seconds around its burst.
_NUM_STEPS = 80
_BURST_S = 60.0
_NUM_BINS = 60
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def _svg(figure: Figure, name: str) -> str:
    """The figure as an element; `name` keeps its ids apart from those of others on the page."""
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", bbox_inches="tight", metadata=_NO_METADATA)
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


def _axes(num: int, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, num, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
        one.set_axisbelow(True)
    return figure, axes


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def attainment_over_rate(runs: Sequence[Run]) -> str:
    """Strict attainment over the rate, a line per tier and one for all."""
    figure, (axes,) = _axes(1, 7.0, 3.6)
    rates = [run.rate for run in runs]
    tallies = [run.score.tiers() for run in runs]
    for number, name in enumerate(tallies[0]):
        ratios = [100.0 * tiers[name].attained_ratio for tiers in tallies]
        axes.plot(rates, ratios, marker="o", markersize=3, color=_colour(number), label=name)
    ratios = [100.0 * run.score.all().attained_ratio for run in runs]
    axes.plot(rates, ratios, marker="o", color="black", linewidth=2, label="all")
    axes.axhline(90.0, color="grey", linestyle=":")
    axes.set(xlabel="requests per second", ylabel="attained, % of asked", ylim=(0, 103))
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure, "attainment-over-rate")


def attainment_by_tier(run: Run) -> str:
    """Bars: strict, by mean TPOT and weighted by tokens."""
    tallies = {**run.score.tiers(), "all": run.score.all()}
    tallies = {name: tally for name, tally in tallies.items() if tally.num_asked}
    figure, (axes,) = _axes(1, 7.0, 3.0)
    at = np.arange(len(tallies))
    for number, (label, ratios) in enumerate(
        {
            "strict": [tally.attained_ratio for tally in tallies.values()],
            "mean TPOT": [tally.attained_mean_ratio for tally in tallies.values()],
            "strict, weighted by tokens": [
                tally.token_weighted_ratio for tally in tallies.values()
            ],
        }.items()
    ):
        axes.bar(
            at + 0.27 * (number - 1),
            100.0 * np.array(ratios),
            0.25,
            color=_colour(number),
            label=label,
        )
    axes.set_xticks(at, [f"{name}\n{tally.num_asked}" for name, tally in tallies.items()])
    axes.axhline(90.0, color="grey", linestyle=":")
    axes.set(ylabel="attained, % of asked", ylim=(0, 103))
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure, "attainment-by-tier")


def latency_cdfs(run: Run) -> str:
    """Shares of the requests asked below a TTFT, over its bound, and below a TPOT."""
    figure, (ttft, tpot) = _axes(2, 9.0, 3.4)
    score, workload = run.score, run.score.workload
    ratios = score.ttft_s / run.result.ttft_bound_s
    bounds_s = tpot_bounds_s(workload)[:, 1]
    for number, tier in enumerate(workload.tiers):
        chosen = workload.tier == number
        if not chosen.any():
            continue
        colour = _colour(number)
        _cdf(ttft, ratios[chosen], colour, tier.name)
        _cdf(tpot, 1e3 * score.tpot_s[chosen & (workload.num_output_tokens > 1)], colour, tier.name)
        tpot.axvline(1e3 * bounds_s[chosen][0], color=colour, linestyle=":", linewidth=1)
    ttft.axvline(1.0, color="grey", linestyle=":")
    ttft.set_xscale("log")
    ttft.set(xlabel="TTFT / its bound", ylabel="% of asked", ylim=(0, 101))
    ttft.legend(frameon=False, fontsize=8)
    tpot.set(xlabel="TPOT, ms (dotted: bounds)", ylim=(0, 101))
    tpot.set_xscale("log")
    return _svg(figure, "latency-cdfs")


def _cdf(axes: Axes, values: Floats, colour: str, label: str) -> None:
    """A curve that ends below 100 % where some have no value: those that were refused."""
    held = np.sort(values[~np.isnan(values)])
    shares = 100.0 * np.arange(1, len(held) + 1) / max(len(values), 1)
    axes.step(held, shares, where="post", color=colour, label=label)


def busiest_worker(run: Run) -> int:
    """The worker that computed most tokens."""
    steps = run.result.steps
    return int(np.bincount(steps["worker"], steps["num_tokens"], run.num_workers).argmax())


def worker_timeline(run: Run) -> str:
    """Some steps of one worker where it computed most: their length, and what was in them."""
    steps = run.result.steps
    own = steps[steps["worker"] == busiest_worker(run)]
    num_shown = min(_NUM_STEPS, len(own))
    total = np.concatenate([[0], np.cumsum(own["num_tokens"])])
    first = int((total[num_shown:] - total[: len(total) - num_shown]).argmax())
    shown = own[first : first + num_shown]
    start_s, duration_s = shown["start_s"], shown["duration_s"]
    num_decoded = shown["num_decodes"] + shown["num_drafted"]
    figure, (axes,) = _axes(1, 9.0, 3.2)
    num_prompt = shown["num_tokens"] - num_decoded
    for counts, bottom, colour, label in (
        (num_decoded, 0, _DECODE, "decode"),
        (num_prompt, num_decoded, _PROMPT, "prompt chunks"),
    ):
        axes.bar(
            start_s,
            counts,
            duration_s,
            bottom=bottom,
            align="edge",
            color=colour,
            edgecolor="white",
            linewidth=0.3,
            label=label,
        )
    # A mark where each step was predicted to end.
    axes.plot(
        start_s + shown["predicted_s"],
        np.zeros(num_shown),
        "|",
        color="black",
        markersize=8,
        label="predicted end",
    )
    axes.set(xlabel="virtual time, s", ylabel="tokens in the step")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure, "worker-timeline")


def goodput_in_burst(run: Run) -> str:
    """Requests asked and attained over the time they came, around the busiest moment."""
    arrived_at_s = run.result.arrived_at_s
    end_s = float(arrived_at_s.max())
    span_s = min(_BURST_S, end_s)
    bin_s = max(span_s / _NUM_BINS, 1e-9)
    edges = np.arange(0.0, end_s + bin_s, bin_s)
    asked, _ = np.histogram(arrived_at_s, edges)
    num_shown = min(_NUM_BINS, len(asked))
    # Busiest by a sixth of what is shown, in the middle of the picture.
    smoothed = np.convolve(asked, np.ones(max(1, num_shown // 6)), "same")
    first = int(np.clip(smoothed.argmax() - num_shown // 2, 0, len(asked) - num_shown))
    attained, _ = np.histogram(arrived_at_s[run.score.strict], edges)
    shown = slice(first, first + num_shown)
    figure, (axes,) = _axes(1, 9.0, 3.0)
    for counts, colour, label in ((asked, _ASKED, "asked"), (attained, _ATTAINED, "attained")):
        axes.stairs(
            counts[shown] / bin_s,
            edges[first : first + num_shown + 1],
            fill=True,
            color=colour,
            label=label,
        )
    axes.set(xlabel="virtual time of arrival, s", ylabel="requests per second")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure, "goodput-in-burst")


def role_timeline(run: Run) -> str:
    """Which role each worker had, and when it was drained."""
    figure, (axes,) = _axes(1, 9.0, 0.6 + 0.35 * run.num_workers)
    cluster = run.settings.cluster.spec()
    for worker in range(run.num_workers):
        prefills, since_s = worker < cluster.num_prefill, 0.0
        for flip in (flip for flip in run.result.flips if flip.worker == worker):
            taken_at_s = run.span_s if np.isnan(flip.taken_at_s) else flip.taken_at_s
            _role_bar(axes, worker, since_s, flip.decided_at_s, _PROMPT if prefills else _DECODE)
            _role_bar(axes, worker, flip.decided_at_s, taken_at_s, "lightgrey")
            prefills, since_s = flip.prefills, taken_at_s
        _role_bar(axes, worker, since_s, run.span_s, _PROMPT if prefills else _DECODE)
    axes.set(xlabel="virtual time, s", ylabel="worker", yticks=range(run.num_workers))
    return _svg(figure, "role-timeline")


def _role_bar(axes: Axes, worker: int, start_s: float, end_s: float, colour: str) -> None:
    axes.barh(worker, max(0.0, end_s - start_s), left=start_s, color=colour, height=0.7)
