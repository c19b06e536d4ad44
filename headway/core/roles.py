"""Decode workers that begin or end to compute prompts themselves, while they serve."""

from __future__ import annotations

from dataclasses import dataclass, field

from headway.core.cluster_book import ClusterBook
from headway.core.effects import SetRole


@dataclass(slots=True)
class Roles:
    """What was asked of whom. The books say where prompts may be placed.

    A worker that is to begin gets prompts once it says that it takes them. One that is to end
    gets none from now on, and is told once all it has are computed: until then it could be told
    before a prompt reaches it that was sent earlier.
    """

    _wanted: dict[str, bool] = field(default_factory=dict)
    _ending: set[str] = field(default_factory=set)

    def ask(self, cluster: ClusterBook, worker_id: str, *, prefills_locally: bool) -> list[SetRole]:
        """Begin a change; an earlier one that is under way counts no more."""
        self._wanted[worker_id] = prefills_locally
        if prefills_locally:
            self._ending.discard(worker_id)
            return [SetRole(worker_id, prefills_locally=True)]
        cluster.set_prefills_locally(worker_id, False)
        self._ending.add(worker_id)
        return []

    def taken(self, cluster: ClusterBook, worker_id: str, *, prefills_locally: bool) -> None:
        """A worker says what it does now."""
        is_wanted = self._wanted.get(worker_id, prefills_locally)
        cluster.set_prefills_locally(worker_id, prefills_locally and is_wanted)

    def forget(self, worker_id: str) -> None:
        """The worker is gone; one that comes back says itself what it does."""
        self._wanted.pop(worker_id, None)
        self._ending.discard(worker_id)

    def ended(self, cluster: ClusterBook) -> list[SetRole]:
        """Tell those that were to end and have no more prompts."""
        if not self._ending:
            return []
        ended = sorted(worker for worker in self._ending if not cluster.has_prompts(worker))
        self._ending.difference_update(ended)
        return [SetRole(worker_id, prefills_locally=False) for worker_id in ended]
