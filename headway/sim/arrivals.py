"""When requests come: laws whose burstiness was measured in public traces, or a trace itself.

A pattern is a series of instants in units of the mean gap, so that a rate only divides it: the
same seed gives the same pattern at any rate, compressed in time, as in the SLOs-Serve artefact,
which divides the timestamps of its traces.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from headway.core.batch_state import Floats, Ints
from headway.sim.lengths import joint_of, load, quantiles

# Requests that share a pace within a burst of code completions; see `_bursts`.
WAVE = 32
_FIRST_CHUNK = 1024


def stream(seed: int, *key: int) -> np.random.Generator:
    """An independent generator for each key; its first draws do not depend on how many follow."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


@dataclass(frozen=True, slots=True)
class Trace:
    """N recorded requests, in order of time.

    Attributes:
        at_s: from the start of the trace, or of the window that was cut out.
        span_s: length of the trace or window.
    """

    at_s: Floats
    span_s: float
    num_prompt_tokens: Ints
    num_output_tokens: Ints

    def fitting(self, max_total_tokens: int | None) -> Trace:
        """Without requests longer than this."""
        if max_total_tokens is None:
            return self
        fits = self.num_prompt_tokens + self.num_output_tokens <= max_total_tokens
        if not fits.any():
            raise ValueError(f"no request of the trace has {max_total_tokens} tokens or fewer")
        return Trace(
            self.at_s[fits], self.span_s, self.num_prompt_tokens[fits], self.num_output_tokens[fits]
        )

    def pattern(self, horizon: float) -> Floats:
        """Instants in units of the mean gap before `horizon`; ends with the trace."""
        at = self.at_s * (len(self.at_s) / self.span_s)
        return at[at < horizon]


