"""What the controller knows of one worker: what it gave to it, and what it reported."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from headway.core.cluster import (
    DecodeTask,
    PrefillTask,
    WorkerLoad,
    WorkerRole,
    WorkerSnapshot,
    WorkerSpec,
)
from headway.core.progress import Progress


@dataclass(slots=True)
class OverheadEstimate:
    """An upper estimate of a noisy duration: its mean plus four mean deviations.

    Source: the round-trip estimator of RFC 6298, section 2, with its gains of 1/8 and 1/4.
    """

    _mean_s: float = 0.0
    _deviation_s: float = 0.0
    _num_samples: int = 0

    @property
    def upper_s(self) -> float:
        """Seconds; 0 before the first sample."""
        return self._mean_s + 4 * self._deviation_s

    def add(self, sample_s: float) -> None:
        if self._num_samples == 0:
            self._mean_s, self._deviation_s = sample_s, sample_s / 2
        else:
            self._deviation_s += (abs(sample_s - self._mean_s) - self._deviation_s) / 4
            self._mean_s += (sample_s - self._mean_s) / 8
        self._num_samples += 1


@dataclass(slots=True)
class WorkerBook:
    """Everything given to one worker and not ended; its snapshot is built when it is read."""

    spec: WorkerSpec
    load: WorkerLoad = field(default_factory=WorkerLoad)
    overhead: OverheadEstimate = field(default_factory=OverheadEstimate)
    _prefills: dict[str, Progress] = field(default_factory=dict)
    _sending: dict[str, Progress] = field(default_factory=dict)
    _decodes: dict[str, Progress] = field(default_factory=dict)
    _last_prefill_ended_at_s: float = -math.inf
    _snapshot: WorkerSnapshot | None = None

    def report(self, load: WorkerLoad) -> None:
        self.load = load
        self._snapshot = None

    def give(self, request: Progress) -> None:
        """Note a request placed on this worker."""
        tasks = self._prefills if self.spec.role is WorkerRole.PREFILL else self._decodes
        tasks[request.spec.request_id] = request
        self._snapshot = None

    def changed(self) -> None:
        """Note that a request given to this worker changed."""
        self._snapshot = None

    def computed(self, request_id: str, now_s: float) -> None:
        """Note that a prompt is computed; its pages hold their blocks until `sent`."""
        self._sending[request_id] = self._prefills.pop(request_id)
        self._last_prefill_ended_at_s = now_s
        self._snapshot = None

    def sent(self, request_id: str) -> None:
        """Note that the pages of a computed prompt have arrived."""
        if self._sending.pop(request_id, None) is not None:
            self._snapshot = None

    def drop(self, request_id: str, now_s: float) -> None:
        """Forget a request that ended, whatever it was doing here."""
        if self._prefills.pop(request_id, None) is not None:
            self._last_prefill_ended_at_s = now_s
        self._sending.pop(request_id, None)
        self._decodes.pop(request_id, None)
        self._snapshot = None

    def request_ids(self) -> list[str]:
        """Requests that need this worker still; a prefill worker is needed until all is sent."""
        return [*self._prefills, *self._sending, *self._decodes]

    def snapshot(self) -> WorkerSnapshot:
        if self._snapshot is None:
            self._snapshot = WorkerSnapshot(
                spec=self.spec,
                load=self.load,
                prefills=tuple(_prefill_task(request) for request in self._prefills.values()),
                decodes=tuple(_decode_task(request) for request in self._decodes.values()),
                last_prefill_ended_at_s=self._last_prefill_ended_at_s,
                num_kv_blocks_sending=sum(
                    self.spec.blocks_for(request.spec.num_prompt_tokens)
                    for request in self._sending.values()
                ),
                overhead_s=self.overhead.upper_s,
            )
        return self._snapshot


def _prefill_task(request: Progress) -> PrefillTask:
    sent_at_s = request.prefill_sent_at_s
    return PrefillTask(
        request_id=request.spec.request_id,
        num_prompt_tokens=request.spec.num_prompt_tokens,
        guaranteed=request.guaranteed,
        sent_at_s=sent_at_s if sent_at_s is not None else math.inf,
        due_at_s=request.prefill_due_at_s,
    )


def _decode_task(request: Progress) -> DecodeTask:
    return DecodeTask(
        request_id=request.spec.request_id,
        num_prompt_tokens=request.spec.num_prompt_tokens,
        num_output_tokens=request.num_output_tokens,
        max_tokens=request.spec.sampling.max_tokens,
        tpot_s=request.promise.tightest_tpot_s if request.promise is not None else math.inf,
    )
