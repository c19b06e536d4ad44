"""What a request was promised, and by when each of its tokens is due.

Units: durations end in `_s`, instants in `_at_s`; both are seconds. An instant is read on
the clock of one process and means nothing in another, so only durations cross the network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

# Attainment is checked at the first token, at every 10th and at the last one: often enough
# that a stall cannot hide, seldom enough that one late packet is not a miss.
CHECKPOINT_INTERVAL = 10


@dataclass(frozen=True, slots=True)
class StageSlo:
    """Pace promised in one stage of a request's output, for example while it is thinking.

    Attributes:
        tpot_s: gap between two tokens' deadlines.
        end_token_id: the stage ends with this token; None in a last or counted stage.
        end_after_tokens: the stage ends after so many tokens; None otherwise.
    """

    tpot_s: float
    end_token_id: int | None = None
    end_after_tokens: int | None = None

    def __post_init__(self) -> None:
        if not (self.tpot_s > 0 and math.isfinite(self.tpot_s)):
            raise ValueError(f"tpot_s must be positive, got {self.tpot_s}")
        if self.end_token_id is not None and self.end_after_tokens is not None:
            raise ValueError("a stage ends in one way, not two")
        if self.end_after_tokens is not None and self.end_after_tokens < 1:
            raise ValueError("end_after_tokens must be at least 1")

    @property
    def has_end(self) -> bool:
        return self.end_token_id is not None or self.end_after_tokens is not None


@dataclass(frozen=True, slots=True)
class Slo:
    """Bounds a request asks for.

    Attributes:
        ttft_s: from arrival at the controller to the first token leaving it; or None and
        ttft_slowdown: the same as a multiple of the prompt's prefill time on an idle worker.
        stages: at least one; all but the last have an end.
    """

    stages: tuple[StageSlo, ...]
    ttft_s: float | None = None
    ttft_slowdown: float | None = None

    def __post_init__(self) -> None:
        if (self.ttft_s is None) == (self.ttft_slowdown is None):
            raise ValueError("give either ttft_s or ttft_slowdown")
        if self.ttft_s is not None and not (self.ttft_s > 0 and math.isfinite(self.ttft_s)):
            raise ValueError(f"ttft_s must be positive, got {self.ttft_s}")
        if self.ttft_slowdown is not None and not (
            self.ttft_slowdown > 1 and math.isfinite(self.ttft_slowdown)
        ):
            raise ValueError(f"ttft_slowdown must be above 1, got {self.ttft_slowdown}")
        if not self.stages:
            raise ValueError("an SLO needs at least one stage")
        if not all(stage.has_end for stage in self.stages[:-1]) or self.stages[-1].has_end:
            raise ValueError("every stage but the last needs an end, and the last has none")

    @property
    def tightest_tpot_s(self) -> float:
        return min(stage.tpot_s for stage in self.stages)

    def promise(self, zero_load_prefill_s: float) -> Promise:
        """The bounds in seconds for a prompt that takes an idle worker `zero_load_prefill_s`."""
        ttft_s = self.ttft_s
        if ttft_s is None:
            assert self.ttft_slowdown is not None
            ttft_s = self.ttft_slowdown * zero_load_prefill_s
        return Promise(ttft_s, self.stages)


@dataclass(frozen=True, slots=True)
class Promise:
    """Bounds fixed at admission, slow-down resolved."""

    ttft_s: float
    stages: tuple[StageSlo, ...]

    @property
    def tightest_tpot_s(self) -> float:
        return min(stage.tpot_s for stage in self.stages)


@dataclass(slots=True)
class DemandLine:
    """Walks along one request's token deadlines as its tokens leave.

    Token i is due at arrival + TTFT + the sum of the gaps before it; tokens ahead of the line
    bank slack, so delaying them gains nothing. Strict scoring: every check-point must be met.

    Attributes:
        lead_s: by how much the first token left before its due time; 0 until then.
    """

    promise: Promise
    arrived_at_s: float
    num_tokens: int = 0
    num_checkpoints_missed: int = 0
    lead_s: float = 0.0
    _due_at_s: float = field(init=False)
    _stage: int = 0
    _num_stage_tokens: int = 0
    _last_late: bool = False

    def __post_init__(self) -> None:
        self._due_at_s = self.arrived_at_s + self.promise.ttft_s

    @property
    def next_due_at_s(self) -> float:
        """Latest instant at which the next token is on time."""
        return self._due_at_s

    @property
    def pace(self) -> tuple[float, int, float]:
        """Gap between tokens now, tokens until it changes, and the gap after that.

        Where a stage ends with a token it may end at any time, or never: the number is -1 then,
        and both gaps are the tightest of those that are left.
        """
        stage, later = self.promise.stages[self._stage], self.promise.stages[self._stage + 1 :]
        tightest_later_s = min((other.tpot_s for other in later), default=stage.tpot_s)
        if stage.end_after_tokens is not None:
            return stage.tpot_s, stage.end_after_tokens - self._num_stage_tokens, tightest_later_s
        tightest_s = min(stage.tpot_s, tightest_later_s)
        return tightest_s, -1, tightest_s

    def token(self, token_id: int, at_s: float) -> None:
        """Count one token that left at `at_s`."""
        late = at_s > self._due_at_s
        if self.num_tokens == 0:
            self.lead_s = max(0.0, self._due_at_s - at_s)
        is_checkpoint = self.num_tokens == 0 or (self.num_tokens + 1) % CHECKPOINT_INTERVAL == 0
        if is_checkpoint and late:
            self.num_checkpoints_missed += 1
        self._last_late = late and not is_checkpoint
        self.num_tokens += 1
        self._num_stage_tokens += 1
        stage = self.promise.stages[self._stage]
        if token_id == stage.end_token_id or self._num_stage_tokens == stage.end_after_tokens:
            self._stage += 1
            self._num_stage_tokens = 0
            stage = self.promise.stages[self._stage]
        self._due_at_s += stage.tpot_s

    @property
    def attained(self) -> bool:
        """Whether all check-points so far, and the last token as one, were met."""
        return self.num_tokens > 0 and self.num_checkpoints_missed == 0 and not self._last_late
