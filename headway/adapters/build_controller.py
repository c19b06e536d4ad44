"""The controller that a deployment's config describes: the live one, and a replay's."""

from __future__ import annotations

from headway.config import ControllerConfig
from headway.core.controller import Controller
from headway.core.planner.interface import PlannerParams
from headway.core.planner.policies import build_policies


def build_controller(config: ControllerConfig) -> Controller:
    """A controller that knows of no worker and no request yet."""
    tiers = {name: tier.slo() for name, tier in config.tiers.items()}
    params = PlannerParams(
        guard_ratio=config.guard_ratio,
        max_best_effort_queued=config.max_best_effort_queued,
        tiers={name: slo for name, slo in tiers.items() if slo is not None},
    )
    return Controller(build_policies(params).admission, max_requests=config.max_requests)
