"""The books of all workers together."""

from __future__ import annotations

from dataclasses import dataclass, field

from headway.core.cluster import ClusterSnapshot, WorkerLoad, WorkerRole, WorkerSnapshot, WorkerSpec
from headway.core.planner.prediction import decode_step_s
from headway.core.progress import Progress
from headway.core.worker_book import WorkerBook


@dataclass(slots=True)
class ClusterBook:
    """Who is registered, and which requests were given to whom.

    Snapshots are rebuilt only for workers whose books changed, and only when asked for.
    """

    _workers: dict[str, WorkerBook] = field(default_factory=dict)

    def join(self, spec: WorkerSpec) -> None:
        self._workers[spec.worker_id] = WorkerBook(spec)

    def incarnation(self, worker_id: str) -> str | None:
        """The registered start of this worker; None if there is none."""
        book = self._workers.get(worker_id)
        return book.spec.incarnation if book is not None else None

    def lose(self, worker_id: str) -> list[str]:
        """Forget a worker; returns the requests that needed it."""
        return self._workers.pop(worker_id).request_ids()

    def report(self, worker_id: str, load: WorkerLoad) -> None:
        self._workers[worker_id].report(load)

    def set_prefills_locally(self, worker_id: str, prefills_locally: bool) -> None:
        self._workers[worker_id].set_prefills_locally(prefills_locally)

    def has_prompts(self, worker_id: str) -> bool:
        """Whether a prompt that is not computed yet was given to this worker."""
        return self._workers[worker_id].has_prompts

    def place(self, request: Progress) -> None:
        """Note a request on the workers of its placement."""
        for worker_id in _worker_ids(request):
            self._workers[worker_id].give(request)

    def prefill_sent(self, request: Progress, now_s: float) -> None:
        self._prefill_book(request).prefill_sent(request.spec.request_id, now_s)

    def decoded(self, request: Progress) -> None:
        """Note that tokens of the request have come."""
        assert request.placement is not None
        self._workers[request.placement.decode_worker_id].decoded(request)

    def computed(self, request: Progress, now_s: float) -> None:
        """Note that the prompt is computed; pages that leave hold blocks until handed over."""
        self._prefill_book(request).computed(request.spec.request_id, now_s)

    def handed_over(self, request: Progress) -> None:
        """Note that the decode has begun, and learn what the way to the first token took."""
        assert request.placement is not None
        if not request.prefills_locally:
            self._prefill_book(request).sent(request.spec.request_id)
        book = self._workers[request.placement.decode_worker_id]
        overhead_s = request.beside_engine_s(decode_step_s(book.snapshot()))
        if overhead_s is not None:
            estimate = book.local_overhead if request.prefills_locally else book.overhead
            estimate.add(overhead_s)

    def drop(self, request: Progress, now_s: float) -> None:
        """Forget a request that ended."""
        for worker_id in _worker_ids(request):
            if (book := self._workers.get(worker_id)) is not None:
                book.drop(request.spec.request_id, now_s)

    def prefilling_workers_of(self, request: Progress) -> list[WorkerSnapshot]:
        """Those of its workers that compute prompts and take steps for it, as they are now."""
        request_id = request.spec.request_id
        books = [self._workers.get(worker_id) for worker_id in _worker_ids(request)]
        return [
            book.snapshot()
            for book in books
            if book is not None and book.spec.prefills and book.works_on(request_id)
        ]

    def workers(self) -> list[WorkerSnapshot]:
        """All workers, draining ones too, sorted by id."""
        return [self._workers[worker_id].snapshot() for worker_id in sorted(self._workers)]

    def snapshot(self, now_s: float, num_best_effort_queued: int) -> ClusterSnapshot:
        available = [worker for worker in self.workers() if not worker.load.draining]
        return ClusterSnapshot(
            now_s=now_s,
            prefill_workers=tuple(w for w in available if w.spec.role is WorkerRole.PREFILL),
            decode_workers=tuple(w for w in available if w.spec.role is WorkerRole.DECODE),
            num_best_effort_queued=num_best_effort_queued,
        )

    def _prefill_book(self, request: Progress) -> WorkerBook:
        assert request.placement is not None
        return self._workers[request.placement.prefill_worker_id]


def _worker_ids(request: Progress) -> tuple[str, ...]:
    if request.placement is None:
        return ()
    placement = request.placement
    if placement.is_local:
        return (placement.decode_worker_id,)
    return (placement.prefill_worker_id, placement.decode_worker_id)
