"""Predicted against measured steps, as an SVG file. Needs matplotlib, of the extra "sim"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from headway.core.batch_state import Floats
from headway.core.perf_fit import StepSample

# Okabe and Ito's colours, which those who do not see red and green can tell apart.
_KINDS = (("prefill", "#E69F00", "^"), ("decode", "#0072B2", "o"), ("mixed", "#009E73", "s"))
_BAND_RATIO = 0.15


def plot(steps: Sequence[StepSample], predicted_s: Floats, path: Path, title: str) -> None:
    """Draw the steps that the model never saw, and a band of 15 % around it."""
    figure = Figure(figsize=(5.0, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, colour, marker in _KINDS:
        at = [index for index, step in enumerate(steps) if _kind(step) == name]
        axes.scatter(
            [1e3 * steps[index].duration_s for index in at],
            1e3 * predicted_s[at],
            s=22,
            color=colour,
            marker=marker,
            label=f"{name} ({len(at)})",
        )
    ends = [1e3 * min(step.duration_s for step in steps), 1e3 * max(s.duration_s for s in steps)]
    axes.plot(ends, ends, color="black", linewidth=1)
    axes.fill_between(
        ends,
        [(1 - _BAND_RATIO) * end for end in ends],
        [(1 + _BAND_RATIO) * end for end in ends],
        color="black",
        alpha=0.08,
        linewidth=0,
        label=f"within {_BAND_RATIO:.0%}",
    )
    axes.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted, ms", title=title)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "profile"}):
        figure.savefig(path, metadata=dict.fromkeys(("Date", "Creator")))


def _kind(step: StepSample) -> str:
    if step.num_chunks == 0:
        return "decode"
    return "mixed" if step.num_decodes else "prefill"
