"""Derives the tables of headway/sim/data from public traces.

    python -m bench.derive_lengths azure-chat AzureLLMInferenceTrace_conv.csv
    python -m bench.derive_lengths azure-code AzureLLMInferenceTrace_code.csv
    python -m bench.derive_lengths arxiv arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv
    python -m bench.derive_lengths servegen-r1 datasets.jsonl client_rates.csv
    python -m bench.derive_lengths toolbench lengths.json

Where to get them: `SOURCES` names each repository, path and commit. Files may be gzipped. Two
need a first step: `datasets.jsonl` holds one line per client, {"client_id", "windows": {start:
{"input_tokens", "output_tokens", "reason_ratio"}}}, from ServeGen's chunk-*-dataset.json, and
`client_rates.csv` the rows client_id, window_start_s, rate_rps from its chunk-*-trace.csv;
`lengths.json` holds ToolBench's recorded calls as [session, call, input tokens with tool schema,
output tokens] and, for its evaluation set, tokens of schema and query and tool calls per task,
all counted with Qwen's tokenizer. Written are statistics only, never a row of a trace.
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from headway.core.batch_state import Floats
from headway.sim.arrivals import WAVE, read_trace
from headway.sim.lengths import joint_of, quantiles

DATA = Path("headway/sim/data")
VIDUR_TRACE = "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv"
TOOLBENCH_TASKS = "toolbench/tooleval/results/default_evalset/gpt-3.5-turbo_CoT"
# Repository, path, commit, licence.
SOURCES = {
    "azure-chat": (
        "Azure/AzurePublicDataset",
        "data/AzureLLMInferenceTrace_conv.csv",
        "b469a113cedca53ddc3bdea71a143dc4b7d8700c",
        "CC-BY-4.0; cite Splitwise, ISCA 2024",
    ),
    "azure-code": (
        "Azure/AzurePublicDataset",
        "data/AzureLLMInferenceTrace_code.csv",
        "b469a113cedca53ddc3bdea71a143dc4b7d8700c",
        "CC-BY-4.0; cite Splitwise, ISCA 2024",
    ),
    "arxiv": (
        "microsoft/vidur",
        f"data/processed_traces/{VIDUR_TRACE}",
        "7d47513363ec447a741ac5e47241580b47724fbf",
        "MIT",
    ),
    "servegen-r1": (
        "alibaba/ServeGen",
        "data/reason/deepseek-r1/chunk-*-{dataset.json,trace.csv}",
        "f891d1189eb32b3868dfc443800c4150548c282a",
        "Apache-2.0",
    ),
    "toolbench": (
        "OpenBMB/ToolBench",
        f"data_example/answer and {TOOLBENCH_TASKS}",
        "d56fdd89faf8c91fa135090b212bb9057ee5cfc2",
        "Apache-2.0",
    ),
}
NUM_CELLS = 24
# Every half per cent, and the tail.
PROBABILITIES = np.concatenate([np.linspace(0, 0.995, 200), [0.9975, 0.999, 0.9995, 0.9999, 1.0]])
# A gap longer than this separates two bursts of code completions.
QUIET_S = 1.0
NUM_DRAWS = 400_000

Table = dict[str, Any]


def opened(path: Path) -> TextIO:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open()


def table(values: Floats | list[int]) -> Table:
    """Quantiles; of few values so few that none of them can be told from the table."""
    few = np.linspace(0, 1, min(41, len(values) // 2 + 1))
    probabilities = PROBABILITIES if len(values) > 2000 else few
    return {
        "p": [round(float(p), 6) for p in probabilities],
        "q": [float(f"{q:.5g}") for q in np.quantile(values, probabilities)],
    }


def ranks(values: Floats) -> Floats:
    """Ranks in [0, 1); ties are broken at random, so that the ranks are uniform."""
    tie = np.random.Generator(np.random.PCG64(0)).random(len(values))
    out = np.empty(len(values))
    out[np.lexsort((tie, values))] = np.arange(len(values)) / len(values)
    return out


def grid(first: Floats, second: Floats, num_cells: int = NUM_CELLS) -> list[list[int]]:
    counts, _, _ = np.histogram2d(
        ranks(first), ranks(second), bins=num_cells, range=((0, 1), (0, 1))
    )
    return [[int(count) for count in row] for row in counts]


def joint(prompt: Floats, output: Floats) -> Table:
    return {"prompt": table(prompt), "output": table(output), "grid": grid(prompt, output)}


def dispersion(at_s: Floats, window_s: float, span_s: float) -> float:
    """Variance / mean of the number of requests in a window; 1 for a Poisson process."""
    num_windows = int(span_s / window_s)
    counts = np.bincount((at_s / window_s).astype(np.int64), minlength=num_windows)[:num_windows]
    return float(counts.var() / counts.mean())


def drift(at_s: Floats) -> Table:
    """Two mean-reverting factors of the log rate, so that the dispersion fits at 1 to 300 s.

    A factor is constant within a second. The dispersion of a Poisson process of rate r times
    such a factor of covariance c is 1 + r / w * the sum of c(|i - j|) over seconds i, j < w.
    """
    # scipy has no stubs here and is needed for nothing else.
    from scipy.optimize import least_squares  # noqa: PLC0415

    span_s = float(at_s[-1])
    rate = len(at_s) / span_s
    windows_s = (1, 3, 10, 30, 60, 120, 300)
    measured = np.array([dispersion(at_s, window_s, span_s) for window_s in windows_s])

    def fitted(parameters: Floats) -> Floats:
        sigma_fast, time_fast_s, sigma_slow, time_slow_s = np.exp(parameters)
        out = []
        for window_s in windows_s:
            lag_s = np.arange(window_s)
            log_covariance = sigma_fast**2 * np.exp(-lag_s / time_fast_s)
            log_covariance += sigma_slow**2 * np.exp(-lag_s / time_slow_s)
            pairs = np.where(lag_s == 0, 1, 2) * (window_s - lag_s)
            out.append(1 + rate / window_s * (pairs * np.expm1(log_covariance)).sum())
        return np.array(out)

    start = np.log([0.15, 5.0, 0.22, 600.0])
    found = least_squares(lambda x: np.log(fitted(x) / measured), start).x
    sigma_fast, time_fast_s, sigma_slow, time_slow_s = (float(f"{x:.4g}") for x in np.exp(found))
    return {
        "requests_per_s": round(rate, 4),
        "fast": [sigma_fast, time_fast_s],
        "slow": [sigma_slow, time_slow_s],
    }


def bursts(at_s: Floats) -> Table:
    """Quiet gaps, sizes and paces of bursts, and how gaps and pace vary within them."""
    gap_s = np.diff(at_s)
    last = np.flatnonzero(gap_s > QUIET_S)
    first_of = np.concatenate([[0], last + 1])
    end_of = np.concatenate([last + 1, [len(at_s)]])
    size = (end_of - first_of).astype(np.float64)
    many = size >= 4
    pace_s = np.full(len(size), np.nan)
    relative: list[Floats] = []
    wave: list[Floats] = []
    shuffled: list[Floats] = []
    generator = np.random.Generator(np.random.PCG64(0))
    for i in np.flatnonzero(many):
        gaps = gap_s[first_of[i] : end_of[i] - 1]
        pace_s[i] = gaps.mean()
        relative.append(gaps / pace_s[i])
        for series, out in ((gaps, wave), (generator.permutation(gaps), shuffled)):
            # Too few waves would share the burst's own pace.
            whole = len(series) // WAVE * WAVE if len(series) >= 4 * WAVE else 0
            out.append(series[:whole].reshape(-1, WAVE).mean(axis=1) / pace_s[i])
    # Of a burst too small to tell, any pace does.
    pace_s[~many] = generator.choice(pace_s[many], int((~many).sum()))
    spread = np.log(np.concatenate(wave)).var() - np.log(np.concatenate(shuffled)).var()
    law: Table = {
        "burst_requests": table(size),
        "pace_s": table(pace_s),
        "grid": grid(size, pace_s, 6),
        "quiet_s": table(gap_s[last]),
        "relative_gap": table(np.concatenate(relative)),
        "wave_sigma": round(float(np.sqrt(spread)), 3),
    }
    # Of the law itself, in which pace and size of a burst depend on each other by the grid only.
    size, pace_s = joint_of(law, "burst_requests", "pace_s").at(generator.random((2_000_000, 3)))
    quiet_s, relative_gap = (
        float(quantiles(law[key]).at(generator.random(2_000_000)).mean())
        for key in ("quiet_s", "relative_gap")
    )
    num = np.rint(size)
    burst_s = float((pace_s * (num - 1)).mean()) * relative_gap
    return law | {"mean_gap_s": round((quiet_s + burst_s) / float(num.mean()), 5)}


def azure(name: str, paths: list[Path]) -> dict[str, Table]:
    trace = read_trace(paths[0])
    lengths = joint(
        trace.num_prompt_tokens.astype(np.float64), trace.num_output_tokens.astype(np.float64)
    )
    law = drift(trace.at_s) if name == "azure-chat" else bursts(trace.at_s)
    count = {"num_requests": len(trace.at_s)}
    return {name: count | lengths, f"{name}-arrivals": count | law}


def arxiv(name: str, paths: list[Path]) -> dict[str, Table]:
    with opened(paths[0]) as file:
        rows = [
            (float(row["num_prefill_tokens"]), float(row["num_decode_tokens"]))
            for row in csv.DictReader(file)
        ]
    prompt, output = np.array(rows).T
    return {name: {"num_requests": len(rows)} | joint(prompt, output)}


def servegen(name: str, paths: list[Path]) -> dict[str, Table]:
    """Mixes the clients by their rates; within a client and window the laws are independent."""
    rates: dict[tuple[int, int], float] = defaultdict(float)
    with opened(paths[1]) as file:
        for row in csv.DictReader(file):
            # Laws are given for each quarter of the day.
            window = int(row["window_start_s"]) // 21600 * 21600
            rates[int(row["client_id"]), window] += float(row["rate_rps"])
    generator = np.random.Generator(np.random.PCG64(0))
    total = sum(rates.values())
    columns: list[list[Floats]] = [[], [], []]
    num_clients = 0
    with opened(paths[0]) as file:
        for line in file:
            client = json.loads(line)
            num_clients += 1
            for window, laws in client["windows"].items():
                num = round(NUM_DRAWS * rates[client["client_id"], int(window)] / total)
                for column, key in enumerate(("input_tokens", "output_tokens", "reason_ratio")):
                    pmf = ast.literal_eval(laws[key]) if num else {}
                    weights = np.array(list(pmf.values()))
                    values = np.array([float(value) for value in pmf])
                    if num:
                        drawn = generator.choice(values, num, p=weights / weights.sum())
                        columns[column].append(drawn)
    prompt, output, share = (np.concatenate(column) for column in columns)
    extra = {"thinking_share": table(share), "thinking_grid": grid(output, share)}
    return {name: {"num_clients": num_clients} | joint(prompt, output) | extra}


def toolbench(name: str, paths: list[Path]) -> dict[str, Table]:
    with opened(paths[0]) as file:
        data = json.load(file)
    sessions: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for session, _, prompt, output in data["rows"]:
        sessions[session].append((prompt, output))
    calls = [output for rounds in sessions.values() for _, output in rounds[:-1]]
    answers = [rounds[-1][1] for rounds in sessions.values()]
    growth = [
        later[0] - sum(earlier)
        for rounds in sessions.values()
        for earlier, later in pairwise(rounds)
    ]
    tasks = data["eval_set"]
    return {
        name: {
            "num_sessions": len(sessions),
            "num_calls": len(data["rows"]),
            "num_tasks": len(tasks["tool_calls"]),
            # Counts of tasks with 1, 2, ... rounds; the last round is the answer.
            "rounds": [int(count) for count in np.bincount(tasks["tool_calls"])[1:]],
            "schema": table(tasks["schema"]),
            "query": table(tasks["query"]),
            "call": table(calls),
            "answer": table(answers),
            "growth": table(growth),
        }
    }


DERIVE: dict[str, Callable[[str, list[Path]], dict[str, Table]]] = {
    "azure-chat": azure,
    "azure-code": azure,
    "arxiv": arxiv,
    "servegen-r1": servegen,
    "toolbench": toolbench,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", choices=SOURCES)
    parser.add_argument("paths", nargs="+", type=Path)
    arguments = parser.parse_args()
    repository, path, commit, licence = SOURCES[arguments.name]
    for name, derived in DERIVE[arguments.name](arguments.name, arguments.paths).items():
        header = {
            "source": f"{repository}: {path} @ {commit}",
            "licence": licence,
            "derived": f"python -m bench.derive_lengths {arguments.name}; statistics, no rows",
        }
        lines = [
            f"{json.dumps(key)}: {json.dumps(value)}" for key, value in (header | derived).items()
        ]
        written = DATA / f"{name}.json"
        written.write_text("{\n  " + ",\n  ".join(lines) + "\n}\n", encoding="utf-8")
        print(f"wrote {written}")


if __name__ == "__main__":
    main()
