"""Headway's policy on a cluster whose workers change between prefill and decode."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headway.core.batch_state import PREFILL, Record, Records
from headway.core.perf_model import PerfModel
from headway.core.planner.advice import (
    FlipRule,
    Load,
    LoadMeter,
    Split,
    best_split,
    load_of_request,
    split_of,
)
from headway.core.planner.arrival import Answer, ClusterView, RoleChange
from headway.core.planner.promising import PromisePolicy

# Seconds between two looks at the roles.
_INTERVAL_S = 1.0

_MORE_PREFILL, _MORE_DECODE = 1, -1


@dataclass(slots=True)
class ChangingRoles:
    """Promises as `PromisePolicy` does, and gives workers the roles that the load asks for.

    Of separate workers only: one that does both phases has no role to change.
    """

    policy: PromisePolicy = field(default_factory=PromisePolicy)
    meter: LoadMeter = field(default_factory=LoadMeter)
    rule: FlipRule = field(default_factory=FlipRule)
    former: int = field(init=False)
    _next_look_s: float = 0.0

    def __post_init__(self) -> None:
        self.former = self.policy.former

    def decide(self, new: int, view: ClusterView, now_s: float) -> Answer:
        """See `ArrivalPolicy.decide`; the request is counted whatever becomes of it."""
        self.meter.observe(_load(new, view), now_s)
        return self.policy.decide(new, view, now_s)

    def place_deferred(self, waiting: int, view: ClusterView, now_s: float) -> Answer:
        """See `ArrivalPolicy.place_deferred`."""
        return self.policy.place_deferred(waiting, view, now_s)

    def promise_late(self, w: int, view: ClusterView, now_s: float) -> int:
        """See `LatePromises.promise_late`."""
        return self.policy.promise_late(w, view, now_s)

    def raise_aged(self, w: int, view: ClusterView, now_s: float) -> int:
        """See `Ageing.raise_aged`."""
        return self.policy.raise_aged(w, view, now_s)

    def change_role(self, view: ClusterView, now_s: float) -> RoleChange | None:
        """See `RoleChanges.change_role`; one worker at a time."""
        if now_s < self._next_look_s:
            return None
        self._next_look_s = now_s + _INTERVAL_S
        prefills, decodes = view.workers["prefills"] == 1, view.workers["decodes"] == 1
        if (prefills == decodes).any():
            return None
        now, best = self._splits(view, now_s)
        cheapest = {}
        for more, donors in ((_MORE_PREFILL, decodes), (_MORE_DECODE, prefills)):
            costs_s = {int(w): _drain_s(view, int(w)) for w in np.flatnonzero(donors)}
            cheapest[more] = min((cost_s, w) for w, cost_s in costs_s.items())
        wanted = self.rule.wants(now, best, {more: at[0] for more, at in cheapest.items()}, now_s)
        if wanted == 0:
            return None
        self.rule.changed(now_s)
        return RoleChange(cheapest[wanted][1], wanted == _MORE_PREFILL, wanted == _MORE_DECODE)

    def _splits(self, view: ClusterView, now_s: float) -> tuple[Split, Split]:
        """As it is, and as it would be best."""
        load, worker = self.meter.load(now_s), view.workers[0]
        room = (model_of(worker), int(worker["num_blocks"] * worker["block_size"]))
        num_prefill, num_decode = (
            int(view.workers[name].sum()) for name in ("prefills", "decodes")
        )
        return (
            split_of(load, *room, num_prefill, num_decode),
            best_split(load, *room, num_prefill + num_decode),
        )


def model_of(worker: Record) -> PerfModel:
    """What the planner believes of a worker, corrected by what was measured there."""
    model = PerfModel(*(float(worker[name]) for name in PerfModel.__dataclass_fields__))
    return model.scaled(float(worker["time_ratio"]))


def _load(new: int, view: ClusterView) -> Load:
    record: Record = view.requests[new]
    num_kept = 0 if view.num_kept_tokens is None else int(view.num_kept_tokens.max())
    return load_of_request(
        model_of(view.workers[0]),
        int(record["num_prompt_tokens"]),
        num_kept,
        int(record["num_output_bound"]),
        float(min(record["tpot_s"], record["later_tpot_s"])),
    )


def _drain_s(view: ClusterView, w: int) -> float:
    """Worker seconds that stand idle while what is on it ends: half of the longest, about.

    Prompts are computed one after the other, outputs beside each other at their pace.
    """
    rows: Records = view.requests[view.ids[w, : view.counts[w]]]
    left = rows["num_output_bound"] - rows["num_output_tokens"]
    if view.workers["decodes"][w]:
        return 0.5 * float((left * rows["later_tpot_s"]).max(initial=0.0))
    waiting = rows[rows["phase"] == PREFILL]
    num_left = (waiting["num_prompt_tokens"] - waiting["num_computed_tokens"]).sum()
    return 0.5 * float(view.workers["token_s"][w] * num_left)
