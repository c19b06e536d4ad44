"""One worker's steps, formed by a batch former and applied as its contract says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from headway.core.batch_state import DECODE, GONE, PREEMPT, PREFILL, REQUEST, WORKER, Ints, Records
from headway.core.planner.step_time import step_s

Former = Callable[..., None]


def make_worker(**values: float) -> Records:
    """One WORKER record, shape (1,): 10 ms at least, 0.1 ms per token."""
    workers = np.zeros(1, WORKER)
    defaults = {
        "floor_s": 0.01,
        "token_s": 1e-4,
        "time_ratio": 1.0,
        "guard_ratio": 1.0,
        "step_guard_ratio": 1.0,
        "block_size": 16,
        "num_blocks": 10_000,
        "max_step_tokens": 8192,
        "max_running": 256,
        "token_budget": 512,
        "prefills": 1,
        "decodes": 1,
    }
    for name, value in {**defaults, **values}.items():
        workers[name] = value
    if "num_free_blocks" not in values:
        workers["num_free_blocks"] = workers["num_blocks"]
    return workers


def make_requests(*rows: Mapping[str, float]) -> Records:
    """REQUEST records in the order of arrival; due late, and promised, unless said otherwise."""
    requests = np.zeros(len(rows), REQUEST)
    for index, row in enumerate(rows):
        defaults: dict[str, float] = {
            "order": index,
            "phase": PREFILL,
            "guaranteed": 1,
            "prefill_due_at_s": 100.0,
            "next_due_at_s": 100.0,
            "tpot_s": 0.05,
            "num_prompt_tokens": 100,
            "num_output_bound": 100,
        }
        if row.get("phase") == DECODE:
            num_tokens = row.get("num_prompt_tokens", 100)
            defaults["num_computed_tokens"] = num_tokens
            defaults["num_output_tokens"] = 1
        for name, value in {**defaults, **row}.items():
            requests[name][index] = value
        if "num_blocks" not in row:
            requests["num_blocks"][index] = -(-requests["num_computed_tokens"][index] // 16)
    return requests


@dataclass
class Loop:
    """Applies grants as the contract says, and checks its limits at every step."""

    former: Former
    requests: Records
    num_outputs: Ints
    worker: Records
    seed: int
    now_s: float = 0.0
    num_preemptions: int = 0
    steps: list[dict[int, int]] = field(default_factory=list)

    def run(self) -> None:
        shuffle = np.random.default_rng(self.seed).permutation
        own_prompts = self.requests["num_prompt_tokens"].copy()
        while (self.requests["phase"] != GONE).any():
            there = self.requests["phase"] != GONE
            present = there & (self.requests["arrived_at_s"] <= self.now_s)
            if not present.any():
                self.now_s = float(self.requests["arrived_at_s"][there].min())
                continue
            ids = shuffle(np.flatnonzero(present))
            # One more place than needed, which must stay as it is.
            grants = np.full(len(ids) + 1, 12345)
            self.former(self.now_s, self.requests, ids, len(ids), self.worker[0], grants)
            assert grants[-1] == 12345
            self._apply(ids, grants[:-1], own_prompts)
            assert len(self.steps) < 20_000

    def _apply(self, ids: Ints, grants: Ints, own_prompts: Ints) -> None:
        requests, worker = self.requests, self.worker[0]
        assert 0 < grants[grants > 0].sum() <= worker["max_step_tokens"]
        for i in ids[grants == PREEMPT]:
            assert requests["num_blocks"][i] > 0
            worker["num_free_blocks"] += requests["num_blocks"][i]
            requests["num_prompt_tokens"][i] = own_prompts[i] + requests["num_output_tokens"][i]
            requests["num_blocks"][i] = requests["num_computed_tokens"][i] = 0
            requests["phase"][i] = PREFILL
            self.num_preemptions += 1
        attention, context = 0.0, 0
        for i, grant in zip(ids, grants, strict=True):
            if grant <= 0:
                assert grant in {0, PREEMPT}
                continue
            request = requests[i]
            num_computed = request["num_computed_tokens"]
            if request["phase"] == DECODE:
                assert grant == 1
                context += num_computed
            else:
                assert grant <= request["num_prompt_tokens"] - num_computed
                attention += grant * (num_computed + grant / 2)
            num_blocks = max(request["num_blocks"], -(-(num_computed + grant) // 16))
            worker["num_free_blocks"] -= num_blocks - request["num_blocks"]
            request["num_blocks"] = num_blocks
        assert worker["num_free_blocks"] >= 0
        assert (requests["num_blocks"] > 0).sum() <= worker["max_running"]
        granted = grants > 0
        num_decodes = int((requests["phase"][ids[granted]] == DECODE).sum())
        num_tokens = int(grants[granted].sum())
        num_chunks = int(granted.sum()) - num_decodes
        self.now_s += step_s(worker, num_tokens, num_decodes, context, attention, num_chunks, 0, 0)
        self.steps.append({int(i): int(g) for i, g in zip(ids, grants, strict=True) if g != 0})
        for i, grant in zip(ids[granted], grants[granted], strict=True):
            self._advance(requests[i], int(grant), self.num_outputs[i])

    def _advance(self, request: Records, grant: int, num_outputs: int) -> None:
        request["num_computed_tokens"] += grant
        if request["num_computed_tokens"] < request["num_prompt_tokens"]:
            return
        request["phase"] = DECODE
        request["num_output_tokens"] += 1
        request["next_due_at_s"] += request["tpot_s"]
        if request["num_output_tokens"] == num_outputs:
            request["phase"] = GONE
            self.worker["num_free_blocks"] += request["num_blocks"]
            request["num_blocks"] = 0
