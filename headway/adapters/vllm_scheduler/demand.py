"""What the engine's scheduler is told of a request, and of plans: plain values on the wire.

Instants are on the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headway.core.request_table import demand_fields
from headway.core.slo import DemandLine, Promise, StageSlo
from headway.ports.engine import PlanUpdate

# In the sampling parameters' `extra_args`, beside vLLM's own "kv_transfer_params".
DEMAND_KEY = "headway_demand"


@dataclass(frozen=True, slots=True)
class Demand:
    """When a request's prompt or tokens are due.

    Attributes:
        request_id: the caller's; vLLM makes an id of its own of it.
        due_at_s: of the prompt; None where only the first token is due, or nothing.
        promise: of its tokens; None when best effort, or when they leave elsewhere.
        submitted_at_s: from when the promise counts.
        tier: whose drafts are counted together.
        step_cap_s: longest step from now on, while promised prompts wait; None leaves it.
    """

    request_id: str
    submitted_at_s: float
    due_at_s: float | None = None
    promise: Promise | None = None
    tier: str = ""
    step_cap_s: float | None = None

    def to_wire(self) -> dict[str, Any]:
        return {
            "request_id": self.request_id,
            "submitted_at_s": self.submitted_at_s,
            "due_at_s": self.due_at_s,
            "promise": _promise_to_wire(self.promise),
            "tier": self.tier,
            "step_cap_s": self.step_cap_s,
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Demand:
        return cls(
            request_id=wire["request_id"],
            submitted_at_s=wire["submitted_at_s"],
            due_at_s=wire["due_at_s"],
            promise=_promise_from_wire(wire["promise"]),
            tier=wire["tier"],
            step_cap_s=wire["step_cap_s"],
        )

    def line(self) -> DemandLine | None:
        """The token deadlines from the first token on; None without a promise."""
        return DemandLine(self.promise, self.submitted_at_s) if self.promise else None

    def fields(self) -> dict[str, float]:
        """What a REQUEST record says of it before the first token."""
        fields = demand_fields(self.line())
        if self.due_at_s is not None:
            fields["prefill_due_at_s"] = self.due_at_s
            if self.promise is None:
                fields |= {"guaranteed": 1, "next_due_at_s": self.due_at_s}
        else:
            fields["prefill_due_at_s"] = fields["next_due_at_s"]
        return fields


def encode_update(update: PlanUpdate, now_s: float) -> bytes:
    """One datagram, sent at `now_s`."""
    return json.dumps(
        {
            "step_cap_s": update.step_cap_s,
            "time_ratio": update.time_ratio,
            "draft_lengths": dict(update.draft_lengths),
            "demands": {
                request_id: {
                    "due_at_s": None if change.due_s is None else now_s + change.due_s,
                    "promise": _promise_to_wire(change.promise),
                }
                for request_id, change in update.demands.items()
            },
        }
    ).encode()


@dataclass(frozen=True, slots=True)
class ReceivedUpdate:
    """A plan update in the engine's process.

    Attributes:
        demands: when the prompt is due, and what its tokens are promised, by the caller's
            request id.
    """

    step_cap_s: float | None
    time_ratio: float | None
    draft_lengths: dict[str, int]
    demands: dict[str, tuple[float | None, Promise | None]]


def decode_update(datagram: bytes) -> ReceivedUpdate:
    """Raises ValueError, KeyError or TypeError for what `encode_update` did not make."""
    wire = json.loads(datagram)
    time_ratio = wire["time_ratio"]
    if time_ratio is not None and not (math.isfinite(time_ratio) and time_ratio > 0):
        raise ValueError(f"time_ratio must be positive, got {time_ratio}")
    return ReceivedUpdate(
        step_cap_s=wire["step_cap_s"],
        time_ratio=time_ratio,
        draft_lengths={tier: int(length) for tier, length in wire["draft_lengths"].items()},
        demands={
            request_id: (change["due_at_s"], _promise_from_wire(change["promise"]))
            for request_id, change in wire["demands"].items()
        },
    )


def _promise_to_wire(promise: Promise | None) -> dict[str, Any] | None:
    if promise is None:
        return None
    return {
        "ttft_s": promise.ttft_s,
        "stages": [[s.tpot_s, s.end_token_id, s.end_after_tokens] for s in promise.stages],
    }


def _promise_from_wire(wire: Mapping[str, Any] | None) -> Promise | None:
    if wire is None:
        return None
    return Promise(wire["ttft_s"], tuple(StageSlo(*stage) for stage in wire["stages"]))
