"""What a run came to: whose bounds were met, and how long things took.

A request counts as attained only if it was promised: best effort and refusals are misses, so
every ratio is of all that was asked. Two ways to score:

* strict: the first token, every 10th and the last one leave by their due times. Token j is due
  at arrival + TTFT bound + the gaps before it.
* mean: the first token is in time, and the time from there to the last one is no more than all
  gaps between them together.

The due times lie `first_token_overhead_s` of the cluster earlier, and TTFT counts it: what
planning takes, and the way to the client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.core.batch_state import Floats, Ints
from headway.sim.result import RunResult
from headway.sim.workload import Workload
from headway.sim.world_state import REFUSED, SERVED

Bools = NDArray[np.bool_]


def tpot_bounds_s(workload: Workload) -> Floats:
    """Gap between due times while a request thinks and after that, shape (N, 2)."""
    by_tier = np.array(
        [(tier.slo.stages[0].tpot_s, tier.slo.stages[-1].tpot_s) for tier in workload.tiers]
    )
    bounds_s: Floats = by_tier[workload.tier]
    without = workload.num_thinking_tokens == 0
    bounds_s[without, 0] = bounds_s[without, 1]
    return bounds_s


def allowed_decode_s(workload: Workload) -> Floats:
    """From the due time of the first token to that of the last one, shape (N,)."""
    bounds_s = tpot_bounds_s(workload)
    num_gaps = workload.num_output_tokens - 1
    num_thinking = np.clip(workload.num_thinking_tokens - 1, 0, num_gaps)
    allowed_s: Floats = num_thinking * bounds_s[:, 0] + (num_gaps - num_thinking) * bounds_s[:, 1]
    return allowed_s


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts over some requests.

    Attributes:
        num_tokens: of prompts and outputs.
        num_attained_tokens: of these, in requests attained by strict scoring.
        ttft_s, tpot_s: p50, p90 and p99 of all that was served, promised or not; None of nothing.
    """

    num_asked: int
    num_promised: int
    num_best_effort: int
    num_refused: int
    num_attained: int
    num_attained_mean: int
    num_tokens: int
    num_attained_tokens: int
    ttft_s: dict[str, float | None]
    tpot_s: dict[str, float | None]

    @property
    def attained_ratio(self) -> float:
        """SLO attainment by strict scoring; 1 of nothing."""
        return self.num_attained / self.num_asked if self.num_asked else 1.0

    @property
    def attained_mean_ratio(self) -> float:
        """SLO attainment by mean TPOT; 1 of nothing."""
        return self.num_attained_mean / self.num_asked if self.num_asked else 1.0

    @property
    def token_weighted_ratio(self) -> float:
        """Strict, each request weighted by its tokens: shows whether long ones were shed."""
        return self.num_attained_tokens / self.num_tokens if self.num_tokens else 1.0

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "asked": self.num_asked,
            "promised": self.num_promised,
            "best_effort": self.num_best_effort,
            "refused": self.num_refused,
            "attained_strict": self.num_attained,
            "attained_mean": self.num_attained_mean,
            "attained_strict_ratio": self.attained_ratio,
            "attained_mean_ratio": self.attained_mean_ratio,
            "attained_token_weighted_ratio": self.token_weighted_ratio,
            "ttft_s": self.ttft_s,
            "tpot_s": self.tpot_s,
        }


def percentiles(values: Floats) -> dict[str, float | None]:
    """p50, p90 and p99 by linear interpolation between order statistics, NaN left out."""
    kept = values[~np.isnan(values)]
    if not len(kept):
        return {"p50": None, "p90": None, "p99": None}
    cuts = np.quantile(kept, (0.5, 0.9, 0.99)).tolist()
    return dict(zip(("p50", "p90", "p99"), cuts, strict=True))


@dataclass(frozen=True, slots=True)
class Score:
    """A scored run; arrays of shape (N,) in the workload's order.

    Attributes:
        promised, best_effort, refused: one of them is set for every request.
        strict, mean: attained.
        ttft_s: from arrival to the first token at the client; NaN where there is none.
        tpot_s: NaN with fewer than two tokens.
    """

    workload: Workload
    promised: Bools
    best_effort: Bools
    refused: Bools
    strict: Bools
    mean: Bools
    ttft_s: Floats
    tpot_s: Floats

    def all(self) -> Tally:
        """Over all requests."""
        return self._tally(np.ones(len(self.workload), np.bool_))

    def tiers(self) -> dict[str, Tally]:
        """By the name of the tier asked for, in the workload's order of tiers."""
        return {
            tier.name: self._tally(self.workload.tier == number)
            for number, tier in enumerate(self.workload.tiers)
        }

    def _tally(self, chosen: Bools) -> Tally:
        num_tokens: Ints = self.workload.num_prompt_tokens + self.workload.num_output_tokens
        return Tally(
            num_asked=int(chosen.sum()),
            num_promised=int((self.promised & chosen).sum()),
            num_best_effort=int((self.best_effort & chosen).sum()),
            num_refused=int((self.refused & chosen).sum()),
            num_attained=int((self.strict & chosen).sum()),
            num_attained_mean=int((self.mean & chosen).sum()),
            num_tokens=int(num_tokens[chosen].sum()),
            num_attained_tokens=int(num_tokens[self.strict & chosen].sum()),
            ttft_s=percentiles(self.ttft_s[chosen]),
            tpot_s=percentiles(self.tpot_s[chosen]),
        )


def score(result: RunResult) -> Score:
    """Score a run that has ended."""
    sim, workload = result.sim, result.workload
    served = sim["outcome"] == SERVED
    refused = sim["outcome"] == REFUSED
    best_effort = (sim["deferred"] == 1) & ~refused
    promised = ~best_effort & ~refused
    first_at_s, last_at_s = sim["first_token_at_s"], sim["last_token_at_s"]
    decode_s = last_at_s - first_at_s
    num_gaps = workload.num_output_tokens - 1
    kept = promised & served
    return Score(
        workload=workload,
        promised=promised,
        best_effort=best_effort,
        refused=refused,
        strict=kept & (sim["num_checkpoints_missed"] == 0),
        mean=kept
        & (first_at_s <= sim["first_due_at_s"])
        & (decode_s <= allowed_decode_s(workload)),
        # The bound less what was left of it: with all that is charged to the first token.
        ttft_s=result.ttft_bound_s - (sim["first_due_at_s"] - first_at_s),
        tpot_s=np.where(num_gaps > 0, decode_s / np.maximum(num_gaps, 1), np.nan),
    )
