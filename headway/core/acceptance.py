"""How often drafted tokens are right, learned from their verification."""

from __future__ import annotations

# Half of what is known was learned in the last hundred or so verifications.
_FORGETTING = 0.993

# Before the first: as if so many drafted tokens had been right, and so many wrong.
_PRIOR_RIGHT = 4.0
_PRIOR_WRONG = 2.0


class Acceptance:
    """Probability that a drafted token is right if all before it were.

    Maximum likelihood for a geometric length: right tokens / (right tokens + drafts that ended
    in a wrong one), older verifications counting less.
    """

    def __init__(self) -> None:
        self._right = _PRIOR_RIGHT
        self._wrong = _PRIOR_WRONG
        self.num_verified = 0

    def verified(self, num_drafted: int, num_accepted: int) -> None:
        """Count one draft; empty ones say nothing."""
        if num_drafted == 0:
            return
        self.num_verified += 1
        self._right = _FORGETTING * self._right + num_accepted
        self._wrong = _FORGETTING * self._wrong + (num_accepted < num_drafted)

    @property
    def probability(self) -> float:
        return self._right / (self._right + self._wrong)
