"""The live cluster as the planner's arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headway.core.batch_state import REQUEST, WORKER, Records
from headway.core.cluster import WorkerSnapshot
from headway.core.planner.arrival import ClusterView
from headway.core.planner.pairs import Handovers
from headway.core.planner.picture import WorkerPicture


@dataclass(slots=True)
class LiveView:
    """Keeps a picture of each worker; one whose snapshot did not change costs next to nothing."""

    guard_ratio: float
    _pictures: dict[str, WorkerPicture] = field(default_factory=dict)
    _rows: Records = field(default_factory=lambda: np.zeros(64, REQUEST))

    @property
    def keys(self) -> list[str]:
        """What tells the workers apart, in their order."""
        return list(self._pictures)

    def update(self, workers: list[WorkerSnapshot], now_s: float) -> list[WorkerPicture]:
        """Bring the pictures of these workers to `now_s`; returns them, in the same order."""
        before, self._pictures = self._pictures, {}
        for worker in workers:
            key = _key(worker)
            picture = before.get(key) or WorkerPicture(worker, self.guard_ratio)
            picture.update(worker, now_s)
            self._pictures[key] = picture
        return list(self._pictures.values())

    def observe(self, worker: WorkerSnapshot, now_s: float) -> None:
        """Bring the picture of one worker to `now_s`, if there is one."""
        if (picture := self._pictures.get(_key(worker))) is not None:
            picture.update(worker, now_s)

    def view(
        self,
        new: Records,
        handovers_s: Handovers,
        allowed: NDArray[np.bool_],
    ) -> ClusterView:
        """All that is on the workers, and a new request in the last row.

        Args:
            new: REQUEST record, shape (1,).
            handovers_s: guard included.
            allowed: see ClusterView.
        """
        pictures = list(self._pictures.values())
        counts = np.array([len(picture.requests) for picture in pictures])
        num_workers, num_rows = len(pictures), int(counts.sum())
        if num_rows >= len(self._rows):
            self._rows = np.zeros(2 * num_rows, REQUEST)
        ids = np.zeros((num_workers, int(counts.max())), np.int64)
        grants = np.zeros_like(ids)
        workers = np.zeros(num_workers, WORKER)
        start = 0
        for number, picture in enumerate(pictures):
            end = start + counts[number]
            self._rows[start:end].view(np.uint64)[:] = picture.requests.view(np.uint64)
            ids[number, : counts[number]] = np.arange(start, end)
            grants[number, : counts[number]] = picture.grants
            workers[number] = picture.record[0]
            start = end
        self._rows[num_rows] = new[0]
        return ClusterView(
            requests=self._rows[: num_rows + 1],
            ids=ids,
            counts=counts,
            grants=grants,
            workers=workers,
            # What a transfer takes is part of the hand-overs, as it was measured.
            link_free_at_s=np.zeros(num_workers),
            link_bytes_per_s=np.inf,
            link_latency_s=0.0,
            kv_bytes_per_token=pictures[0].snapshot.spec.kv_bytes_per_token,
            handover_s=handovers_s.moved_s,
            local_handover_s=handovers_s.local_s,
            allowed=allowed,
        )


def _key(worker: WorkerSnapshot) -> str:
    # One that begins or ends to prefill is looked at in another way.
    return f"{worker.spec.worker_id} {worker.spec.incarnation} {worker.spec.prefills}"
