"""A controller and its engines in virtual time: steps take what the perf model says.

The controller hears of prompts and tokens only, as it does live; the engines' own batches are
those of the emulated engine, or packed as vLLM packs them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from headway.adapters.emulated.batch import Batch
from headway.adapters.emulated.steps import BlockPool
from headway.config import EmulatedConfig
from headway.core.batch_state import ARRIVING, DECODE, PREFILL, Record
from headway.core.cluster import WorkerRole, WorkerSpec
from headway.core.controller import Controller
from headway.core.effects import SendAdmission, SendFinished, StartDecode, StartPrefill
from headway.core.events import (
    DecodeCompleted,
    DecodeReserved,
    Event,
    PrefillComputed,
    RequestArrived,
    TokensProduced,
    WorkerJoined,
)
from headway.core.perf_model import PerfModel, StepShape
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
        kind = Batch if self.spec.forms_steps_by_deadline else PackedBatch
        self.batch = kind(config, self.spec.perf_model, GUARD_RATIO, pool)


class PackedBatch(Batch):
    """Steps as vLLM forms them: all decodes, prompts under way, then those next due."""

    def form(self, now_s: float, time_ratio: float) -> StepShape | None:
        del now_s, time_ratio
        records = self.requests.records
        decodes = [row for row, r in enumerate(records) if r["phase"] == DECODE]
        prompts = [row for row, r in enumerate(records) if r["phase"] == PREFILL]
        prompts.sort(key=lambda row: self._turn(records[row]))
        ids, self.grants = self.requests.ids, {}
        num_left = int(self._worker["max_step_tokens"][0])
        for row in [*decodes, *prompts]:
            r = records[row]
            wanted = 1
            if r["phase"] == PREFILL:
                wanted = int(r["num_prompt_tokens"] - r["num_computed_tokens"])
            grant = min(wanted, num_left)
            if grant > 0:
                num_left -= grant
                self.grants[ids[row]] = grant
                self.hold_blocks_for(ids[row], int(r["num_computed_tokens"]) + grant)
        return self._shape() if self.grants else None

    @staticmethod
    def _turn(record: Record) -> tuple[bool, float, int]:
        return record["num_computed_tokens"] == 0, record["prefill_due_at_s"], record["order"]


class World:
    """A controller and its engines; messages take no time."""

    def __init__(
        self,
        num_prefill: int,
        num_decode: int,
        num_kv_blocks: int,
        *,
        decode_prefills: bool = False,
        packs: bool = False,
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
                    # Steps that are packed full must be short, if any pace is to be promised.
                    max_step_tokens=512 if packs else 2048,
                    perf_model=PERF_MODEL,
                    forms_steps_by_deadline=not packs,
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
            record["lead_s"] = line.lead_s
        self.post(TokensProduced(request_id, num_outputs - 1, (7,), "x"))
        if num_outputs == self._requests[request_id].sampling.max_tokens:
            engine.batch.remove(request_id)
            self.post(DecodeCompleted(request_id, FinishReason.LENGTH, 1, None))


Load = Sequence[tuple[float, int, int, float, float]]


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
