"""What a run leaves on disk: one JSON object per request and per step, and their hash.

Nothing in these files depends on the machine's speed, so the same settings and seed give the
same bytes; the hash is what `cat requests.jsonl steps.jsonl | sha256sum` prints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headway.core.batch_state import Records
from headway.sim.result import RunResult
from headway.sim.scoring import Score, tpot_bounds_s
from headway.sim.world_state import SERVED

_STEP_FIELDS = (
    "worker",
    "start_s",
    "duration_s",
    "predicted_s",
    "num_tokens",
    "num_decodes",
    "num_context_tokens",
    "num_chunks",
    "num_drafted",
)


@dataclass(frozen=True, slots=True)
class RunLog:
    """Contents of requests.jsonl and steps.jsonl."""

    requests: bytes
    steps: bytes

    @property
    def sha256(self) -> str:
        """Of both, one after the other, in hexadecimal."""
        return hashlib.sha256(self.requests + self.steps).hexdigest()

    def write(self, folder: Path) -> None:
        """Write both files, and the folder if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "requests.jsonl").write_bytes(self.requests)
        (folder / "steps.jsonl").write_bytes(self.steps)


def run_log(result: RunResult, score: Score) -> RunLog:
    """The log of a run done with `RunOptions.log`."""
    return RunLog(
        requests=b"".join(_line(record) for record in _requests(result, score)),
        steps=b"".join(_line(record) for record in _steps(result.steps)),
    )


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _requests(result: RunResult, score: Score) -> Iterator[dict[str, Any]]:
    """Instants are seconds of virtual time; null where something did not happen."""
    workload, sim = result.workload, result.sim
    bounds_s = tpot_bounds_s(workload)
    check_points = _check_points(result.token_log, len(workload))
    for i in range(len(workload)):
        was_served = bool(sim["outcome"][i] == SERVED)
        num_thinking = int(workload.num_thinking_tokens[i])
        yield {
            "request": i,
            "tier": workload.tiers[workload.tier[i]].name,
            "follows": int(workload.follows[i]) if workload.follows[i] >= 0 else None,
            "arrived_at_s": float(result.arrived_at_s[i]),
            "num_prompt_tokens": int(workload.num_prompt_tokens[i]),
            "num_cached_tokens": int(sim["num_cached_tokens"][i]),
            "num_output_tokens": int(workload.num_output_tokens[i]),
            "num_thinking_tokens": num_thinking,
            "ttft_bound_s": float(result.ttft_bound_s[i]),
            "thinking_tpot_bound_s": float(bounds_s[i, 0]) if num_thinking else None,
            "tpot_bound_s": float(bounds_s[i, 1]),
            "decision": _decision(score, i),
            "prefill_worker": int(sim["prefill_worker"][i]) if was_served else None,
            "decode_worker": int(sim["decode_worker"][i]) if was_served else None,
            "first_due_at_s": float(sim["first_due_at_s"][i]),
            "first_token_at_s": float(sim["first_token_at_s"][i]) if was_served else None,
            "last_token_at_s": float(sim["last_token_at_s"][i]) if was_served else None,
            "check_points": check_points[i],
            "num_preemptions": int(sim["num_preemptions"][i]),
            "outcome": "served" if was_served else "refused",
            "attained_strict": bool(score.strict[i]),
            "attained_mean": bool(score.mean[i]),
        }


def _decision(score: Score, i: int) -> str:
    if score.refused[i]:
        return "refused"
    return "best_effort" if score.best_effort[i] else "promised"


def _check_points(token_log: Records, num_requests: int) -> list[list[tuple[int, float]]]:
    """Per request: (index of the token from 0, when it left)."""
    in_order = token_log[np.lexsort((token_log["index"], token_log["request"]))]
    pairs = list(zip(in_order["index"].tolist(), in_order["at_s"].tolist(), strict=True))
    ends = np.searchsorted(in_order["request"], np.arange(num_requests), side="right").tolist()
    return [pairs[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _steps(steps: Records) -> Iterator[dict[str, Any]]:
    columns = [steps[name].tolist() for name in _STEP_FIELDS]
    for values in zip(*columns, strict=True):
        yield dict(zip(_STEP_FIELDS, values, strict=True))
