"""How long steps may get while prompts wait: a decision of its own.

A long step wastes less on its fixed cost; a short one lets a short prompt in sooner. Both ends
lose requests, and a worker sees which: a request that would have fitted had the running step
ended already was lost to long steps, any other to lost work. The length moves until both kinds
of loss are about equally frequent.
"""

from __future__ import annotations

from dataclasses import dataclass

# One lost request moves the length by this much, ...
_STEP = 0.03
# ... or by less if it was lost to lack of capacity, which comes in bursts.
_CAPACITY_WEIGHT = 0.7
# Where a worker starts, over the time of an empty step.
_FIRST = 2.5
# The shortest length worth considering, over the time of an empty step.
_SHORTEST = 1.5
# Lengths tried next to the usual one, relative to it.
_SHORTER = (0.5, 0.25)
_LONGER = 1.6


@dataclass(slots=True)
class StepLength:
    """Of one worker; `usual_s` is what is tried first."""

    floor_s: float
    usual_s: float = 0.0

    def __post_init__(self) -> None:
        self.usual_s = self.usual_s or _FIRST * self.floor_s

    def candidates(self, longest_s: float) -> list[float]:
        """Lengths to try for a request that wants to join, the usual one first.

        Args:
            longest_s: the tightest TPOT on the worker; longer steps make tokens late.
        """
        usual_s = min(self.usual_s, longest_s)
        lengths = [usual_s]
        if _LONGER * usual_s < longest_s:
            lengths.append(longest_s)
        lengths += [r * usual_s for r in _SHORTER if r * usual_s > _SHORTEST * self.floor_s]
        return lengths

    def lost(self, *, to_running_step: bool, longest_s: float) -> None:
        """Learn from a request that did not fit."""
        usual_s = min(self.usual_s, longest_s)
        factor = 1.0 - _STEP if to_running_step else 1.0 + _CAPACITY_WEIGHT * _STEP
        self.usual_s = min(max(usual_s * factor, _SHORTEST * self.floor_s), longest_s)
