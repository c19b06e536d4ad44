"""How long an output is going to be, when nobody knows."""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass, field

# Ended requests remembered per tier.
_NUM_REMEMBERED = 1024
# Until so many have ended, a tier is planned with the guess it was given.
_MIN_REMEMBERED = 16


@dataclass(slots=True)
class _History:
    recent: deque[int] = field(default_factory=deque)
    ordered: list[int] = field(default_factory=list)


@dataclass(slots=True)
class OutputLengths:
    """Quantile bounds from the outputs that have ended, tier by tier.

    A request is planned with a length that only few exceed. The few that do are planned with
    the same quantile of those outputs that were longer than theirs so far.

    Attributes:
        first_guess: tokens, before anything is known of a tier.
        quantile: share of outputs that stay within their bound.
    """

    first_guess: int
    quantile: float = 0.8
    _tiers: dict[int, _History] = field(default_factory=dict)

    def bound(self, tier: int, num_generated: int = 0) -> int:
        """Length to plan with for an output of this tier; always above `num_generated`."""
        ordered = self._tiers[tier].ordered if tier in self._tiers else []
        if len(ordered) < _MIN_REMEMBERED:
            return max(self.first_guess, num_generated + 1 + num_generated // 2)
        first = bisect.bisect_right(ordered, num_generated)
        num_longer = len(ordered) - first
        if num_longer == 0:
            return num_generated + 1 + num_generated // 2
        return ordered[first + min(num_longer - 1, int(self.quantile * num_longer))]

    def ended(self, tier: int, num_output_tokens: int) -> None:
        """Learn from an output that ended."""
        history = self._tiers.setdefault(tier, _History())
        if len(history.recent) == _NUM_REMEMBERED:
            oldest = history.recent.popleft()
            del history.ordered[bisect.bisect_left(history.ordered, oldest)]
        history.recent.append(num_output_tokens)
        bisect.insort(history.ordered, num_output_tokens)
