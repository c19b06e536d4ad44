"""Counts what a load got, tier by tier, from the client's side."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headway.client import Finished, RequestMeter
from headway.core.request import RequestState
from headway.errors import HeadwayError, Refused


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p90 and p99 by linear interpolation between order statistics; None of nothing."""
    match len(values):
        case 0:
            return {"p50": None, "p90": None, "p99": None}
        case 1:
            return {"p50": values[0], "p90": values[0], "p99": values[0]}
        case _:
            cuts = statistics.quantiles(values, n=100, method="inclusive")
            return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98]}


@dataclass(slots=True)
class TierTally:
    """Requests that named one tier. Keeps two numbers per request and nothing per token.

    Attributes:
        failures: reasons why requests ended other than well, refusals not among them.
        refusals: reasons of the refusals.
        violations: ways in which streams broke the rules of the API.
        ttft_s, tpot_s: of all requests that got so far, promised or not.
    """

    num_asked: int = 0
    num_guaranteed: int = 0
    num_best_effort: int = 0
    num_refused: int = 0
    num_failed: int = 0
    num_succeeded: int = 0
    num_attained: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    ttft_s: array[float] = field(default_factory=lambda: array("d"))
    tpot_s: array[float] = field(default_factory=lambda: array("d"))

    @property
    def num_running(self) -> int:
        return self.num_asked - self.num_succeeded - self.num_refused - self.num_failed

    def admitted(self, guaranteed: bool) -> None:
        if guaranteed:
            self.num_guaranteed += 1
        else:
            self.num_best_effort += 1

    def ended(self, meter: RequestMeter, error: HeadwayError | None) -> None:
        """Count one request's end: its Finished, or the error that stood in its place."""
        if meter.ttft_s is not None:
            self.ttft_s.append(meter.ttft_s)
        if meter.tpot_s is not None:
            self.tpot_s.append(meter.tpot_s)
        match error, meter.finished:
            case Refused(), _:
                self.num_refused += 1
                self.refusals[error.reason] += 1
            case None, Finished(state=RequestState.SUCCEEDED):
                self.num_succeeded += 1
                self.num_attained += meter.attained
            case None, Finished() as finished:
                self.num_failed += 1
                self.failures[finished.error_reason or finished.state.value] += 1
            case _:
                self.num_failed += 1
                self.failures[error.reason if error else "NOT_FINISHED"] += 1

    def report(self) -> dict[str, Any]:
        """For JSON. Attainment ratios are None when nothing was asked or guaranteed."""
        return {
            "asked": self.num_asked,
            "guaranteed": self.num_guaranteed,
            "best_effort": self.num_best_effort,
            "refused": self.num_refused,
            "failed": self.num_failed,
            "succeeded": self.num_succeeded,
            "attained": self.num_attained,
            "attained_of_asked_ratio": _ratio(self.num_attained, self.num_asked),
            "attained_of_guaranteed_ratio": _ratio(self.num_attained, self.num_guaranteed),
            "ttft_s": percentiles(self.ttft_s),
            "tpot_s": percentiles(self.tpot_s),
            "refusals": dict(self.refusals),
            "failures": dict(self.failures),
            "violations": dict(self.violations),
        }


@dataclass(slots=True)
class KvTally:
    """What moving KV took, summed over requests.

    Attributes:
        recomputed: how many requests had so many prompt tokens computed by the decode engine.
    """

    num_transfers: int = 0
    num_bytes: int = 0
    duration_s: float = 0.0
    num_overlapped_bytes: float = 0.0
    recomputed: Counter[int] = field(default_factory=Counter)

    def ended(self, finished: Finished) -> None:
        if finished.state is not RequestState.SUCCEEDED:
            return
        self.recomputed[finished.usage.num_prompt_tokens_recomputed] += 1
        kv = finished.kv_transfer
        if kv is None:
            return
        self.num_transfers += 1
        self.num_bytes += kv.num_bytes
        self.duration_s += kv.duration_s
        self.num_overlapped_bytes += kv.overlapped_ratio * kv.num_bytes

    def report(self) -> dict[str, Any]:
        return {
            "transfers": self.num_transfers,
            "bytes": self.num_bytes,
            "seconds": self.duration_s,
            "overlapped_ratio": _ratio(self.num_overlapped_bytes, self.num_bytes),
        }

    def recomputed_report(self) -> dict[str, Any]:
        return {
            "max": max(self.recomputed, default=0),
            "total": sum(num * count for num, count in self.recomputed.items()),
            "histogram": {str(num): self.recomputed[num] for num in sorted(self.recomputed)},
        }


@dataclass(slots=True)
class Tally:
    """One load.

    Attributes:
        max_start_lag_s: how much later than planned a request was sent at worst; a large one
            means that this client, not the cluster, was the bottleneck.
    """

    tiers: dict[str, TierTally] = field(default_factory=dict)
    kv: KvTally = field(default_factory=KvTally)
    max_start_lag_s: float = 0.0

    def tier(self, name: str) -> TierTally:
        return self.tiers.setdefault(name, TierTally())

    def total(self, count: str) -> int:
        """Sum of one count of TierTally, for example "num_asked"."""
        return sum(getattr(tier, count) for tier in self.tiers.values())


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
