"""Headway's own arrival policy: promise what the workers' future has room for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headway.core.planner.ageing import aged
from headway.core.planner.arrival import Answer, ClusterView, Limit, Verdict
from headway.core.planner.baselines.codes import SLACK
from headway.core.planner.fitting import arrival_at, fit_at
from headway.core.planner.place_order import places_in_order
from headway.core.planner.price import ShadowPrice
from headway.core.planner.probe import (
    FITS,
    ROOM_FOR_LATE,
    ROOM_FOR_TIMELY,
    decode_work_s,
    late_promise,
    loads_of,
    work_s,
)
from headway.core.planner.step_length import StepLength

# Largest share of decodes in the work of a request that may be promised late.
_LATE_DECODE_SHARE = 0.1

# A TTFT that is looked for in an explanation is found within this.
_TTFT_STEPS = 12


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one request would or would not be promised now.

    Attributes:
        limit: the nearest one, over all places; NONE if it fits.
        ttft_that_fits_s: from arrival, the shortest bound that could be promised; None if none.
        cost, cost_limit: worker seconds.
    """

    limit: Limit
    ttft_that_fits_s: float | None
    cost: float
    cost_limit: float


@dataclass(frozen=True, slots=True)
class _Place:
    answer: Answer
    limit: Limit
    length_s: float = 0.0


