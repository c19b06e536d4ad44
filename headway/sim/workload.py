"""What is asked of a simulated cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headway.core.batch_state import Floats, Ints
from headway.core.slo import Slo


@dataclass(frozen=True, slots=True)
class Tier:
    """A named promise that requests of a workload ask for."""

    name: str
    slo: Slo


@dataclass(frozen=True, slots=True)
class Workload:
    """N requests as parallel arrays of length N, sorted by arrival.

    A request may follow another one of its session: a round of a tool loop. It then arrives
    `gap_s` after the end of the request it follows, and `arrived_at_s` is NaN.

    Attributes:
        tiers: what `tier` counts through.
        arrived_at_s: from the start of the run.
        num_prompt_tokens: with the `num_prefix_tokens` of earlier rounds.
        num_output_tokens: with the `num_thinking_tokens` of the first stage.
        num_thinking_tokens: 0 where the tier has one stage.
        follows: index of the previous round; -1 for none. Always smaller than its own index.
        num_prefix_tokens: leading prompt tokens whose KV the previous round left behind.
    """

    name: str
    tiers: tuple[Tier, ...]
    arrived_at_s: Floats
    num_prompt_tokens: Ints
    num_output_tokens: Ints
    tier: Ints
    num_thinking_tokens: Ints
    follows: Ints
    gap_s: Floats
    num_prefix_tokens: Ints

    def __post_init__(self) -> None:
        num_requests = len(self.arrived_at_s)
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, np.ndarray) and value.shape != (num_requests,):
                raise ValueError(f"{name} has shape {value.shape}, not ({num_requests},)")
        if num_requests and (self.num_prompt_tokens.min() < 1 or self.num_output_tokens.min() < 1):
            raise ValueError("prompts and outputs have at least one token")
        if (self.follows >= np.arange(num_requests)).any():
            raise ValueError("a request can only follow an earlier one")
        if (np.isnan(self.arrived_at_s) != (self.follows >= 0)).any():
            raise ValueError("arrived_at_s is NaN where, and only where, a request follows another")

    def __len__(self) -> int:
        return len(self.arrived_at_s)
