"""One request on an emulated decode worker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from headway.adapters.emulated import content
from headway.core.slo import DemandLine
from headway.errors import HeadwayError
from headway.ports.engine import DecodeJob, KvTransferRecord, PrefillResult


@dataclass(slots=True, order=True)
class Sequence:
    """From its arrival until its consumer has read the end.

    Attributes:
        started_at_s: of a prompt computed here, its first step; None until then.
        prefill: of such a prompt, once it is computed and until its consumer has read it.
    """

    priority: int
    arrival: int
    job: DecodeJob = field(compare=False)
    submitted_at_s: float = field(compare=False)
    block_hashes: list[bytes] = field(compare=False)
    output: content.Output = field(compare=False)
    demand: DemandLine | None = field(compare=False)
    progress: asyncio.Event = field(compare=False, default_factory=asyncio.Event)
    num_ready: int = field(compare=False, default=0)
    num_recomputed: int = field(compare=False, default=0)
    kv_transfer: KvTransferRecord | None = field(compare=False, default=None)
    started_at_s: float | None = field(compare=False, default=None)
    prefill: PrefillResult | None = field(compare=False, default=None)
    failure: HeadwayError | None = field(compare=False, default=None)

    @property
    def num_prompt_blocks(self) -> int:
        return len(self.block_hashes)

    @property
    def is_unstarted_prompt(self) -> bool:
        """Whether its prompt is to be computed here, and no step of it has begun."""
        return self.job.target is None and self.started_at_s is None

    def prompt_computed(self, now_s: float) -> None:
        """Note the end of a prompt computed here."""
        assert self.started_at_s is not None
        self.prefill = PrefillResult(
            queued_s=self.started_at_s - self.submitted_at_s,
            computed_s=now_s - self.started_at_s,
            num_cached_tokens=0,
        )

    def fail(self, failure: HeadwayError) -> None:
        self.failure = failure
        self.progress.set()