@dataclass(slots=True)
class PromisePolicy:
    """Promises a request if the batch former, run ahead on some worker, keeps all promises.

    Looks at the least loaded worker first; per worker it tries the usual step length, then a
    longer and shorter ones. Under overload the costliest requests are turned away first.

    Attributes:
        sheds: whether costly requests are turned away under overload.
        adapts_length: whether step lengths are learned; else the tightest TPOT bounds them.
        most_loaded_first: packs workers, so that others stay free; else spreads.
        promises_late: best-effort requests that asked for bounds are promised later if they then
            fit and have met them so far.
    """

    sheds: bool = True
    adapts_length: bool = True
    most_loaded_first: bool = False
    promises_late: bool = True
    former: int = SLACK
    price: ShadowPrice = field(default_factory=ShadowPrice)
    lengths: dict[int, StepLength] = field(default_factory=dict)

    def decide(self, new: int, view: ClusterView, now_s: float) -> Answer:
        """See `ArrivalPolicy.decide`. Sets the step length of the workers it chose."""
        return self.judge(new, view, now_s)[0]

    def judge(self, new: int, view: ClusterView, now_s: float) -> tuple[Answer, Limit]:
        """As `decide`, and what stood against the request; NONE if it is served."""
        cost = self._cost(new, view)
        if self.sheds and not self.price.is_affordable(cost):
            return Answer(Verdict.DEFER), Limit.TOO_COSTLY
        place = self._best_place(new, view, now_s, learn=True)
        fits = place.limit is Limit.NONE
        self.price.found_room(fits)
        if not fits:
            return Answer(Verdict.DEFER), place.limit
        view.workers["step_cap_s"][place.answer.prefill_worker] = place.length_s
        return place.answer, Limit.NONE

    def limit(self, new: int, view: ClusterView, now_s: float) -> Limit:
        """What stands against a request now, nothing being learned from the question."""
        if self.sheds and self._cost(new, view) > self.price.limit():
            return Limit.TOO_COSTLY
        return self._best_place(new, view, now_s, learn=False).limit

    def place_deferred(self, waiting: int, view: ClusterView, now_s: float) -> Answer:
        """See `ArrivalPolicy.place_deferred`.

        One that may still meet its bounds, and be promised later, runs beside promised ones if
        its prompt is nearly all of its work: that much is computed in time nobody else needs.
        Its decode would take its share of every step until its end.
        """
        request = view.requests[waiting]
        if np.isfinite(request["next_due_at_s"]) and (
            not self.promises_late
            or decode_work_s(view.workers[0], request)
            > _LATE_DECODE_SHARE * work_s(view.workers[0], request)
        ):
            return Answer(Verdict.DEFER)
        place = self._best_place(waiting, view, now_s, learn=False)
        return place.answer if place.limit is Limit.NONE else Answer(Verdict.DEFER)

    def promise_late(self, w: int, view: ClusterView, now_s: float) -> int:
        """A row on worker `w` that was deferred and can be promised now; -1 for none."""
        if not self.promises_late:
            return -1
        limit = self.price.limit() * len(view.workers) if self.sheds else np.inf
        position = late_promise(
            now_s,
            view.requests,
            view.ids[w],
            view.counts[w],
            view.grants[w],
            view.workers[w],
            limit,
        )
        return int(view.ids[w, position]) if position >= 0 else -1

    def raise_aged(self, w: int, view: ClusterView, now_s: float) -> int:
        """See `Ageing.raise_aged`."""
        position = aged(
            now_s, view.requests, view.ids[w], view.counts[w], view.grants[w], view.workers[w]
        )
        return int(view.ids[w, position]) if position >= 0 else -1

    def explain(self, new: int, view: ClusterView, now_s: float) -> Explanation:
        """What would be decided, why, and which TTFT bound would have fitted."""
        cost, cost_limit = self._cost(new, view), self.price.limit()
        limit = self._best_place(new, view, now_s, learn=False).limit
        record = view.requests[new]
        original = record.copy()
        asked_s = float(record["next_due_at_s"] - record["arrived_at_s"])
        fitting_s = None
        if limit is Limit.PREFILL_TIME:
            low_s, high_s = asked_s, 64.0 * asked_s
            for _ in range(_TTFT_STEPS):
                middle_s = 0.5 * (low_s + high_s)
                due_at_s = record["arrived_at_s"] + middle_s
                record["next_due_at_s"] = record["prefill_due_at_s"] = due_at_s
                if self._best_place(new, view, now_s, learn=False).limit is Limit.NONE:
                    high_s = fitting_s = middle_s
                else:
                    low_s = middle_s
            view.requests[new] = original
        elif limit is Limit.NONE:
            fitting_s = asked_s
            if self.sheds and cost > cost_limit:
                limit = Limit.TOO_COSTLY
        return Explanation(limit, fitting_s, cost, cost_limit)

    def _cost(self, new: int, view: ClusterView) -> float:
        record = view.requests[new]
        if view.num_kept_tokens is not None:
            record = view.record_on(new, int(view.num_kept_tokens.argmax()))
        return work_s(view.workers[0], record) / len(view.workers)

    def _best_place(self, new: int, view: ClusterView, now_s: float, *, learn: bool) -> _Place:
        best = _Place(Answer(Verdict.DEFER), Limit.PREFILL_TIME)
        needed_room = 0
        if view.requests["guaranteed"][new] == 0:
            due_at_s = view.requests["next_due_at_s"][new]
            needed_room = ROOM_FOR_TIMELY if now_s <= due_at_s < np.inf else ROOM_FOR_LATE
        loads_s, tightest_s, room = loads_of(
            now_s, view.requests, view.ids, view.counts, view.workers
        )
        own_tpot_s = float(view.requests["tpot_s"][new])
        arrivals: dict[int, tuple[int, float]] = {}
        places = places_in_order(new, view, loads_s, most_loaded_first=self.most_loaded_first)
        for p, d in places:
            if needed_room & ~(room[p] & room[d]):
                continue
            longest_s = min(float(tightest_s[p]), float(tightest_s[d]), own_tpot_s)
            if p != d and d not in arrivals:
                arrivals[d] = arrival_at(new, d, view, now_s)
            arrival = arrivals.get(d, (FITS, np.inf))
            place = self._place(new, p, d, view, now_s, longest_s, arrival, learn=learn)
            if place.limit is Limit.NONE:
                return place
            best = place
        return best

    def _place(
        self,
        new: int,
        p: int,
        d: int,
        view: ClusterView,
        now_s: float,
        longest_s: float,
        arrival: tuple[int, float],
        *,
        learn: bool,
    ) -> _Place:
        """The first step length at which the request fits on workers `p` and `d`."""
        worker = view.workers[p]
        lengths = self.lengths.setdefault(p, StepLength(float(worker["floor_s"])))
        candidates = lengths.candidates(longest_s) if self.adapts_length else [longest_s]
        if view.requests["guaranteed"][new] == 0:
            # Best effort does not change how a worker works.
            candidates = [float(worker["step_cap_s"])]
        if worker["former"] != SLACK:
            # It takes no step length: its steps are as long as max_step_tokens lets them be.
            candidates = [np.inf]
        free_at_s = float(worker["busy_until_s"])
        limit, answer = Limit.PREFILL_TIME, Answer(Verdict.DEFER)
        for length_s in candidates:
            limit, answer = fit_at(new, p, d, view, now_s, length_s, free_at_s, arrival)
            if limit is Limit.NONE:
                return _Place(answer, limit, length_s)
            if limit is not Limit.PREFILL_TIME:
                break
        # What the decode worker has no room for says nothing of the steps of `p`.
        has_room = p == d or arrival[0] == FITS
        if learn and self.adapts_length and limit is Limit.PREFILL_TIME and has_room:
            at_once, _ = fit_at(new, p, d, view, now_s, candidates[0], now_s, arrival)
            lengths.lost(to_running_step=at_once is Limit.NONE, longest_s=longest_s)
        return _Place(answer, limit)