def read_trace(path: Path, window: str | None = None) -> Trace:
    """Read a trace in the format of the Azure LLM inference traces (.csv or .csv.gz).

    Args:
        path: has columns TIMESTAMP, ContextTokens, GeneratedTokens, in order of time.
        window: for example `t1200:1800`, the seconds from the first request on to keep.

    Raises:
        ValueError: not such columns, or nothing in the window.
        FileNotFoundError: no such file.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    rows: list[tuple[datetime, int, int]] = []
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                # Seven fractional digits, of which datetime takes six.
                at = datetime.fromisoformat(row["TIMESTAMP"][:26])
                rows.append((at, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
            except (KeyError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: {error!r}") from error
    if len(rows) < 2:
        raise ValueError(f"{path} has fewer than two requests")
    at_s = np.array([(at - rows[0][0]).total_seconds() for at, _, _ in rows])
    prompt, output = (np.array([row[i] for row in rows], dtype=np.int64) for i in (1, 2))
    from_s, to_s = (0.0, float(at_s[-1])) if window is None else _window(window)
    kept = (at_s >= from_s) & (at_s <= to_s)
    if not kept.any():
        raise ValueError(f"{path} has no request in the window {window}")
    return Trace(
        at_s[kept] - from_s, to_s - from_s, np.maximum(prompt[kept], 1), np.maximum(output[kept], 1)
    )


def _window(text: str) -> tuple[float, float]:
    match = re.fullmatch(r"t(\d+):(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"a window looks like t1200:1800, not {text!r}")
    return float(match[1]), float(match[2])


def _poisson(seed: int, num: int) -> Floats:
    """`num` instants of a Poisson process."""
    return np.cumsum(-np.log1p(-stream(seed, 0).random(num)))


def _drift(seed: int, num: int) -> Floats:
    """`num` instants as in Azure's chat trace: nearly Poisson by the second, and drifting.

    A Poisson process whose rate is log-normal: the product of two mean-reverting factors, one of
    seconds and one of minutes. The four constants are least squares on the trace's index of
    dispersion of counts at 1 to 300 s.
    """
    law = load("azure-chat-arrivals")
    operational = _poisson(seed, num)
    rate = law["requests_per_s"]
    clock = np.zeros(1)
    # One second of the trace per entry, and enough of them.
    num_s = int(num / rate)
    while clock[-1] <= operational[-1]:
        num_s = 2 * num_s + 600
        noise = stream(seed, 1).standard_normal((num_s, 2))
        level = np.ones(num_s)
        for column, (sigma, time_s) in enumerate((law["fast"], law["slow"])):
            level *= np.exp(sigma * _mean_reverting(noise[:, column], time_s) - sigma**2 / 2)
        clock = np.concatenate([np.zeros(1), np.cumsum(level * rate)])
    at: Floats = np.interp(operational, clock, np.arange(num_s + 1) * rate)
    return at


def _mean_reverting(noise: Floats, time_s: float) -> Floats:
    """An Ornstein-Uhlenbeck process of variance 1, once a second, from independent normals."""
    keep = np.exp(-1.0 / time_s)
    level = noise[0]
    out = np.empty_like(noise)
    for i, fresh in enumerate(noise * np.sqrt(1.0 - keep**2)):
        out[i] = level
        level = keep * level + fresh
    return out


def _bursts(seed: int, num: int) -> Floats:
    """`num` instants as in Azure's code trace: bursts of hundreds, silences of minutes.

    Quiet gaps alternate with bursts. A burst has a size and a pace, drawn together; within it the
    pace goes up and down once in `WAVE` requests, and gaps are multiples of it. All the laws are
    the trace's own.
    """
    law = load("azure-code-arrivals")
    joint = joint_of(law, "burst_requests", "pace_s")
    draws = stream(seed, 1).random((num, 4))
    size, pace_s = joint.at(draws[:, :3])
    num_requests = np.rint(size).astype(np.int64)
    # Bursts have one request at least, so `num` of them are enough.
    burst = np.repeat(np.arange(num), num_requests)[:num]
    starts = np.concatenate([np.ones(1, dtype=bool), burst[1:] != burst[:-1]])
    sigma = law["wave_sigma"]
    wave = np.exp(sigma * stream(seed, 2).standard_normal(num // WAVE + 1) - sigma**2 / 2)
    gap_s = pace_s[burst] * np.repeat(wave, WAVE)[:num]
    gap_s *= quantiles(law["relative_gap"]).at(stream(seed, 0).random(num))
    gap_s[starts] = quantiles(law["quiet_s"]).at(draws[burst[starts], 3])
    at: Floats = np.cumsum(gap_s) / law["mean_gap_s"]
    return at


@dataclass(frozen=True, slots=True)
class ArrivalLaw:
    """What `--arrivals` can name.

    Attributes:
        instants: `num` of them from a seed, in units of the mean gap; None for a trace.
    """

    description: str
    instants: Callable[[int, int], Floats] | None


ARRIVALS: dict[str, ArrivalLaw] = {
    "poisson": ArrivalLaw("memoryless", _poisson),
    "azure-chat": ArrivalLaw("calm, drifts by the minute; as Azure's conversation trace", _drift),
    "azure-code": ArrivalLaw("bursts and silences; as Azure's code trace", _bursts),
    "trace": ArrivalLaw("the timestamps of a trace file", None),
}


def pattern(name: str, seed: int, horizon: float) -> Floats:
    """Instants of a law before `horizon`, both in units of the mean gap.

    Args:
        name: one of `ARRIVALS`, not `trace`.
        seed: same seed, same pattern, however long.
        horizon: about so many instants come.

    Raises:
        ValueError: no such law.
    """
    law = ARRIVALS.get(name)
    if law is None or law.instants is None:
        raise ValueError(f"arrivals are one of {', '.join(ARRIVALS)}, not {name!r}")
    num = _FIRST_CHUNK + int(horizon)
    at = law.instants(seed, num)
    while at[-1] < horizon:
        num *= 2
        at = law.instants(seed, num)
    return at[at < horizon]
