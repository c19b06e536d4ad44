"""The simulated machines."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from headway.core.batch_state import WORKER, Floats, Records
from headway.core.perf_model import PerfModel
from headway.profiles import StepTimeConfig
from headway.sim.truth import exact_truth, measured_truth


@dataclass(frozen=True, slots=True)
class DraftModel:
    """What drafting costs per step and drafted token, and per sequence and drafted token."""

    floor_s: float
    sequence_s: float


@dataclass(frozen=True, slots=True)
class Hardware:
    """One worker's model and device, as planned with and as it really is.

    Attributes:
        name: of the model and the device, for reports.
        curve: true step times; None where only the perf model is known.
        host_s: what the engine's host adds to every step; part of the perf model already.
        num_kv_tokens: that fit in memory.
        num_gpus: that one worker takes.
    """

    name: str
    perf_model: PerfModel
    curve: StepTimeConfig | None
    host_s: float
    draft: DraftModel
    num_kv_tokens: int
    kv_bytes_per_token: int
    num_gpus: int = 1


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """How many workers of which role, and what connects them.

    Attributes:
        num_colocated: prefill and decode.
        num_prefill, num_decode: only one of both.
        exact: the planner's model is the truth, without noise.
        noise_sigma, spike_probability, spike_ratio: of the true step times.
        model_error_ratio: the planner's times are the profile's times this.
        max_draft_tokens: 0 switches speculation off.
        acceptance: of a drafted token, as the planner believes before it has seen any.
        true_acceptance: of a tier's drafts, for tiers where it is another: (tier, (at the start,
            when the last session starts)), linear in between. Requests differ by up to 0.1.
        first_token_overhead_s: what planning and the way to the client take of each TTFT.
    """

    hardware: Hardware
    num_colocated: int = 1
    num_prefill: int = 0
    num_decode: int = 0
    block_size: int = 16
    max_step_tokens: int = 8192
    max_running: int = 512
    exact: bool = False
    noise_sigma: float = 0.04
    spike_probability: float = 0.0005
    spike_ratio: float = 4.0
    model_error_ratio: float = 1.0
    max_draft_tokens: int = 0
    acceptance: float = 0.7
    true_acceptance: tuple[tuple[str, tuple[float, float]], ...] = ()
    link_bytes_per_s: float = 25e9
    link_latency_s: float = 0.0005
    first_token_overhead_s: float = 0.001

    @property
    def num_workers(self) -> int:
        return self.num_colocated + self.num_prefill + self.num_decode

    @property
    def num_gpus(self) -> int:
        return self.num_workers * self.hardware.num_gpus

    def with_roles(self, num_colocated: int, num_prefill: int, num_decode: int) -> ClusterSpec:
        return replace(
            self, num_colocated=num_colocated, num_prefill=num_prefill, num_decode=num_decode
        )

    def worker_records(self) -> Records:
        """WORKER records, colocated ones first, then prefill, then decode workers."""
        workers = np.zeros(self.num_workers, WORKER)
        model = self.hardware.perf_model.scaled(self.model_error_ratio)
        for name in model.__dataclass_fields__:
            workers[name] = getattr(model, name)
        workers["draft_floor_s"] = self.hardware.draft.floor_s
        workers["draft_sequence_s"] = self.hardware.draft.sequence_s
        for name in ("time_ratio", "guard_ratio", "step_guard_ratio"):
            workers[name] = 1.0
        workers["block_size"] = self.block_size
        workers["num_blocks"] = self.hardware.num_kv_tokens // self.block_size
        workers["num_free_blocks"] = workers["num_blocks"]
        workers["max_step_tokens"] = self.max_step_tokens
        workers["max_running"] = self.max_running
        workers["max_draft_tokens"] = self.max_draft_tokens
        workers["step_cap_s"] = np.inf
        workers["busy_until_s"] = -np.inf
        workers["send_token_s"] = self.hardware.kv_bytes_per_token / self.link_bytes_per_s
        first_decode = self.num_colocated + self.num_prefill
        workers["prefills"][:first_decode] = 1
        workers["decodes"][: self.num_colocated] = 1
        workers["decodes"][first_decode:] = 1
        return workers

    def truth_arrays(self, seed: int) -> tuple[Records, Floats, Floats]:
        """TRUTH records, shape (W,), and the knots and times of each, shapes (W, knots)."""
        curve = self.hardware.curve
        if self.exact or curve is None:
            one, knots, times_s = exact_truth()
        else:
            one, knots, times_s = measured_truth(
                curve,
                host_s=self.hardware.host_s,
                sigma=self.noise_sigma,
                spike_probability=self.spike_probability,
                spike_ratio=self.spike_ratio,
                seed=seed,
            )
        num_workers = self.num_workers
        return (
            np.repeat(one, num_workers),
            np.tile(knots, (num_workers, 1)),
            np.tile(times_s, (num_workers, 1)),
        )
