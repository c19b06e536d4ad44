"""Scenarios against the statistics of the traces they are made from.

The statistics were computed from the traces themselves (of ServeGen: from its clients' laws,
weighted by their rates), not from our tables.
"""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bench.derive_lengths import SOURCES, dispersion
from headway.core.slo import StageSlo
from headway.sim.arrivals import ARRIVALS, Trace, pattern, read_trace, stream
from headway.sim.lengths import Law, plain, thinking, tool_loop
from headway.sim.scenarios import SCENARIOS, build
from headway.sim.workload import Workload

# Requests per second and mean of the Azure traces; tests of dispersion look at trace time.
CHAT_RATE, CODE_RATE = 5.530, 2.567
HOUR_S = 3600


def built(name: str = "chat", **changes: object) -> Workload:
    arguments: dict[str, object] = {
        "arrivals": "poisson",
        "rate": 10.0,
        "duration_s": 300.0,
        "seed": 1,
    }
    return build(name, **(arguments | changes))  # type: ignore[arg-type]


def mean_and_percentiles(values: np.ndarray) -> list[float]:
    return [float(values.mean()), *(float(np.quantile(values, p)) for p in (0.5, 0.9, 0.99))]


def ranks(values: np.ndarray) -> np.ndarray:
    """Average ranks of ties, as Spearman's correlation wants them."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


@pytest.mark.parametrize(
    ("law", "prompt", "output", "correlation", "tolerance"),
    [
        (plain("azure-chat"), (1155, 1020, 2735, 4142), (211, 129, 424, 601), 0.073, 0.03),
        (plain("azure-code"), (2048, 1469, 5188, 7436), (27.9, 13, 55, 252), -0.021, 0.03),
        (plain("arxiv"), (2588, 2730, 3702, 3933), (291, 167, 372, 3271), -0.114, 0.03),
        (
            thinking("servegen-r1"),
            (1268, 208, 2092, 23423),
            (1527, 792, 3432, 12607),
            -0.378,
            0.03,
        ),
        # 52 recorded calls: their tail is two or three of them.
        (tool_loop("toolbench"), (2093, 2009, 3324, 4248), (118, 61, 278, 470), None, 0.12),
    ],
    ids=["azure-chat", "azure-code", "arxiv", "servegen-r1", "toolbench"],
)
def test_lengths_have_the_statistics_of_their_trace(
    law: Law,
    prompt: tuple[float, ...],
    output: tuple[float, ...],
    correlation: float | None,
    tolerance: float,
) -> None:
    sessions = law.draw(stream(1).random((100_000, law.num_uniforms)))
    prompts, outputs = (
        values[sessions.held] for values in (sessions.num_prompt_tokens, sessions.num_output_tokens)
    )

    assert mean_and_percentiles(prompts) == pytest.approx(prompt, rel=tolerance)
    assert mean_and_percentiles(outputs) == pytest.approx(output, rel=tolerance)
    if correlation is not None:
        measured = np.corrcoef(ranks(prompts), ranks(outputs))[0, 1]
        assert measured == pytest.approx(correlation, abs=0.03)


def test_thinking_has_the_share_of_its_trace() -> None:
    law = thinking("servegen-r1")
    sessions = law.draw(stream(1).random((100_000, law.num_uniforms)))
    share = sessions.num_thinking_tokens / sessions.num_output_tokens

    assert share.mean() == pytest.approx(0.703, abs=0.01)
    assert np.median(share) == pytest.approx(0.766, abs=0.01)
    assert (sessions.num_thinking_tokens >= 1).all()
    assert (sessions.num_thinking_tokens < sessions.num_output_tokens).all()


@pytest.mark.parametrize(
    ("name", "rate", "dispersions", "tolerance"),
    [
        ("poisson", 5.0, {1: 1.0, 10: 1.0, 60: 1.0}, 0.1),
        # Whole windows only: the trace's last, half-empty minute alone would make it 20.6.
        ("azure-chat", CHAT_RATE, {1: 1.39, 10: 3.86, 60: 16.1, 300: 56.1}, 0.2),
        ("azure-code", CODE_RATE, {1: 13.2, 10: 71.6, 60: 164.0, 300: 205.9}, 0.2),
    ],
)
def test_arrivals_are_as_bursty_as_their_trace(
    name: str, rate: float, dispersions: dict[int, float], tolerance: float
) -> None:
    at_s = pattern(name, 3, rate * 40 * HOUR_S) / rate
    measured = {window_s: dispersion(at_s, window_s, at_s[-1]) for window_s in dispersions}

    assert measured == pytest.approx(dispersions, rel=tolerance)
    # Its long-run rate is what it says; an hour of the code trace has a spread of 15 %.
    assert len(at_s) / at_s[-1] == pytest.approx(rate, rel=0.06)


def test_code_arrivals_have_the_gaps_and_peaks_of_their_trace() -> None:
    at_s = pattern("azure-code", 4, CODE_RATE * 40 * HOUR_S) / CODE_RATE
    gap_s = np.diff(at_s)
    hours = [np.histogram(at_s, 360, (h * HOUR_S, (h + 1) * HOUR_S))[0] for h in range(40)]
    peaks = [counts.max() / counts.mean() for counts in hours]

    assert gap_s.std() / gap_s.mean() == pytest.approx(13.2, rel=0.15)
    assert np.mean(peaks) == pytest.approx(12.8, rel=0.25)
    assert np.quantile(gap_s, [0.9, 0.99]) == pytest.approx([0.273, 2.2], rel=0.2)


@pytest.mark.parametrize("arrivals", [name for name in ARRIVALS if name != "trace"])
def test_a_rate_only_compresses_the_pattern(arrivals: str) -> None:
    slow = built("mixed", arrivals=arrivals)
    fast = built("mixed", arrivals=arrivals, rate=20.0, duration_s=150.0)

    np.testing.assert_allclose(fast.arrived_at_s, slow.arrived_at_s / 2, rtol=1e-12)
    np.testing.assert_array_equal(fast.num_prompt_tokens, slow.num_prompt_tokens)
    np.testing.assert_array_equal(fast.follows, slow.follows)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_longer_run_begins_like_a_shorter_one(name: str) -> None:
    short = built(name, arrivals="azure-code", max_total_tokens=2048)
    # Far enough for every generator to have started over with more draws.
    long = built(name, arrivals="azure-code", max_total_tokens=2048, duration_s=3000.0)

    assert len(long) > len(short) > 0
    for column in Workload.__dataclass_fields__:
        value = getattr(short, column)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(long, column)[: len(short)], value)


def test_the_seed_decides_everything() -> None:
    again, other = built("tools", seed=1), built("tools", seed=2)

    np.testing.assert_array_equal(built("tools").arrived_at_s, again.arrived_at_s)
    np.testing.assert_array_equal(built("tools").num_output_tokens, again.num_output_tokens)
    assert not np.array_equal(again.num_output_tokens[:100], other.num_output_tokens[:100])
    assert not np.array_equal(again.arrived_at_s[:100], other.arrived_at_s[:100], equal_nan=True)


def test_lengths_do_not_depend_on_the_law_of_arrivals() -> None:
    calm, bursty = built("coder"), built("coder", arrivals="azure-code")
    num = min(len(calm), len(bursty))

    np.testing.assert_array_equal(calm.num_prompt_tokens[:num], bursty.num_prompt_tokens[:num])


def test_the_first_requests_are_those_of_record() -> None:
    """The same on every machine; a change here changes every published result."""
    workload = built("mixed", duration_s=1.0)

    assert workload.num_prompt_tokens[:6].tolist() == [1119, 259, 471, 44, 384, 481]
    assert workload.num_output_tokens[:6].tolist() == [387, 1133, 1196, 13, 247, 568]
    assert np.nan_to_num(workload.arrived_at_s[:6]) == pytest.approx(
        [0.142226, 0.164916, 0.287624, 0.333339, 0.345407, 0.543733], abs=1e-6
    )


@pytest.mark.parametrize("name", ["tools", "mixed"])
@pytest.mark.parametrize("max_total_tokens", [None, 4096])
def test_rounds_of_a_session_build_on_each_other(name: str, max_total_tokens: int | None) -> None:
    workload = built(name, max_total_tokens=max_total_tokens)
    later = np.flatnonzero(workload.follows >= 0)
    before = workload.follows[later]

    assert len(later) > 100
    # The last token of an output is never fed back, so it has no KV.
    left_behind = workload.num_prompt_tokens[before] + workload.num_output_tokens[before] - 1
    np.testing.assert_array_equal(workload.num_prefix_tokens[later], left_behind)
    assert (workload.num_prompt_tokens[later] > left_behind + 1).all()
    assert (workload.gap_s[later] >= 0.2).all()
    first = workload.follows < 0
    assert (workload.num_prefix_tokens[first] == 0).all()
    assert (workload.gap_s[first] == 0).all()
    assert (np.diff(workload.arrived_at_s[first]) >= 0).all()
    # Nobody follows the same round as another.
    assert len(set(before.tolist())) == len(before)


def test_only_the_last_round_of_a_tool_loop_is_an_answer() -> None:
    workload = built("tools")
    names = np.array([tier.name for tier in workload.tiers])[workload.tier]
    followed = np.isin(np.arange(len(workload)), workload.follows)

    np.testing.assert_array_equal(names == "tool-call", followed)
    assert set(names) == {"tool-call", "tool-answer"}
    answers = workload.num_output_tokens[names == "tool-answer"]
    assert answers.mean() > workload.num_output_tokens[names == "tool-call"].mean()


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("max_total_tokens", [None, 2048])
def test_the_rate_counts_every_round(name: str, max_total_tokens: int | None) -> None:
    workload = built(name, rate=100.0, max_total_tokens=max_total_tokens)

    assert len(workload) == pytest.approx(100.0 * 300.0, rel=0.03)


def test_mixed_has_a_fifth_of_each() -> None:
    workload = built("mixed", rate=100.0)
    names = np.array([tier.name.partition("-")[0] for tier in workload.tiers])[workload.tier]

    for name in ("chat", "coder", "summarizer", "tool", "reasoning"):
        assert (names == name).mean() == pytest.approx(0.2, abs=0.015)


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_request_is_longer_than_the_cap(name: str) -> None:
    capped = built(name, max_total_tokens=2048)

    assert (capped.num_prompt_tokens + capped.num_output_tokens).max() <= 2048


def test_reasoning_is_capped_at_16k_tokens_unless_told_less() -> None:
    workload = built("reasoning", rate=100.0, max_total_tokens=100_000)

    total = workload.num_prompt_tokens + workload.num_output_tokens
    assert 15_000 < total.max() <= 16_384


def test_tiers_promise_what_the_paper_says() -> None:
    promises = {
        tier.name: (tier.slo.ttft_slowdown, [stage.tpot_s for stage in tier.slo.stages])
        for tier in built("mixed").tiers
    }

    assert promises == {
        "chat": (5, [0.1]),
        "coder": (5, [0.05]),
        "summarizer": (3, [0.1]),
        "tool-call": (3, [0.05]),
        "tool-answer": (3, [0.1]),
        "reasoning": (3, [0.05, 0.1]),
    }
    assert built("chat", tpot_scale=0.5).tiers[0].slo.stages == (StageSlo(0.05),)


def test_only_reasoning_thinks() -> None:
    workload = built("mixed")
    is_reasoning = np.array([len(tier.slo.stages) == 2 for tier in workload.tiers])[workload.tier]

    np.testing.assert_array_equal(workload.num_thinking_tokens > 0, is_reasoning)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "chess"}, "there is no 'chess'"),
        ({"arrivals": "weekly"}, "not 'weekly'"),
        ({"arrivals": "trace"}, "go together"),
        ({"trace": Trace(np.zeros(1), 1.0, np.ones(1, int), np.ones(1, int))}, "go together"),
        ({"rate": 0.0}, "rate must be positive"),
        ({"duration_s": float("inf")}, "duration_s must be positive"),
        ({"tpot_scale": -1.0}, "tpot_scale must be positive"),
        ({"max_total_tokens": 20}, "leaves 0.02% of the sessions of azure-chat"),
    ],
)
def test_a_wrong_argument_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(**({"name": "chat"} | changes))  # type: ignore[arg-type]


@pytest.fixture
def trace_path(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:59:59.0000000,100,10\n"
        "2023-11-16 19:00:01.5000000,200,20\n"
        "2023-11-16 19:00:02.0000000,3000,30\n"
        "2023-11-16 19:00:09.0000000,400,0\n"
    )
    return path


def test_a_trace_is_replayed_at_the_rate_asked_for(trace_path: Path) -> None:
    trace = read_trace(trace_path)
    workload = built(arrivals="trace", trace=trace, rate=0.8)

    # Four requests in ten seconds, twice as fast.
    assert workload.arrived_at_s == pytest.approx([0.0, 1.25, 1.5, 5.0])
    assert workload.num_prompt_tokens.tolist() == [100, 200, 3000, 400]
    assert workload.num_output_tokens.tolist() == [10, 20, 30, 1]


def test_a_trace_without_its_long_requests_keeps_the_rate(trace_path: Path) -> None:
    workload = built(arrivals="trace", trace=read_trace(trace_path), rate=0.3, max_total_tokens=500)

    assert workload.num_prompt_tokens.tolist() == [100, 200, 400]
    assert workload.arrived_at_s == pytest.approx([0.0, 2.5, 10.0])


def test_a_window_of_a_trace_starts_at_zero(trace_path: Path) -> None:
    trace = read_trace(trace_path, "t2:4")

    assert trace.at_s == pytest.approx([0.5, 1.0])
    assert trace.span_s == 2.0


def test_scenarios_of_other_lengths_take_only_the_instants_of_a_trace(trace_path: Path) -> None:
    workload = built("summarizer", arrivals="trace", trace=read_trace(trace_path), rate=0.4)

    assert workload.arrived_at_s == pytest.approx([0.0, 2.5, 3.0, 10.0])
    assert workload.num_prompt_tokens.tolist() == built("summarizer").num_prompt_tokens[:4].tolist()


@pytest.mark.parametrize(
    ("text", "window", "message"),
    [
        ("TIMESTAMP,Tokens\n2023-11-16 18:59:59,1\n", None, "line 2: KeyError"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,1\n", None, "line 2: ValueError"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", None, "fewer than two"),
        (None, "t90:99", "no request in the window"),
        (None, "t9:3", "looks like t1200:1800"),
    ],
)
def test_a_bad_trace_is_named(
    trace_path: Path, text: str | None, window: str | None, message: str
) -> None:
    if text is not None:
        trace_path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_trace(trace_path, window)


def test_every_table_names_its_source_and_grids_have_even_margins() -> None:
    directory = files("headway.sim") / "data"
    loaded = {path.name: json.loads(path.read_text()) for path in directory.iterdir()}

    assert {name.removesuffix(".json").removesuffix("-arrivals") for name in loaded} == set(SOURCES)
    for data in loaded.values():
        assert "@" in data["source"]
        assert data["licence"]
        for key in ("grid", "thinking_grid"):
            if key in data:
                grid = np.array(data[key])
                assert np.ptp(grid.sum(axis=0)) <= 1
                assert np.ptp(grid.sum(axis=1)) <= 1
        for entry in data.values():
            if isinstance(entry, dict):
                assert all(low <= high for low, high in pairwise(entry["q"]))
                assert all(low < high for low, high in pairwise(entry["p"]))
