"""What is known of drafts, tier by tier."""

from __future__ import annotations

from collections.abc import Mapping

from headway.core.acceptance import Acceptance
from headway.core.batch_state import DECODE, Ints, Records


class TierDrafts:
    """Tiers get numbers in the order in which they are first named."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._acceptance: list[Acceptance] = []
        self._caps: dict[int, int] = {}

    def number(self, tier: str) -> int:
        """Of a tier, for REQUEST records."""
        number = self._numbers.setdefault(tier, len(self._numbers))
        if number == len(self._acceptance):
            self._acceptance.append(Acceptance())
        return number

    def probability(self, number: int) -> float:
        """That a drafted token is right if all before it were."""
        return self._acceptance[number].probability

    def cap(self, draft_lengths: Mapping[str, int]) -> None:
        """Bound the drafts of these tiers' requests from now on."""
        self._caps |= {self.number(tier): length for tier, length in draft_lengths.items()}

    def bound(self, records: Records, grants: Ints) -> int:
        """Shorten the drafts in grants to their tiers' bounds; returns the longest left."""
        decodes = (records["phase"] == DECODE) & (grants > 1)
        for number, cap in self._caps.items():
            grants[decodes & (records["tier"] == number) & (grants > 1 + cap)] = 1 + cap
        return int(grants[decodes].max(initial=1)) - 1

    def verified(self, records: Records, drafts: Mapping[int, tuple[int, int]]) -> None:
        """Learn from a step's drafts, (drafted, accepted) by row, and tell all records."""
        for row, (num_drafted, num_accepted) in drafts.items():
            self._acceptance[records["tier"][row]].verified(num_drafted, num_accepted)
        for number, acceptance in enumerate(self._acceptance):
            records["acceptance"][records["tier"] == number] = acceptance.probability

    def learned(self) -> dict[str, float]:
        """By tier, where there was anything to learn from."""
        return {
            tier: self._acceptance[number].probability
            for tier, number in self._numbers.items()
            if self._acceptance[number].num_verified
        }
