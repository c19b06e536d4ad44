"""Promises of the live planner, kept in a world where steps take what the perf model says.

The controller hears of prompts and tokens only, as it does live; the engines' own batches are
those of the emulated engine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.adapters.emulated.batch import Batch
from headway.adapters.emulated.steps import BlockPool
from headway.config import EmulatedConfig
from headway.core.batch_state import ARRIVING, DECODE, PREFILL
from headway.core.cluster import WorkerRole, WorkerSpec
from headway.core.controller import Controller
from headway.core.events import (
    DecodeCompleted,
    DecodeReserved,
    Event,
    PrefillComputed,
    RequestArrived,
    SendAdmission,
    SendFinished,
    StartDecode,
    StartPrefill,
    TokensProduced,
    WorkerJoined,
)
from headway.core.perf_model import PerfModel
from headway.core.planner.admission import PlannedAdmission
from headway.core.planner.interface import PlannerParams
from headway.core.planner.policies import build_policies
from headway.core.request import FinishReason, RequestSpec
from headway.core.request_table import demand_fields
from headway.core.slo import DemandLine
from tests.core_objects import BLOCK_SIZE, request, slo, worker_spec

GUARD_RATIO = 1.15
# Close to an 8B model on one large GPU.
PERF_MODEL = PerfModel(0.007, 3e-5, 0.003, 1.5e-5, 3e-8, 4e-10, 5e-5)


@dataclass
class Engine:
    """One worker: its batch, and the end of the step that runs."""

    spec: WorkerSpec
    batch: Batch = field(init=False)
    lines: dict[str, DemandLine | None] = field(default_factory=dict)
    num_outputs: dict[str, int] = field(default_factory=dict)
    step_ends_at_s: float = math.inf

    def __post_init__(self) -> None:
        config = EmulatedConfig(
            kind="emulated",
            profile="",
            kv_block_size=BLOCK_SIZE,
            num_kv_blocks=self.spec.num_kv_blocks,
            max_step_tokens=self.spec.max_step_tokens,
            max_num_running=self.spec.max_num_running,
        )
        pool = BlockPool(self.spec.num_kv_blocks)
        self.batch = Batch(config, self.spec.perf_model, GUARD_RATIO, pool)


class World:
    """A controller and its engines; messages take no time."""

    def __init__(
        self,
        num_prefill: int,
        num_decode: int,
        num_kv_blocks: int,
        *,
        decode_prefills: bool = False,
    ) -> None:
        params = PlannerParams(GUARD_RATIO, 1000, {})
        self.controller = Controller(build_policies(params).admission, max_requests=1000)
        self.now_s = 0.0
        self.promised: set[str] = set()
        self.ended: dict[str, SendFinished] = {}
        self._requests: dict[str, RequestSpec] = {}
        self._decode_worker: dict[str, Engine] = {}
        self.placed_locally: set[str] = set()
        self._numbers = itertools.count()
        self.engines: dict[str, Engine] = {}
        for role, count in ((WorkerRole.PREFILL, num_prefill), (WorkerRole.DECODE, num_decode)):
            for replica in range(count):
                spec = worker_spec(
                    role,
                    replica,
                    num_kv_blocks=num_kv_blocks,
                    max_step_tokens=2048,
                    perf_model=PERF_MODEL,
                    forms_steps_by_deadline=True,
                    prefills_locally=decode_prefills and role is WorkerRole.DECODE,
                )
                self.engines[spec.worker_id] = Engine(spec)
                self.post(WorkerJoined(spec))

    def post(self, event: Event) -> None:
        for effect in self.controller.handle(event, self.now_s):
            match effect:
                case SendAdmission():
                    self._requests[effect.request.request_id] = effect.request
                    if effect.promise is not None:
                        self.promised.add(effect.request.request_id)
                case StartDecode():
                    self._start_decode(effect)
                case StartPrefill():
                    self._start_prefill(effect)
                case SendFinished():
                    self.ended[effect.request_id] = effect

    def run_until(self, at_s: float) -> None:
        while True:
            engine = min(self.engines.values(), key=lambda engine: engine.step_ends_at_s)
            if engine.step_ends_at_s == math.inf or engine.step_ends_at_s > at_s:
                break
            self.now_s = engine.step_ends_at_s
            self._end_step(engine)
            self._begin_step(engine)
        if math.isfinite(at_s):
            self.now_s = at_s

    def _start_decode(self, effect: StartDecode) -> None:
        engine, spec = self.engines[effect.worker_id], effect.request
        request_id = spec.request_id
        line = DemandLine(effect.promise, self.now_s) if effect.promise is not None else None
        engine.lines[request_id] = line
        fields = {
            "order": next(self._numbers),
            "phase": ARRIVING,
            "prefill_due_at_s": math.inf,
            "num_prompt_tokens": spec.num_prompt_tokens,
            "num_output_bound": spec.sampling.max_tokens,
            **demand_fields(line),
        }
        if effect.local_prefill:
            due_at_s = math.inf
            if effect.prefill_due_s is not None:
                due_at_s = self.now_s + effect.prefill_due_s
            due = {"prefill_due_at_s": due_at_s, "next_due_at_s": due_at_s}
            engine.batch.requests.add(request_id, {**fields, "phase": PREFILL, **due})
            self.placed_locally.add(request_id)
        else:
            engine.batch.requests.add(request_id, fields)
            engine.batch.hold_blocks_for(request_id, spec.num_prompt_tokens)
        engine.batch.cap_steps(effect.step_cap_s)
        self._decode_worker[request_id] = engine
        self.post(DecodeReserved(request_id, b""))
        if effect.local_prefill and engine.step_ends_at_s == math.inf:
            self._begin_step(engine)

    def _start_prefill(self, effect: StartPrefill) -> None:
        engine = self.engines[effect.worker_id]
        due_at_s = math.inf if effect.due_s is None else self.now_s + effect.due_s
        engine.batch.requests.add(
            effect.request.request_id,
            {
                "order": next(self._numbers),
                "phase": PREFILL,
                "guaranteed": int(effect.due_s is not None),
                "leaves_after_prefill": 1,
                "prefill_due_at_s": due_at_s,
                "next_due_at_s": due_at_s,
                "num_prompt_tokens": effect.request.num_prompt_tokens,
            },
        )
        engine.batch.cap_steps(effect.step_cap_s)
        if engine.step_ends_at_s == math.inf:
            self._begin_step(engine)

    def _begin_step(self, engine: Engine) -> None:
        shape = engine.batch.form(self.now_s, 1.0)
        engine.step_ends_at_s = math.inf if shape is None else self.now_s + PERF_MODEL.step_s(shape)

    def _end_step(self, engine: Engine) -> None:
        for request_id, num_outputs in list(engine.batch.compute()):
            if engine.spec.role is WorkerRole.DECODE:
                if num_outputs > engine.num_outputs.get(request_id, 0):
                    self._token(engine, request_id, num_outputs)
            elif num_outputs > 0:
                engine.batch.remove(request_id)
                self.post(PrefillComputed(request_id, 0.0, 0.0, 0))
                self._pages_arrive(request_id)

    def _pages_arrive(self, request_id: str) -> None:
        engine = self._decode_worker[request_id]
        record = engine.batch.requests[request_id]
        record["phase"] = DECODE
        record["num_computed_tokens"] = record["num_prompt_tokens"] - 1
        if engine.step_ends_at_s == math.inf:
            self._begin_step(engine)

    def _token(self, engine: Engine, request_id: str, num_outputs: int) -> None:
        engine.num_outputs[request_id] = num_outputs
        if num_outputs == 1 and request_id in self.placed_locally:
            self.post(PrefillComputed(request_id, 0.0, 0.0, 0))
        line = engine.lines[request_id]
        if line is not None:
            line.token(7, self.now_s)
            record = engine.batch.requests[request_id]
            for name, value in demand_fields(line).items():
                record[name] = value
        self.post(TokensProduced(request_id, num_outputs - 1, (7,), "x"))
        if num_outputs == self._requests[request_id].sampling.max_tokens:
            engine.batch.remove(request_id)
            self.post(DecodeCompleted(request_id, FinishReason.LENGTH, 1, None))


Load = Sequence[tuple[float, int, int, float, float]]
loads = st.lists(
    st.tuples(
        st.floats(0, 0.2),
        st.integers(1, 6000),
        st.integers(1, 60),
        st.sampled_from([0.1, 0.3, 1.0, 3.0]),
        st.sampled_from([0.02, 0.05, 0.1]),
    ),
    min_size=1,
    max_size=30,
)


# How many prefill and decode workers, and whether those prefill, too.
CLUSTERS = [(1, 1, False), (2, 2, False), (0, 1, True), (0, 2, True), (1, 1, True), (1, 2, True)]


@pytest.mark.parametrize(("num_prefill", "num_decode", "decode_prefills"), CLUSTERS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(load=loads, best_effort=st.sets(st.integers(0, 29)))
def test_every_promise_is_kept(
    num_prefill: int, num_decode: int, load: Load, best_effort: set[int], *, decode_prefills: bool
) -> None:
    world = World(num_prefill, num_decode, 5000, decode_prefills=decode_prefills)
    serve(world, load, best_effort)
    assert world.ended.keys() == {str(index) for index in range(len(load))}
    kept = {name for name in world.promised if world.ended[name].timings.slo_attained}
    assert kept == world.promised


def serve(world: World, load: Load, best_effort: set[int]) -> World:
    for index, (gap_s, num_prompt_tokens, max_tokens, ttft_s, tpot_s) in enumerate(load):
        world.run_until(world.now_s + gap_s)
        spec = request(
            str(index),
            num_prompt_tokens=num_prompt_tokens,
            max_tokens=max_tokens,
            slo=None if index in best_effort else slo(ttft_s, tpot_s),
        )
        world.post(RequestArrived(spec, world.now_s))
    world.run_until(math.inf)
    return world


def test_a_steady_load_is_promised_nearly_whole() -> None:
    """Half of what one prefill worker can compute; promising little would keep promises too."""
    load = [(0.06, 1000, 40, 0.5, 0.05)] * 200
    world = serve(World(1, 1, 5000), load, set())
    assert len(world.promised) > 190
    assert all(world.ended[name].timings.slo_attained for name in world.promised)


def test_one_worker_for_both_phases_is_promised_about_what_it_can_do() -> None:
    load = [(0.06, 1000, 40, 0.5, 0.05)] * 200
    world = serve(World(0, 1, 5000, decode_prefills=True), load, set())
    assert len(world.promised) > 190
    assert world.placed_locally == world.ended.keys()
    assert all(world.ended[name].timings.slo_attained for name in world.promised)


def test_prompts_go_to_the_prefill_worker_when_the_decode_worker_is_full_of_them() -> None:
    load = [(0.02, 1000, 40, 0.5, 0.05)] * 200
    world = serve(World(1, 1, 5000, decode_prefills=True), load, set())
    alone = serve(World(0, 1, 5000, decode_prefills=True), load, set())
    assert 0 < len(world.promised & world.placed_locally) < len(world.promised)
    assert len(world.promised) > 1.2 * len(alone.promised)
    assert all(world.ended[name].timings.slo_attained for name in world.promised)


def test_a_prompt_is_not_taken_to_have_had_the_time_of_one_that_ended() -> None:
    world = World(1, 1, 5000)
    for at_s, name, num_tokens in ((0.0, "a", 6000), (0.001, "b", 6000), (0.25, "c", 10)):
        world.run_until(at_s)
        asked = request(name, num_prompt_tokens=num_tokens, max_tokens=3, slo=slo(2.0, 0.1))
        world.post(RequestArrived(asked, at_s))
    policy = world.controller._policy
    assert isinstance(policy, PlannedAdmission)
    (picture, _) = policy._live._pictures.values()
    (row,) = (picture.requests["num_prompt_tokens"] == 6000).nonzero()[0]
    truth = world.engines["prefill-0"].batch.requests["b"]["num_computed_tokens"]
    assert 0 < truth < 2000
    assert picture.requests["num_computed_tokens"][row] == truth
