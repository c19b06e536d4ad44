"""What is known of drafts, tier by tier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from headway.core.batch_state import DECODE, Ints, Records
from headway.core.planner.acceptance import acceptance_of, new_acceptances, observe_decode

# Before anything was seen: drafts of some tokens pay, and so are tried.
_PRIOR = 2 / 3


class TierDrafts:
    """Tiers get numbers in the order in which they are first named."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._acceptances = new_acceptances(_PRIOR, 0)
        self._caps: dict[int, int] = {}

    def number(self, tier: str) -> int:
        """Of a tier, for REQUEST records."""
        number = self._numbers.setdefault(tier, len(self._numbers))
        if number == len(self._acceptances):
            self._acceptances = np.concatenate([self._acceptances, new_acceptances(_PRIOR, 1)])
        return number

    def probability(self, number: int) -> float:
        """That a drafted token is right if all before it were."""
        return float(acceptance_of(self._acceptances[number]))

    def cap(self, draft_lengths: Mapping[str, int]) -> None:
        """Bound the drafts of these tiers' requests from now on."""
        self._caps |= {self.number(tier): length for tier, length in draft_lengths.items()}

    def bound(self, records: Records, grants: Ints) -> int:
        """Shorten the drafts in grants to their tiers' bounds; returns the longest left."""
        decodes = (records["phase"] == DECODE) & (grants > 1)
        for number, cap in self._caps.items():
            grants[decodes & (records["tier"] == number) & (grants > 1 + cap)] = 1 + cap
        return int(grants[decodes].max(initial=1)) - 1

    def verified(
        self, records: Records, drafts: Mapping[int, tuple[int, int]], undrafted: Iterable[int]
    ) -> None:
        """Learn from a step's decodes, and tell all records.

        Args:
            records: REQUEST records.
            drafts: (drafted, accepted) by row.
            undrafted: rows of decodes without a draft: what was learned is forgotten by and by.
        """
        for row, (num_drafted, num_accepted) in drafts.items():
            observe_decode(self._acceptances[records["tier"][row]], num_drafted, num_accepted)
        for row in undrafted:
            observe_decode(self._acceptances[records["tier"][row]], 0, 0)
        for number in range(len(self._acceptances)):
            records["acceptance"][records["tier"] == number] = self.probability(number)

    def learned(self) -> dict[str, float]:
        """By tier, where there was anything to learn from."""
        return {
            tier: self.probability(number)
            for tier, number in self._numbers.items()
            if self._acceptances[number]["num_trials"] > 0
        }
