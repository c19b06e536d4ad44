"""`headway explain`: why one request of a simulated run was promised, or was not.

The run is repeated up to that request's arrival, which its settings determine, and the policy
is asked there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from headway.cli.display import milliseconds
from headway.cli.simulate import RESULT
from headway.core.planner.arrival import Limit
from headway.core.planner.promising import Explanation, PromisePolicy
from headway.errors import ConfigError
from headway.sim.settings import Settings
from headway.sim.simulation import Simulation
from headway.sim.workload import Tier

_MEANING = {
    Limit.NONE: "it fits",
    Limit.PREFILL_TIME: "the first token, its own or that of an earlier promise, would be late",
    Limit.DECODE_RATE: "decodes could not keep the pace promised to them",
    Limit.KV_BLOCKS: "the KV blocks of all outputs would not fit",
    Limit.TOO_COSTLY: "it would push out more requests than it is worth",
}


class PastDecision:
    """A run of `headway simulate --out`, taken back to one arrival.

    Raises:
        ConfigError: no such run or request, or a policy that cannot explain itself.
    """

    def __init__(self, folder: Path, request: int) -> None:
        settings = _settings(folder)
        self.record = _record(folder, request)
        self._request = request
        policy = settings.named_policy().build()
        if not isinstance(policy, PromisePolicy):
            raise ConfigError(f"policy {settings.policy} cannot explain its decisions; headway can")
        self._policy = policy
        workload = settings.workload(settings.rates[0])
        self._simulation: Simulation = settings.simulation(workload, policy, stop_before=request)
        self._simulation.run()
        self.now_s = float(self._simulation.view.requests["arrived_at_s"][request])
        if self.now_s != self.record["arrived_at_s"]:
            raise ConfigError(f"{folder} was written by another version, or on another machine")

    def explanation(self) -> Explanation:
        """For the tier that was asked for."""
        return self._policy.explain(self._request, self._simulation.view, self.now_s)

    def tiers_that_fit(self) -> list[str]:
        """The other tiers of the scenario that could have been promised."""
        workload = self._simulation.workload
        own = workload.tier[self._request]
        return [
            tier.name
            for number, tier in enumerate(workload.tiers)
            if number != own and self._fits_as(tier)
        ]

    def _fits_as(self, tier: Tier) -> bool:
        simulation, cluster = self._simulation, self._simulation.cluster
        requests = simulation.view.requests
        asked = requests[self._request].copy()
        promise = tier.slo.promise(
            cluster.hardware.perf_model.prefill_s(
                int(asked["num_prompt_tokens"]), 0, cluster.max_step_tokens
            )
        )
        record = requests[self._request]
        due_at_s = self.now_s + promise.ttft_s - cluster.first_token_overhead_s
        record["prefill_due_at_s"] = record["next_due_at_s"] = due_at_s
        thinks = asked["num_stage_tokens_left"] > 0
        record["tpot_s"] = promise.stages[0 if thinks else -1].tpot_s
        record["later_tpot_s"] = promise.stages[-1].tpot_s
        limit = self._policy.explain(self._request, simulation.view, self.now_s).limit
        requests[self._request] = asked
        return limit is Limit.NONE


def explain(folder: Path, request: int, console: Console) -> None:
    """Print what was asked, what was decided and why, and what would have fitted.

    Raises:
        ConfigError: see `PastDecision`.
    """
    past = PastDecision(folder, request)
    found = past.explanation()
    for line in _lines(past.record, found, past.tiers_that_fit()):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _lines(record: dict[str, Any], found: Explanation, tiers: list[str]) -> list[str]:
    asked_s = record["ttft_bound_s"]
    thinking_s = record["thinking_tpot_bound_s"]
    thinking = f" ({milliseconds(thinking_s)} while thinking)" if thinking_s else ""
    size = f"{record['num_prompt_tokens']} prompt tokens, {record['num_output_tokens']} of output"
    pace = f"one every {milliseconds(record['tpot_bound_s'])}{thinking}"
    lines = [
        f"request {record['request']}, {record['arrived_at_s']:.3f} s into the run: {size}",
        f"asked for: tier {record['tier']}, a token within {milliseconds(asked_s)}, then {pace}",
        f"decided:   {record['decision'].replace('_', ' ')}",
        f"binding:   {found.limit}: {_MEANING[found.limit]}",
    ]
    if found.limit is Limit.TOO_COSTLY:
        lines.append(
            f"cost:      {found.cost * 1e3:.1f} ms of worker time, at most "
            f"{found.cost_limit * 1e3:.1f} now"
        )
    if found.limit is Limit.PREFILL_TIME:
        lines.append(f"would fit: {_ttft_that_fits(found, record)}")
    if found.limit is not Limit.NONE:
        lines.append(f"tiers that would have fitted: {', '.join(tiers) or 'none'}")
    return lines


def _ttft_that_fits(found: Explanation, record: dict[str, Any]) -> str:
    if found.ttft_that_fits_s is None:
        return "no TTFT bound up to 64 times this one"
    # Both without what is charged to every first token.
    slack_s = found.ttft_that_fits_s - (record["first_due_at_s"] - record["arrived_at_s"])
    return (
        f"a TTFT bound of {milliseconds(record['ttft_bound_s'] + slack_s)}, "
        f"{milliseconds(slack_s)} more"
    )


def _settings(folder: Path) -> Settings:
    path = folder / RESULT
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return Settings.model_validate(result["settings"])
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; headway simulate --out writes it") from error
    except KeyError as error:
        raise ConfigError(f"{path} holds several runs; name one of its folders") from error
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _record(folder: Path, request: int) -> dict[str, Any]:
    path = folder / "requests.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    if not 0 <= request < len(lines):
        raise ConfigError(f"{path} has requests 0 to {len(lines) - 1}, not {request}")
    record: dict[str, Any] = json.loads(lines[request])
    return record
