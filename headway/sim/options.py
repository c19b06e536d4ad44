"""How one run of the simulator is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How one run is done.

    Attributes:
        seed: of the truth's noise.
        known_lengths: policies see each output's true length; else what `OutputLengths` has
            learned from those that have ended.
        prefill_emits_first_token: the prefill worker sends it, not the decode worker.
        log: keep every step, and the time of every token that counts.
        learn: planners learn from measured step times, which is pointless in an exact world, and
            which drafts are accepted.
        stop_before: end the run just before the decision on this request; None for never.
        progress: called with the virtual time now and then.
        may_end: asked with the virtual time now and then; the run ends when it says so.
    """

    seed: int = 0
    known_lengths: bool = True
    prefill_emits_first_token: bool = False
    log: bool = False
    learn: bool = True
    stop_before: int | None = None
    progress: Callable[[float], None] | None = None
    may_end: Callable[[float], bool] | None = None
