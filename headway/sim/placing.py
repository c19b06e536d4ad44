"""Puts requests on the workers that a policy chose for them."""

from __future__ import annotations

from dataclasses import dataclass, field

from headway.core.batch_state import ARRIVING, Flags
from headway.core.planner.arrival import Answer, ClusterView
from headway.core.planner.baselines.codes import SLACK
from headway.sim.cluster import ClusterSpec
from headway.sim.kept_kv import find_kept, place_on_kept
from headway.sim.transfers import make_room
from headway.sim.workload import Workload
from headway.sim.world_kernel import begin_step
from headway.sim.world_state import World


@dataclass(slots=True)
class Placing:
    """Finds kept KV for a request before the decision on it, and places it after that."""

    workload: Workload
    cluster: ClusterSpec
    world: World
    view: ClusterView
    _holds_at_once: Flags = field(init=False)

    def __post_init__(self) -> None:
        self._holds_at_once = self.world.formers == SLACK

    def find_kept(self, index: int) -> None:
        """Note where KV of this request's session is kept, for the policy."""
        found = self.view.num_kept_tokens
        assert found is not None
        find_kept(self.world, index, int(self.workload.num_prefix_tokens[index]), found)
        # A worker that is full cannot hold blocks for one more.
        found[self._holds_at_once & (self.world.counts >= self.cluster.max_running)] = 0

    def place(self, index: int, answer: Answer, now_s: float) -> None:
        """List a request on its workers, and wake the first of them."""
        world, num_requests = self.world, len(self.workload)
        record, sim = world.requests[index], world.sim[index]
        sim["prefill_worker"], sim["decode_worker"] = answer.prefill_worker, answer.decode_worker
        self._list(answer.prefill_worker, index)
        if answer.prefill_worker != answer.decode_worker:
            record["leaves_after_prefill"] = 1
            record["prefill_due_at_s"] -= answer.handover_s
            twin = num_requests + index
            world.requests[twin] = record
            world.requests[twin]["phase"] = ARRIVING
            world.requests[twin]["arrives_at_s"] = answer.arrives_at_s
            world.requests[twin]["leaves_after_prefill"] = 0
            self._list(answer.decode_worker, twin)
            if self._holds_at_once[answer.decode_worker]:
                # Planned with; engines of the baselines look for room when pages come.
                make_room(world, index)
        self._place_on_kept(index, answer.prefill_worker)
        if not world.running[answer.prefill_worker]:
            begin_step(world, answer.prefill_worker, now_s)

    def _place_on_kept(self, index: int, worker: int) -> None:
        """Begin with what the worker keeps.

        A promise counts on it, so Headway holds it from the decision on; the engines of the
        baselines look it up when they start a request.
        """
        assert self.view.num_kept_tokens is not None
        num_tokens = int(self.view.num_kept_tokens[worker])
        if num_tokens:
            holds_at_once = bool(self._holds_at_once[worker])
            place_on_kept(self.world, worker, index, num_tokens, holds_at_once)

    def _list(self, worker: int, row: int) -> None:
        position = self.world.counts[worker]
        self.world.ids[worker, position] = row
        # It is not in the step that may be running.
        self.world.grants[worker, position] = 0
        self.world.counts[worker] = position + 1
