"""The engine's steps as they are scheduled and end, and how long they take."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from headway.core.residual import new_residuals, time_ratio, update_residual
from headway.ports.engine import EngineStep

_MAX_STEPS = 256


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """One step that was handed to the engine.

    Attributes:
        predicted_s: by the profile as it is; 0 where the engine made up the step itself.
    """

    scheduled_at_s: float
    predicted_s: float
    num_tokens: int
    num_decodes: int
    num_chunks: int
    num_held: int
    num_preempted: int


class StepLog:
    """Steps end in the order in which they were scheduled."""

    def __init__(self) -> None:
        self._under_way: deque[ScheduledStep] = deque()
        self._ended: deque[EngineStep] = deque(maxlen=_MAX_STEPS)
        self._ended_at_s = 0.0
        self._residual = new_residuals(1)

    @property
    def time_ratio(self) -> float:
        """Measured / predicted time of a typical step."""
        return float(time_ratio(self._residual[0]))

    def next_start_at_s(self, now_s: float, ratio: float) -> float:
        """When a step that is scheduled now can start: once those under way have ended."""
        at_s = self._ended_at_s
        for step in self._under_way:
            at_s = max(at_s, step.scheduled_at_s) + ratio * step.predicted_s
        return max(at_s, now_s)

    def scheduled(self, step: ScheduledStep) -> None:
        """Count a step in; empty ones too, since they end like others."""
        self._under_way.append(step)

    def ended(self, now_s: float) -> None:
        """The oldest step under way has its output."""
        if not self._under_way:
            return  # it was scheduled before anybody counted
        step = self._under_way.popleft()
        started_at_s = max(step.scheduled_at_s, self._ended_at_s)
        self._ended_at_s = now_s
        if step.num_tokens == 0:
            return
        self._ended.append(
            EngineStep(
                started_at_s=started_at_s,
                duration_s=now_s - started_at_s,
                num_tokens=step.num_tokens,
                num_decodes=step.num_decodes,
                num_chunks=step.num_chunks,
                num_held=step.num_held,
                num_preempted=step.num_preempted,
            )
        )
        update_residual(self._residual[0], step.predicted_s, now_s - started_at_s)

    def take(self) -> list[EngineStep]:
        """Steps since the last call, but not more than the newest 256."""
        steps, self._ended = list(self._ended), deque(maxlen=_MAX_STEPS)
        return steps
