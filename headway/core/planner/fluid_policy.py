"""Admission by the dynamic program: promises what fits if work flowed instead of coming in steps.

Asks `headway.core.planner.dp` where `PromisePolicy` runs the batch former ahead. One question
answers for any number of requests that arrive together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from headway.core.planner.arrival import Answer, ClusterView, Verdict
from headway.core.planner.baselines.codes import SLACK
from headway.core.planner.fluid_workers import FluidWorkers
from headway.core.planner.probe import load_of
from headway.core.planner.promising import PromisePolicy


@dataclass(slots=True)
class FluidPolicy:
    """Promises the most requests that the dynamic program can place, worker after worker.

    The least loaded worker comes first; then pairs in separate pools, planned jointly. A request
    that was deferred, runs as best effort and is still in time competes with the next arrival.
    Steps are as long as `PromisePolicy` makes them at first.

    Attributes:
        best_effort: places what was deferred.
    """

    former: int = SLACK
    best_effort: PromisePolicy = field(default_factory=PromisePolicy)
    _chosen_late: dict[int, list[int]] = field(default_factory=dict)

    def decide(self, new: int, view: ClusterView, now_s: float) -> Answer:
        """See `ArrivalPolicy.decide`. Sets the step length of the worker that prefills."""
        return self.decide_many((new,), view, now_s)[0]

    def decide_many(self, news: Sequence[int], view: ClusterView, now_s: float) -> list[Answer]:
        """Answers for requests that arrive together, in their order; as `decide` otherwise.

        Each worker is given requests by one question only, and as many of them as it can take.
        """
        answers = {new: Answer(Verdict.DEFER) for new in news}
        given: set[int] = set()
        for p, d in _places(view, now_s):
            waiting = [new for new in news if answers[new].verdict is Verdict.DEFER]
            if not waiting:
                break
            if p in given or d in given:
                continue
            fluid = FluidWorkers(p, d, view, now_s)
            chosen = fluid.choose(waiting, fluid.deferred())
            self._chosen_late[d] = [row for row in chosen if row not in answers]
            served = [row for row in chosen if row in answers]
            if served:
                given |= {p, d}
                answers |= fluid.serve(served)
        return [answers[new] for new in news]

    def place_deferred(self, waiting: int, view: ClusterView, now_s: float) -> Answer:
        """See `ArrivalPolicy.place_deferred`."""
        return self.best_effort.place_deferred(waiting, view, now_s)

    def promise_late(self, w: int, view: ClusterView, now_s: float) -> int:
        """A row on worker `w` that the last plan chose though it was deferred; -1 for none.

        Time has passed since that plan, so the program has to choose it once more.
        """
        kept = self._chosen_late.get(w)
        if not kept:
            return -1
        fluid = FluidWorkers(w, w, view, now_s)
        in_time = fluid.deferred()
        chosen = fluid.choose((), [row for row in kept if row in in_time])
        self._chosen_late[w] = chosen[1:]
        return chosen[0] if chosen else -1


def _places(view: ClusterView, now_s: float) -> Iterator[tuple[int, int]]:
    """Workers that do both phases, the least loaded first; then pairs in separate pools."""
    workers = view.workers
    loads_s = [
        load_of(now_s, view.requests, view.ids[w], view.counts[w], workers[w])[0]
        for w in range(len(workers))
    ]
    order = np.argsort(loads_s, kind="stable").tolist()
    prefills, decodes = workers["prefills"], workers["decodes"]
    yield from ((w, w) for w in order if prefills[w] and decodes[w])
    for p in order:
        if prefills[p] and not decodes[p]:
            for d in order:
                if decodes[d] and not prefills[d] and (view.allowed is None or view.allowed[p, d]):
                    yield p, d
