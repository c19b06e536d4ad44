"""States of a cluster for bench.planner: recorded in a simulation at overload, and scaled.

A worker gets as many requests as asked for, drawn from those on a recorded worker that had about
as many. If that had fewer, it is made faster and larger in proportion, so that it stays as full.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace

import numpy as np

from headway.core.batch_state import DECODE, GONE, PREFILL, Ints, Records
from headway.core.batching import blocks_for
from headway.core.planner.arrival import Answer, ClusterView
from headway.core.planner.dp import DpInstance, DpPrompt, DpTier, DpWorker
from headway.core.planner.promising import PromisePolicy
from headway.sim.settings import ClusterSettings, Settings

# All instants of recorded states are shifted so that this is the present.
NOW_S = 1000.0
_RECORDED_WORKERS = 4
# Above what Headway carries in the mixed scenario.
_RECORDED_RATE = 15.0 * _RECORDED_WORKERS
_NUM_RECORDED = 3000
_RECORD_EVERY = 50
_INSTANTS = ("arrived_at_s", "prefill_due_at_s", "next_due_at_s", "arrives_at_s")
# Terms of a worker's step time that grow with what is in the step.
_PER_REQUEST = ("token_s", "sequence_s", "context_token_s", "prefill_attention_s", "chunk_s")
# A state is made of one of so many recorded workers, those with the most similar numbers.
_NUM_SIMILAR = 12


@dataclass(frozen=True, slots=True)
class RecordedWorker:
    """One worker at one arrival: its WORKER record, and its requests with their grants."""

    worker: Records
    requests: Records
    grants: Ints


@dataclass(slots=True)
class Recorder:
    """A policy that also keeps what it was asked now and then, once the run is under way."""

    policy: PromisePolicy
    former: int = field(init=False)
    workers: list[RecordedWorker] = field(default_factory=list)
    arrivals: list[Records] = field(default_factory=list)
    _num_asked: int = 0

    def __post_init__(self) -> None:
        self.former = self.policy.former

    def decide(self, new: int, view: ClusterView, now_s: float) -> Answer:
        self._num_asked += 1
        if self._num_asked > _NUM_RECORDED // 3:
            self.arrivals.append(_shifted(view.requests[new : new + 1], now_s))
            if self._num_asked % _RECORD_EVERY == 0:
                self.workers += [_recorded(w, view, now_s) for w in range(len(view.workers))]
        return self.policy.decide(new, view, now_s)

    def place_deferred(self, waiting: int, view: ClusterView, now_s: float) -> Answer:
        return self.policy.place_deferred(waiting, view, now_s)


def _shifted(requests: Records, now_s: float) -> Records:
    copied = requests.copy()
    for name in _INSTANTS:
        copied[name] += NOW_S - now_s
    return copied


def _recorded(w: int, view: ClusterView, now_s: float) -> RecordedWorker:
    ids = view.ids[w, : view.counts[w]]
    worker = view.workers[w : w + 1].copy()
    worker["busy_until_s"] += NOW_S - now_s
    here = view.requests["phase"][ids] != GONE
    return RecordedWorker(
        worker,
        _shifted(view.requests[ids[here]], now_s),
        view.grants[w, : view.counts[w]][here].copy(),
    )


def record() -> tuple[Recorder, ClusterView]:
    """A run of the mixed scenario at overload; with the view that it ended with."""
    settings = Settings(
        scenario="mixed",
        rates=(_RECORDED_RATE,),
        duration_s=_NUM_RECORDED / _RECORDED_RATE,
        cluster=ClusterSettings(gpus=_RECORDED_WORKERS),
    )
    recorder = Recorder(PromisePolicy())
    simulation = settings.simulation(settings.workload(_RECORDED_RATE), recorder)
    simulation.run()
    recorder.workers = [one for one in recorder.workers if len(one.requests)]
    return recorder, simulation.view


@dataclass(slots=True)
class States:
    """Makes states of any size out of recorded ones."""

    recorder: Recorder
    view: ClusterView
    random: np.random.Generator

    def state(self, running: int, new: int, tiers: int, workers: int) -> ClusterView:
        """`running` requests on all workers together; `new` rows after them are on none."""
        parts, grants, records = [], [], []
        counts = np.full(workers, running // workers, np.int64)
        counts[: running % workers] += 1
        allowed = self._tiers(tiers)
        for count in counts.tolist():
            recorded = self._similar(count)
            fitting = np.flatnonzero(np.isin(recorded.requests["tier"], allowed))
            if not len(fitting):
                fitting = np.arange(len(recorded.requests))
            drawn = self.random.choice(fitting, count)
            parts.append(recorded.requests[drawn])
            grants.append(recorded.grants[drawn])
            records.append(_scaled(recorded, parts[-1]))
        arrivals = [one for one in self.recorder.arrivals if one["tier"][0] in allowed]
        parts += [arrivals[self.random.integers(len(arrivals))] for _ in range(new)]
        requests = np.concatenate(parts)
        requests["order"] = np.arange(len(requests))
        # Columns for all that may join.
        ids = np.zeros((workers, int(counts.max()) + new), np.int64)
        granted = np.zeros_like(ids)
        first = 0
        for w, count in enumerate(counts.tolist()):
            ids[w, :count] = np.arange(first, first + count)
            granted[w, :count] = grants[w]
            first += count
        return replace(
            self.view,
            requests=requests,
            ids=ids,
            counts=counts,
            grants=granted,
            workers=np.concatenate(records),
            link_free_at_s=np.zeros(workers),
            num_kept_tokens=np.zeros(workers, np.int64),
        )

    def _similar(self, count: int) -> RecordedWorker:
        """A recorded worker with about so many requests, if one is that full."""
        by_distance = sorted(self.recorder.workers, key=lambda one: abs(len(one.requests) - count))
        return by_distance[self.random.integers(min(_NUM_SIMILAR, len(by_distance)))]

    def policy(self) -> PromisePolicy:
        """With all that it has learned in the recorded run."""
        return deepcopy(self.recorder.policy)

    def _tiers(self, num: int) -> list[int]:
        """Of the recorded scenario, so many."""
        present = np.unique(np.concatenate([one["tier"] for one in self.recorder.arrivals]))
        chosen: list[int] = self.random.permutation(present)[:num].tolist()
        return chosen


def _scaled(recorded: RecordedWorker, requests: Records) -> Records:
    """A worker as full with these requests as the recorded one was with its own, or less."""
    factor = max(1.0, len(requests) / len(recorded.requests))
    worker = recorded.worker.copy()
    for name in _PER_REQUEST:
        worker[name] /= factor
    num_held = int(requests["num_blocks"].sum())
    own = recorded.worker[0]
    num_blocks = num_held + int(max(own["num_free_blocks"], 0) * factor)
    worker["num_blocks"] = max(num_blocks, int(own["num_blocks"] * factor))
    worker["num_free_blocks"] = worker["num_blocks"] - num_held
    worker["max_running"] = max(int(own["max_running"]), 4 * len(requests))
    worker["max_step_tokens"] = int(own["max_step_tokens"] * factor)
    return worker


def dp_instance(view: ClusterView, running: int) -> DpInstance:
    """The first worker's state as the dynamic programme sees it."""
    worker, requests = view.workers[0], view.requests
    tiers = np.unique(requests["tier"])
    dp_tiers = []
    for tier in tiers:
        of_tier = requests[requests["tier"] == tier]
        context = of_tier["num_prompt_tokens"] + 0.5 * of_tier["num_output_bound"]
        decoding = requests[:running][requests[:running]["tier"] == tier]["phase"] == DECODE
        dp_tiers.append(
            DpTier(
                tpot_s=float(of_tier["later_tpot_s"][0]),
                decode_s=float(
                    worker["token_s"]
                    + worker["sequence_s"]
                    + worker["context_token_s"] * context.mean()
                ),
                num_decodes=int(decoding.sum()),
            )
        )
    waiting = requests[:running][requests[:running]["phase"] == PREFILL]
    index = {int(tier): number for number, tier in enumerate(tiers)}

    def prompt(request: Records) -> DpPrompt:
        num_left = int(request["num_prompt_tokens"] - request["num_computed_tokens"])
        num_tokens = int(request["num_prompt_tokens"] + request["num_output_bound"])
        attention = num_left * (request["num_computed_tokens"] + 0.5 * num_left)
        return DpPrompt(
            prefill_s=float(
                worker["token_s"] * num_left
                + worker["prefill_attention_s"] * attention
                + worker["chunk_s"]
            ),
            due_at_s=float(request["prefill_due_at_s"]),
            tier=index[int(request["tier"])],
            num_blocks=int(blocks_for(num_tokens, int(worker["block_size"]))),
        )

    return DpInstance(
        now_at_s=NOW_S,
        tiers=tuple(dp_tiers),
        worker=DpWorker(
            fixed_s=float(worker["fixed_s"]),
            floor_s=float(worker["floor_s"]),
            token_s=float(worker["token_s"]),
            step_cap_s=min(tier.tpot_s for tier in dp_tiers),
        ),
        num_free_blocks=int(worker["num_free_blocks"]),
        forced=tuple(prompt(one) for one in waiting if np.isfinite(one["prefill_due_at_s"])),
        new=tuple(prompt(one) for one in requests[running:]),
    )
